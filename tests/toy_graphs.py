"""Small random models of every form that is exported, and their graphs, each exported once for all tests."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_ccts import CCT_ARCH
from toy_swins import SWIN
from toy_vits import ARCH as TOY

from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.models.arch import Arch, BlockDims
from edgevit.models.layers import SlimViT
from edgevit.plan import Choice

DENSE = BlockDims(heads=2, qk_dim=6, vo_dim=6, hidden=16, tokens_in=17, tokens_out=17, queries=17, embed=24)
ARCH = replace(TOY, image=(3, 32, 32), patch=(8, 8), scale=0.3, blocks=(DENSE, DENSE))
MERGED = replace(
    ARCH,
    blocks=(
        replace(DENSE, qk_dim=4, vo_dim=5, hidden=7, tokens_out=12),
        replace(DENSE, tokens_in=12, queries=12, tokens_out=9),
        replace(DENSE, tokens_in=9, queries=1, tokens_out=1),
    ),
)
ARCHS = {
    "dense": ARCH,
    "slim": replace(ARCH, blocks=(DENSE, replace(DENSE, heads=1, qk_dim=3, vo_dim=5, hidden=7))),
    "merged": MERGED,
    "distilled": replace(
        ARCH,
        prefix=2,
        reads="class+distillation",
        activation="quick-gelu",
        blocks=(replace(DENSE, tokens_in=18, tokens_out=2, queries=2),),
    ),
    "mean-merged": replace(
        MERGED, reads="mean", norm="after-pool", pre_norm=True, qk_norm=True, blocks=MERGED.blocks[:2]
    ),
    "registers": replace(
        ARCH,
        prefix=3,
        reads="mean+prefix",
        qkv_bias=False,
        activation="gelu-tanh",
        blocks=(replace(DENSE, tokens_in=19, tokens_out=19, queries=19),),
    ),
    "swin": replace(
        SWIN,
        blocks=tuple(
            replace(block, heads=1 + index, qk_dim=5, vo_dim=6 + index, hidden=9)
            for index, block in enumerate(SWIN.blocks)
        ),
    ),
    "gated": replace(
        ARCH, gated=True, activation="silu", blocks=(DENSE, replace(DENSE, heads=1, qk_dim=3, hidden=7))
    ),
    "cct": replace(
        CCT_ARCH,
        blocks=(
            replace(CCT_ARCH.blocks[0], heads=2, qk_dim=5, hidden=7, tokens_out=11),
            replace(CCT_ARCH.blocks[1], vo_dim=3, tokens_in=11, tokens_out=11, queries=11),
        ),
    ),
    "chosen": replace(
        ARCH,
        choice=Choice("cells", "knn"),
        blocks=(
            replace(DENSE, tokens_in=14, queries=14, tokens_out=11, choice=Choice("clusters")),
            replace(DENSE, tokens_in=11, queries=11, tokens_out=8, choice=Choice("drop")),
        ),
    ),
    "mean-chosen": replace(
        ARCH,
        prefix=0,
        reads="mean",
        choice=Choice("clusters", "count", similar=0.1),
        blocks=(replace(DENSE, tokens_in=9, queries=9, tokens_out=9),),
    ),
    "input-merged": replace(ARCH, blocks=(replace(DENSE, tokens_in=11, queries=11, tokens_out=11),)),
    "no-prefix": replace(
        ARCH,
        prefix=0,
        reads="mean",
        activation="silu",
        blocks=(replace(DENSE, tokens_in=16, tokens_out=16, queries=16),),
    ),
}

RARE = {"registers", "no-prefix", "input-merged"}  # their exports are tested with --slow
FORMS = [pytest.param(name, marks=pytest.mark.slow) if name in RARE else name for name in ARCHS]


def random_model(arch: Arch, seed: int = 0) -> SlimViT:
    """Return a model whose every weight, bias and norm is random and not 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    model = SlimViT(arch).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def noise(arch: Arch, batch: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a seeded batch of independent pixels, [B, C, H, W]."""
    return np.random.default_rng(1).standard_normal((batch, *arch.image), np.float32)


@cache
def _bytes(arch: Arch, options: str) -> bytes:
    """Export once for all tests: an export takes a second, and the same one gives the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(random_model(arch), path, ExportOptions(**json.loads(options)))
        return path.read_bytes()


def exported(tmp_path: Path, arch: Arch, **options: Any) -> Path:
    """Write the graph of `random_model(arch)` to `model.onnx` in a folder, and return it."""
    path = tmp_path / "model.onnx"
    path.write_bytes(_bytes(arch, json.dumps(options, sort_keys=True)))
    return path
