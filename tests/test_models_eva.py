from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from toy_dinos import dino, toy_dino
from toy_vits import fill

from edgevit.errors import UnsupportedModelError
from edgevit.models.anatomy import read_anatomy
from edgevit.models.families import from_timm
from edgevit.models.load import ModelSource, OptionValue, load_model

neighbours = partial(dino, rope_rotate_half=False)

FORMS: dict[str, Callable[[], nn.Module]] = {
    "DINOv3": dino,
    "mean-pooled": partial(dino, global_pool="avg"),
    "with zero key bias": partial(dino, qkv_bias=True),
    "SwiGLU": partial(dino, swiglu_mlp=True),
    "SwiGLU in two layers": partial(dino, swiglu_mlp=True, swiglu_align_to=8),
    "rotation of neighbours": neighbours,
    "rotation of neighbours with qk-norm": partial(neighbours, qk_norm=True),
    "EVA02 with separate q, k, v": partial(
        neighbours,
        rope_type="cat",
        use_abs_pos_emb=True,
        dynamic_img_size=False,
        qkv_fused=False,
        qkv_bias=True,
        num_reg_tokens=0,
    ),
    "no rotation": partial(dino, use_rot_pos_emb=False, use_abs_pos_emb=True, no_embed_class=True),
    "norm before the blocks": partial(dino, use_pre_transformer_norm=True),
    "wide image": partial(dino, img_size=(32, 48)),
}


@pytest.mark.parametrize("form", FORMS)
def test_from_eva_gives_the_outputs_of_timm(form: str) -> None:
    model = fill(FORMS[form]())
    slim = from_timm(model, form)
    image = torch.randn(3, *slim.arch.image, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(slim(image), model(image), rtol=1e-5, atol=1e-5)


def test_from_eva_sees_a_changed_parameter_of_each_part() -> None:
    model = fill(dino(qkv_bias=True, swiglu_mlp=True))
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = from_timm(model, "toy")(image)
    for name, parameter in model.named_parameters():
        change = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
        parameter += change
        assert (from_timm(model, "toy")(image) - before).abs().max() > 1e-3, name
        parameter -= change


def test_rotation_depends_on_the_place_of_a_patch() -> None:
    """Without its angles the toy would not know where a patch lies."""
    model = toy_dino()
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    moved = image.roll(8, dims=3)
    assert (model(moved) - model(image)).abs().max() > 1e-3
    for block in model.blocks:
        assert block.attn.rotary is not None
        block.attn.rotary.load_state_dict({"cos": torch.ones(21, 8), "sin": torch.zeros(21, 8)})
    torch.testing.assert_close(model(moved), model(image), rtol=1e-5, atol=1e-5)


def test_anatomy_of_rotary_positions_refuses_tokens_and_has_qk_dims_two_at_a_time() -> None:
    anatomy = read_anatomy(toy_dino().arch)
    assert list(anatomy.refused) == ["tokens"]
    assert "rotary positions" in anatomy.refused["tokens"]
    assert anatomy.together == {"qk_dim": 2}
    assert anatomy.read_tokens == 1


def test_published_dinov3_name_with_weights_gives_their_outputs(tmp_path: Path) -> None:
    options: dict[str, OptionValue] = {
        "img_size": 32,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        "num_classes": 5,
        "global_pool": "token",
    }
    model = fill(timm.create_model("vit_small_patch16_dinov3", **options))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    source = ModelSource("vit_small_patch16_dinov3", tmp_path / "w.safetensors", options=options)
    loaded = load_model(source).model
    assert (loaded.arch.rotary, loaded.arch.image, loaded.arch.tokens) == (True, (3, 32, 32), 9)
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded(image), model(image), rtol=1e-5, atol=1e-5)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "learned rotation": (partial(neighbours, rope_type="mixed"), "positions RotaryEmbeddingMixed"),
    "another attention": (partial(dino, attn_type="rope"), "AttentionRope and Mlp where EvaAttention and"),
    "post-norm": (partial(dino, use_post_norm=True), "block EvaBlockPostNorm where timm's EvaBlock"),
    "norm in attention": (partial(dino, scale_attn_inner=True), "scale_attn_inner"),
    "norm in the MLP": (partial(dino, swiglu_mlp=True, scale_mlp=True), "scale_mlp_norm"),
    "no classifier": (partial(dino, num_classes=0), "no classifier .* num_classes in model.options"),
    "pooling by attention": (partial(dino, global_pool="map"), "global_pool = 'map'"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_from_eva_refuses_an_unknown_form_with_the_reason(form: str) -> None:
    make, reason = REFUSED[form]
    with pytest.raises(UnsupportedModelError, match=reason):
        from_timm(make(), "toy")
