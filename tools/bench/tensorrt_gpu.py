"""Build and run DeiT with TensorRT on this machine's GPU: parity, latency, the GPU's time, precisions.

    python tools/bench/tensorrt_gpu.py --seconds 20

Needs an NVIDIA GPU and `pip install 'edgevit[tensorrt]'`. Random weights: times do not depend on
them, and the parity is with the same graph.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import record
from record import Bound, Figure, Notebook, Row
from subjects import TOLD, Cut, cut_model, use_threads

from edgevit.backends.tensorrt import TensorRT
from edgevit.cost import model_cost
from edgevit.errors import BackendUnavailableError
from edgevit.export.links import onnx_link
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.measure.protocol import measure_pair
from edgevit.models.layers import SlimViT
from edgevit.models.load import ModelSource, load_model
from edgevit.plan import Counts
from edgevit.slim import SlimOptions
from edgevit.target import Target, Timing, load_target

MODELS = {"DeiT-T": ("deit_tiny_patch16_224", 384), "DeiT-S": ("deit_small_patch16_224", 768)}
_RUNS = 200


@dataclass(frozen=True)
class Pair:
    """Dense and slim of one model."""

    name: str
    dense: SlimViT
    slim: SlimViT


def make_pair(name: str) -> Pair:
    """Load a model and cut it."""
    timm_name, hidden = MODELS[name]
    dense = load_model(ModelSource(timm_name)).model
    cut = Cut("QK 32, VO 48, half of hidden", Counts(qk_dim=32, vo_dim=48, hidden=hidden), dead_tokens=True)
    return Pair(name, dense, cut_model(dense, cut, SlimOptions("none"), None))


def measure(pair: Pair, target: Target, folder: Path) -> Row:
    """Build both, compare them with their graphs, and time them side by side."""
    backend, built = TensorRT("tensorrt"), {}
    images = np.random.default_rng(0).standard_normal((1, *pair.dense.arch.image)).astype(np.float32)
    for side, model in (("dense", pair.dense), ("slim", pair.slim)):
        path = folder / side / "model.onnx"
        path.parent.mkdir()
        export_onnx(model, path, ExportOptions(opset=target.opset))
        built[side] = backend.build(path, target, "fp32", folder / side / "engine")
    with (
        backend.load(built["dense"], target, "fp32") as dense,
        backend.load(built["slim"], target, "fp32") as slim,
    ):
        apart = max(
            float(np.abs(session.run(images) - onnx_link(folder / side / "model.onnx").run(images)).max())
            for side, session in (("dense", dense), ("slim", slim))
        )
        found = measure_pair(dense, slim, images, target.timing)
        gpu = {side: float(np.median(one.gpu_ms(_RUNS))) for side, one in (("dense", dense), ("slim", slim))}
        device = slim.device()
    assert found.candidate is not None
    assert found.speedup is not None
    ratio = found.speedup
    estimated = model_cost(pair.dense.arch).total.macs / model_cost(pair.slim.arch).total.macs
    return Row(
        f"{pair.name}, fp32, {device['name']}",
        {
            "TensorRT": device["version"],
            "CUDA graph": device["cuda_graph"],
            "layers put out": device["layers_put_out"],
            "largest difference of a logit": Figure(apart, ".1e", None, Bound(None, 1e-3)),
            "dense, ms": f"{found.reference.median:.3f}",
            "slim, ms": f"{found.candidate.median:.3f}",
            "dense, ms of the GPU": f"{gpu['dense']:.3f}",
            "slim, ms of the GPU": f"{gpu['slim']:.3f}",
            "speed-up": Figure(
                ratio.value, ".3f", (ratio.low, ratio.high), Bound(1.0), found.verdict == "trusted"
            ),
            "of the estimate": f"{ratio.value / estimated:.3f}",
        },
    )


def main() -> None:
    """Measure every model, where there is a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of samples for each pair")
    record.add_options(parser)
    arguments = parser.parse_args()
    target = load_target("nvidia-gpu", Path()).model_copy(
        update={"timing": Timing(seconds=arguments.seconds, attempts=1)}
    )
    try:
        TensorRT("tensorrt").check()
    except BackendUnavailableError as error:
        raise SystemExit(str(error)) from error
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    for name in list(MODELS)[:1] if arguments.quick else MODELS:
        TOLD.say(name)
        with tempfile.TemporaryDirectory() as folder:
            notebook.write("tensorrt-gpu", [measure(make_pair(name), target, Path(folder))])


if __name__ == "__main__":
    main()
