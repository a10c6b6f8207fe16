from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from timm.layers import RmsNorm
from torch import nn
from toy_swins import SWIN, swin
from toy_vits import fill

from edgevit.errors import UnsupportedModelError
from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.models.arch import Window
from edgevit.models.swin import from_swin
from edgevit.plan import keep_all

FORMS: dict[str, Callable[[], nn.Module]] = {
    "plain": swin,
    "without qkv bias": partial(swin, qkv_bias=False),
    "wide image": partial(swin, img_size=(32, 64)),
    "oblong windows": partial(swin, window_size=(2, 4)),
    "three stages": partial(swin, img_size=64, depths=(1, 2, 1), num_heads=(2, 4, 8)),
    "heads of other widths": partial(swin, num_heads=(2, 2)),
    "head dims of its own": partial(swin, head_dim=6),
    "always partitioned": partial(swin, img_size=16, window_size=2, always_partition=True),
    "one channel": partial(swin, in_chans=1),
}


@pytest.mark.parametrize("form", FORMS)
def test_from_swin_gives_the_outputs_of_timm(form: str) -> None:
    model = fill(FORMS[form]())
    slim = from_swin(model, form)
    image = torch.randn(3, *slim.arch.image, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(slim(image), model(image), rtol=1e-5, atol=1e-5)


def test_from_swin_sees_a_changed_parameter_of_each_part() -> None:
    """The toy weights are of a size at which a part that was forgotten would show."""
    model = fill(swin())
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = from_swin(model, "toy")(image)
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.bias"):
            parameter = parameter[: len(parameter) // 3]  # the queries' part: keys need none
        change = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
        parameter += change
        assert (from_swin(model, "toy")(image) - before).abs().max() > 1e-3, name
        parameter -= change


def test_from_swin_reads_windows_shifts_and_mergings() -> None:
    assert [block.window for block in SWIN.blocks] == [
        Window((4, 4), (0, 0), (8, 8)),
        Window((4, 4), (2, 2), (8, 8)),
        Window((4, 4), (0, 0), (4, 4)),
        Window((4, 4), (0, 0), (4, 4)),
    ]
    assert [block.downsampled_from for block in SWIN.blocks] == [None, None, 16, None]
    assert [(block.embed, block.tokens_in, block.heads) for block in SWIN.blocks] == [
        (16, 64, 2),
        (16, 64, 2),
        (32, 16, 4),
        (32, 16, 4),
    ]
    assert (SWIN.embed, SWIN.features, SWIN.tokens, SWIN.read_tokens) == (16, 32, 64, None)


def test_anatomy_of_swin_refuses_tokens_with_the_reason() -> None:
    anatomy = read_anatomy(SWIN)
    assert list(anatomy.refused) == ["tokens"]
    assert "inside windows of a grid" in anatomy.refused["tokens"]
    assert slim_arch(SWIN, keep_all(anatomy)) == SWIN


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "windows that do not divide": (
        partial(swin, window_size=3),
        "stage 0: a grid of 8 x 8 tokens is no multiple of its windows, 3 x 3. Set model.options",
    ),
    "an odd grid": (
        partial(swin, img_size=20, window_size=5),
        "stage 0: a grid of 5 x 5 tokens cannot be merged 2 x 2",
    ),
    "free image size": (partial(swin, strict_img_size=False), "an exported graph has one image size"),
    "no classifier": (partial(swin, num_classes=0), "no classifier .* num_classes in model.options"),
    "max pooling": (partial(swin, global_pool="max"), "global_pool = 'max'"),
    "RMS norm": (partial(swin, norm_layer=RmsNorm), "norm RmsNorm where LayerNorm is expected"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_from_swin_refuses_an_unknown_form_with_the_reason(form: str) -> None:
    make, reason = REFUSED[form]
    with pytest.raises(UnsupportedModelError, match=reason):
        from_swin(make(), "toy")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_published_swin_gives_the_outputs_of_timm(size: str) -> None:
    name = f"swin_{size}_patch4_window7_224"
    model = fill(timm.create_model(name), spread=0.05)
    slim = from_swin(model, name)
    image = torch.randn(2, *slim.arch.image, generator=torch.Generator().manual_seed(1))
    expected = model(image)
    assert expected.std(dim=0).mean() > 0.1
    torch.testing.assert_close(slim(image), expected, rtol=1e-5, atol=1e-5)
