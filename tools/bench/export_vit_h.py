"""Export ViT-H/14 (632 M random weights) and print the time and the peak memory: 20 GB are allowed.

Run: python tools/bench/export_vit_h.py [--model NAME] [--out DIR]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch

from edgevit.cost import model_cost
from edgevit.export.graph_cost import graph_cost
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.verify import check_dims
from edgevit.models.arch import Arch, BlockDims
from edgevit.models.layers import SlimViT

SIZES = {  # embed, heads, blocks, patch
    "deit-tiny": (192, 3, 12, 16),
    "deit-small": (384, 6, 12, 16),
    "deit-base": (768, 12, 12, 16),
    "vit-h": (1280, 16, 32, 14),
}


def arch_of(name: str) -> Arch:
    """Return the dims of a dense model at 224 px with 1000 classes."""
    embed, heads, blocks, patch = SIZES[name]
    tokens = 1 + (224 // patch) ** 2
    dim = embed // heads
    block = BlockDims(heads, dim, dim, 4 * embed, tokens, tokens, tokens, embed)
    return Arch(
        image=(3, 224, 224),
        patch=(patch, patch),
        classes=1000,
        prefix=1,
        reads="class",
        norm="before-pool",
        pre_norm=False,
        norm_eps=1e-6,
        activation="gelu",
        qk_norm=False,
        qkv_bias=True,
        scale=dim**-0.5,
        blocks=(block,) * blocks,
    )


def peak_gb() -> float:
    """Return the peak memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts KiB


def measure(name: str, folder: Path) -> None:
    """Make, export and check one model; print a line for each."""
    arch = arch_of(name)
    cost = model_cost(arch).total
    model = SlimViT(arch).eval()
    before = peak_gb()
    gigabytes = cost.bytes / 1e9
    print(f"{name}: {cost.params / 1e6:.0f} M params, {gigabytes:.2f} GB; loaded: peak {before:.2f} GB")
    start = time.perf_counter()
    path = folder / f"{name}.onnx"
    export_onnx(model, path, ExportOptions())
    seconds = time.perf_counter() - start
    more = (peak_gb() - before) / gigabytes
    print(f"export: {seconds:.1f} s, peak {peak_gb():.2f} GB: {more:.2f} x the weights more")
    for file in sorted(folder.iterdir()):
        print(f"file: {file.name} {file.stat().st_size / 1e9:.3f} GB")
    check_dims(path, arch)
    counted = graph_cost(path)
    equal = (counted.macs, counted.params) == (cost.macs, cost.params)
    print(
        f"counted: {counted.macs / 1e9:.3f} GMACs, {counted.params / 1e6:.1f} M params; as promised: {equal}"
    )


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=sorted(SIZES), default="vit-h")
    parser.add_argument("--out", type=Path, help="keep the files there; default: a temporary folder")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        measure(arguments.model, folder)


if __name__ == "__main__":
    main()
