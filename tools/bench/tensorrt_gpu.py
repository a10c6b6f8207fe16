"""Build and run DeiT with TensorRT on this machine's GPU: parity, latency, the GPU's time, precisions.

    python tools/bench/tensorrt_gpu.py --seconds 20

Needs an NVIDIA GPU and `pip install 'edgevit[tensorrt]'`. Random weights, and noise to calibrate on: times do
not depend on them, and the parity is with the same graph.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import record
from numpy.typing import NDArray
from record import Bound, Figure, Notebook, Row
from subjects import TOLD, Cut, cut_model, use_threads

from edgevit.backends.tensorrt import EngineModel, TensorRT
from edgevit.cost import model_cost
from edgevit.errors import BackendError, BackendUnavailableError
from edgevit.export.half import to_half
from edgevit.export.links import onnx_link
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.precision import quantise
from edgevit.measure.protocol import measure_pair
from edgevit.models.layers import SlimViT
from edgevit.models.load import ModelSource, load_model
from edgevit.plan import Counts
from edgevit.slim import SlimOptions
from edgevit.target import Precision, Target, Timing, load_target

MODELS = {
    "DeiT-T": ("deit_tiny_patch16_224", 384),
    "DeiT-S": ("deit_small_patch16_224", 768),
    "DeiT-B": ("deit_base_patch16_224", 1536),
}
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
_FP32_DIFFERENCE = 1e-3
_CALIBRATED_ON = 8
_RUNS = 200
_LAYER_RUNS = 20
_SHOWN = 3


@dataclass(frozen=True)
class Pair:
    """Dense and slim of one model."""

    name: str
    dense: SlimViT
    slim: SlimViT

    @property
    def estimated(self) -> float:
        """Return the speed-up that the MACs let hope for."""
        return model_cost(self.dense.arch).total.macs / model_cost(self.slim.arch).total.macs


def make_pair(name: str) -> Pair:
    """Load a model and cut it."""
    timm_name, hidden = MODELS[name]
    dense = load_model(ModelSource(timm_name)).model
    cut = Cut("QK 32, VO 48, half of hidden", Counts(qk_dim=32, vo_dim=48, hidden=hidden), dead_tokens=True)
    return Pair(name, dense, cut_model(dense, cut, SlimOptions("none"), None))


def draw_noise(model: SlimViT, count: int) -> list[NDArray[np.float32]]:
    """Draw single images, [1, C, H, W] each."""
    draw = np.random.default_rng(0)
    return [draw.standard_normal((1, *model.arch.image)).astype(np.float32) for _ in range(count)]


def write_graphs(pair: Pair, target: Target, folder: Path) -> dict[Precision, dict[str, Path]]:
    """Export both models in fp32, and make the other precisions of that."""
    graphs: dict[Precision, dict[str, Path]] = {precision: {} for precision in PRECISIONS}
    for side, model in (("dense", pair.dense), ("slim", pair.slim)):
        files = {precision: folder / f"{side}-{precision}.onnx" for precision in PRECISIONS}
        images = draw_noise(model, _CALIBRATED_ON)
        export_onnx(model, files["fp32"], ExportOptions(opset=target.opset, batch=target.batch))
        to_half(files["fp32"], images, files["fp16"])
        quantise(files["fp32"], images, files["int8"], smooth=False)
        for precision, path in files.items():
            graphs[precision][side] = path
    return graphs


def measure(pair: Pair, target: Target, precision: Precision, graphs: dict[str, Path], folder: Path) -> Row:
    """Build both sides in one precision, compare them with their graphs, and time them side by side."""
    backend = TensorRT("tensorrt")
    (image,) = draw_noise(pair.dense, 1)
    built = {side: backend.build(graphs[side], target, precision, folder / side) for side in graphs}
    with (
        closing(backend.open_engine(built["dense"])) as dense,
        closing(backend.open_engine(built["slim"])) as slim,
    ):
        sides = {"dense": dense, "slim": slim}
        apart = max(
            float(np.abs(engine.run(image) - onnx_link(graphs[side]).run(image)).max())
            for side, engine in sides.items()
        )
        with (
            backend.load(built["dense"], target, precision) as first,
            backend.load(built["slim"], target, precision) as second,
        ):
            found = measure_pair(first, second, image, target.timing)
        gpu = {side: float(np.median(engine.gpu_ms(_RUNS))) for side, engine in sides.items()}
        device, slowest = slim.device(), _slowest_layers(slim)
    assert found.candidate is not None
    assert found.speedup is not None
    ratio, wanted = found.speedup, Bound(None, _FP32_DIFFERENCE) if precision == "fp32" else None
    trusted = found.verdict == "trusted"
    return Row(
        f"{pair.name}, {precision}, {device['name']}",
        {
            "TensorRT": device["version"],
            "CUDA graph": device["cuda_graph"],
            "layers put out": device["layers_put_out"],
            "largest difference of a logit": Figure(apart, ".1e", None, wanted),
            "dense, ms": f"{found.reference.median:.3f}",
            "slim, ms": f"{found.candidate.median:.3f}",
            "dense, ms of the GPU": f"{gpu['dense']:.3f}",
            "slim, ms of the GPU": f"{gpu['slim']:.3f}",
            "speed-up": Figure(ratio.value, ".3f", (ratio.low, ratio.high), Bound(1.0), trusted),
            "of the estimate": f"{ratio.value / pair.estimated:.3f}",
            "slowest layers of slim": slowest,
        },
    )


def _slowest_layers(engine: EngineModel) -> str:
    times = engine.layer_ms(_LAYER_RUNS)
    slowest = sorted(times, key=lambda name: times[name], reverse=True)[:_SHOWN]
    return "; ".join(f"{name.replace('|', '/')[:60]} {times[name]:.3f} ms" for name in slowest)


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
    backend = TensorRT("tensorrt")
    try:
        backend.check()
        if "gpu" not in backend.versions():
            raise BackendUnavailableError("TensorRT is here and no CUDA device: nothing was measured.")
    except BackendUnavailableError as error:
        raise SystemExit(str(error)) from error
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    for name in list(MODELS)[:1] if arguments.quick else MODELS:
        TOLD.say(name)
        pair = make_pair(name)
        with tempfile.TemporaryDirectory() as folder:
            for precision, graphs in write_graphs(pair, target, Path(folder)).items():
                TOLD.say(f"{name}, {precision}")
                try:
                    row = measure(pair, target, precision, graphs, Path(folder) / precision)
                except BackendError as error:  # one that does not build must not cost the others their rows
                    TOLD.say(str(error))
                    row = Row(f"{name}, {precision}", {"TensorRT": f"failed: {str(error).splitlines()[0]}"})
                notebook.write("tensorrt-gpu", [row])


if __name__ == "__main__":
    main()
