from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from toy_ccts import CCT_ARCH, ONE_CONV, TWO_CONVS, toy_cct
from toy_vits import fill

from edgevit.errors import UnsupportedModelError, WeightsError
from edgevit.models.anatomy import read_anatomy
from edgevit.models.cct import CCT, CctDims
from edgevit.models.families import from_timm
from edgevit.models.load import ModelSource, load_model


@pytest.mark.parametrize(("dims", "size"), [(ONE_CONV, 8), (ONE_CONV, (8, 13)), (TWO_CONVS, 33)])
def test_from_cct_gives_the_outputs_of_cct(dims: CctDims, size: int | tuple[int, int]) -> None:
    model = fill(CCT(dims, size, num_classes=5))
    slim = from_timm(model, "toy")
    image = torch.randn(3, *slim.arch.image, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(slim(image), model(image), rtol=1e-5, atol=1e-5)


def test_from_cct_sees_a_changed_parameter_of_each_part() -> None:
    model = toy_cct()
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    before = from_timm(model, "toy")(image)
    for name, parameter in model.named_parameters():
        if name.endswith("attention_pool.bias"):
            continue  # softmax ignores it
        change = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
        parameter += change
        assert (from_timm(model, "toy")(image) - before).abs().max() > 1e-3, name
        parameter -= change


def test_arch_of_cct_reads_a_sequence_and_can_be_cut_in_every_way() -> None:
    anatomy = read_anatomy(CCT_ARCH)
    assert (CCT_ARCH.tokens, CCT_ARCH.prefix, CCT_ARCH.reads) == (16, 0, "sequence")
    assert (anatomy.refused, anatomy.read_tokens) == ({}, None)
    block = CCT_ARCH.blocks[0]
    assert (block.heads, block.qk_dim, block.vo_dim, block.hidden, block.embed) == (3, 8, 8, 48, 24)


def test_cct_without_a_classifier_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"model toy: no classifier \(num_classes = 0\)"):
        from_timm(CCT(ONE_CONV, 8, num_classes=0), "toy")


def test_load_model_knows_cct_by_name_with_its_preprocessing() -> None:
    loaded = load_model(ModelSource("cct_7_3x1"))
    assert loaded.model.arch.tokens == 256
    assert (loaded.preprocess.crop, loaded.preprocess.resize) == ((32, 32), 32)
    assert loaded.preprocess.mean == (0.4914, 0.4822, 0.4465)


def test_cct_weights_of_another_image_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model("cct_7_3x1").state_dict(), path)
    with pytest.raises(WeightsError, match=r"classifier.positional_emb: .* wants \[1, 64, 256\]"):
        load_model(ModelSource("cct_7_3x1", path, options={"img_size": 16}))
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert load_model(ModelSource("cct_7_3x1", path)).model(image).isfinite().all()
