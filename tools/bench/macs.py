"""Count the MACs of dense models in four ways, which must give one number.

python tools/bench/macs.py
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import record
import timm
import torch
from record import Bound, Figure, Notebook, Row
from subjects import TOLD, use_threads
from timm.layers import set_fused_attn
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgevit.cost import model_cost
from edgevit.export.graph_cost import graph_cost
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.models.families import from_timm


@dataclass(frozen=True)
class Subject:
    """A model, and its published MACs where there are such."""

    name: str
    timm_name: str
    published_g: float | None = None


SUBJECTS = (
    Subject("DeiT-T", "deit_tiny_patch16_224", 1.254),
    Subject("DeiT-S", "deit_small_patch16_224", 4.599),
    Subject("DeiT-B", "deit_base_patch16_224", 17.564),
    Subject("DeiT-T distilled", "deit_tiny_distilled_patch16_224"),
    Subject("ViT-B/16 at 384", "vit_base_patch16_384"),
    Subject("DeiT-3-S", "deit3_small_patch16_224"),
    Subject("Swin-T", "swin_tiny_patch4_window7_224", 4.491),
    Subject("Swin-S", "swin_small_patch4_window7_224", 8.741),
    Subject("Swin-B", "swin_base_patch4_window7_224", 15.431),
    Subject("CCT-7/3x1 at 32", "cct_7_3x1"),
    Subject("CCT-14/7x2", "cct_14_7x2"),
)


def torch_macs(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Count by torch, for one image."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, *image))
    return int(counter.get_total_flops()) // 2  # it counts a multiply-accumulate as two


def measure(subject: Subject, folder: Path) -> Row:
    """Count one model."""
    theirs = timm.create_model(subject.timm_name).eval()
    ours = from_timm(theirs, subject.timm_name).eval()
    arch = ours.arch
    cost = model_cost(arch).total
    export_onnx(ours, folder / "model.onnx", ExportOptions())
    graph = graph_cost(folder / "model.onnx")
    counts = {
        "ONNX file, beyond dims": graph.macs,
        "flop_counter, beyond dims": torch_macs(ours, arch.image),
        "flop_counter on timm's module, beyond dims": torch_macs(theirs, arch.image),
    }
    published = subject.published_g
    bound = Bound(published, published) if published else None
    cells: dict[str, Figure | str] = {
        "GMACs": Figure(cost.macs / 1e9, ".3f", None, bound),
        "MACs from dims": f"{cost.macs:,}",
    }
    for name, macs in counts.items():
        cells[name] = Figure(macs - cost.macs, "+d", None, Bound(0, 0))
    cells["params from dims"] = f"{cost.params:,}"
    cells["params in the ONNX file, beyond dims"] = Figure(
        graph.params - cost.params, "+d", None, Bound(0, 0)
    )
    return Row(subject.name, cells)


def main() -> None:
    """Count all models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    record.add_options(parser)
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    set_fused_attn(False)  # the counter sees products, not every fused kernel
    notebook = Notebook(quick=arguments.quick)
    with tempfile.TemporaryDirectory() as folder:
        for subject in SUBJECTS[:1] if arguments.quick else SUBJECTS:
            TOLD.say(subject.name)
            notebook.write("macs", [measure(subject, Path(folder))])


if __name__ == "__main__":
    main()
