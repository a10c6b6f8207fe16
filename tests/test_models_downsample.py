from __future__ import annotations

import torch
from timm.models.swin_transformer import PatchMerging
from toy_vits import fill

from edgevit.models.downsample import Downsample


def test_downsample_gives_what_timm_gives() -> None:
    theirs = fill(PatchMerging(6, 10))
    ours = Downsample((4, 6), (6, 10), None, theirs.norm.eps)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x.flatten(1, 2)), theirs(x).flatten(1, 2))


def test_downsample_puts_neighbours_together() -> None:
    layer = Downsample((2, 4), (1, 4), None, 1e-5)
    with torch.no_grad():
        layer.reduction.weight.copy_(torch.eye(4))
    layer.norm = torch.nn.Identity()  # type: ignore[assignment]
    tokens = layer(torch.arange(8.0).view(1, 8, 1))
    assert sorted(tokens[0, 0].tolist()) == [0, 1, 4, 5]
    assert sorted(tokens[0, 1].tolist()) == [2, 3, 6, 7]
