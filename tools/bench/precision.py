"""Make fp16 and int8 of DeiT-Tiny and DeiT-Small, and measure what they cost and gain in both CPU runtimes.

    python tools/bench/precision.py --parts half accuracy limited others quantising     # minutes of CPU
    python tools/bench/precision.py --parts speed others-speed --seconds 20             # alone on the machine

`--keep` a folder, so that times are taken of the very graphs whose accuracy was. `--models budget` takes the
model that budgets.py built for 54 % of the MACs.

Accuracy: DeiT-T's ImageNet weights, calibrated on 256 unlabelled images of imagenet_train1000, evaluated on
imagenet_val650. Times of quantising include the reading of statistics, not the decoding of images.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import record
from numpy.typing import NDArray
from record import Bound, Figure, Notebook, Row
from subjects import (
    TOLD,
    WEIGHTS,
    Cut,
    cpu_target,
    cut_model,
    labels_of,
    load_deit_tiny,
    open_set,
    use_threads,
)

from edgevit.backends import get_backend
from edgevit.board import read_installed
from edgevit.export.half import Kept, to_half
from edgevit.export.int8_layers import Int8Graph
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.parity import Batch
from edgevit.export.precision import quantise
from edgevit.images import Images
from edgevit.measure.accuracy import Logits, agreement, correct, mean_kl, paired_bootstrap, predict, top1
from edgevit.measure.protocol import measure_pair
from edgevit.models.layers import SlimViT
from edgevit.models.load import ModelSource, load_model, load_saved
from edgevit.pipeline.int8 import control_int8
from edgevit.plan import Counts
from edgevit.recipe import Int8Section
from edgevit.slim import SlimOptions
from edgevit.target import Precision, Runtime, Target, Timing

RUNTIMES: dict[Runtime, str] = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
SMALL = "deit_small_patch16_224"
SLIM = Cut("QK 32, VO 48, hidden 384", Counts(qk_dim=32, vo_dim=48, hidden=384), dead_tokens=True)
MODELS = {"dense": "DeiT-T", "slim": f"DeiT-T, {SLIM.name}", "budget": "DeiT-T, macs = 0.54 by budget"}
LIMIT = 0.05
"""Points of top-1 that int8 is allowed in the part `limited`."""
_RANGE_IMAGES = 64
_LARGEST_DROP: dict[Runtime, float] = {"openvino": 0.3, "onnxruntime": 0.5}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = list(PARTS)
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--seconds", type=float, default=20.0, help="of samples for each pair")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["dense", "slim"])
    parser.add_argument(
        "--build", type=Path, help="build directory of the budget, for --models budget: budgets.py --keep"
    )
    parser.add_argument("--keep", type=Path, help="folder that keeps graphs for a later run of other parts")
    record.add_options(parser)
    return parser.parse_args()


class Bench:
    """Graphs that the parts share, made when first asked for."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        self.folder = folder
        self.dense = load_deit_tiny()

    def calibration(self) -> list[Batch]:
        """Decode the calibration images, one an array."""
        count = 8 if self.arguments.quick else 256
        return list(open_set("imagenet_train1000", self.dense.preprocess, count).batches(1))

    def evaluation(self) -> Images:
        """Open the images that judge."""
        return open_set("imagenet_val650", self.dense.preprocess, 16 if self.arguments.quick else None)

    def halved(self, name: str) -> tuple[dict[Precision, Path], Kept]:
        """Return the fp32 and the fp16 graph of a model, and what stayed in fp32."""
        paths: dict[Precision, Path] = {
            "fp32": self.folder / f"{name}-fp32.onnx",
            "fp16": self.folder / f"{name}-fp16.onnx",
        }
        if not paths["fp32"].is_file():
            export_onnx(self._model(name), paths["fp32"], ExportOptions(batch=1))
        TOLD.say(f"fp16 of {name}")
        return paths, to_half(paths["fp32"], self.calibration()[:_RANGE_IMAGES], paths["fp16"])

    def graphs(self, name: str) -> dict[Precision, Path]:
        """Return the fp32 and the int8 graph of a model."""
        paths: dict[Precision, Path] = {
            "fp32": self.folder / f"{name}-fp32.onnx",
            "int8": self.folder / f"{name}-int8.onnx",
        }
        if not paths["int8"].is_file():
            TOLD.say(f"quantising {name}")
            if not paths["fp32"].is_file():
                export_onnx(self._model(name), paths["fp32"], ExportOptions(batch=1))
            quantise(paths["fp32"], self.calibration(), paths["int8"], smooth=False)
        return paths

    def other(self, variant: Variant) -> Path:
        """Return DeiT-T quantised otherwise than edgevit does."""
        path = self.folder / variant.file
        if not path.is_file():
            TOLD.say(f"quantising: {variant.name}")
            quantise_otherwise(self.graphs("dense")["fp32"], self.calibration(), variant, path)
        return path

    def models(self) -> dict[str, str]:
        """Return the models that were asked for, with their titles."""
        return {name: MODELS[name] for name in self.arguments.models}

    def _model(self, name: str) -> SlimViT:
        if name == "dense":
            return self.dense.model
        if name == "budget":
            return load_saved(self.arguments.build).model
        images = open_set("imagenet_train1000", self.dense.preprocess, 64 if self.arguments.quick else 256)
        return cut_model(self.dense.model, SLIM, SlimOptions("closed-form"), images)

    def target(self, runtime: Runtime) -> Target:
        """Return the CPU target."""
        return cpu_target(runtime, self.arguments.threads)


def logits_of(target: Target, precision: Precision, graph: Path, folder: Path, images: Images) -> Logits:
    """Build the artefact of a graph and return its logits for all images."""
    backend = get_backend(target.runtime)
    artefact = backend.build(graph, target, precision, folder)
    with backend.load(artefact, target, precision) as session:
        return predict(session, images.batches(1), progress=lambda done: TOLD("scoring", done, len(images)))


def accuracy(bench: Bench, notebook: Notebook) -> None:
    """Compare int8 with the same model in fp32 in the same runtime."""
    images = bench.evaluation()
    labels = labels_of(images)
    for name, title in bench.models().items():
        graphs = bench.graphs(name)
        for runtime in RUNTIMES:
            target = bench.target(runtime)
            reference = logits_of(target, "fp32", graphs["fp32"], bench.folder / "fp32", images)
            for precision in int8_precisions(runtime):
                found = logits_of(target, precision, graphs["int8"], bench.folder / precision, images)
                wanted = wanted_of(name, runtime) if precision == "int8" else (None, None)
                row = Row(
                    f"{title}, {precision}: {RUNTIMES[runtime]}", cells(reference, found, labels, wanted)
                )
                notebook.write("precision", [row])


def wanted_of(name: str, runtime: Runtime) -> tuple[Bound, Bound]:
    """Return the drop and the agreement that int8 is to have."""
    if name != "dense":
        return Bound(high=0.5), Bound(low=0.97)
    return Bound(high=_LARGEST_DROP[runtime]), Bound(low=0.98)


def limited(bench: Bench, notebook: Notebook) -> None:
    """Put layers back into float until int8 holds a limit on calibration images; then evaluate on others."""
    images = bench.evaluation()
    for name, title in bench.models().items():
        graphs = bench.graphs(name)
        path, facts = limit_int8(bench, name, graphs)
        for runtime in RUNTIMES:
            target = bench.target(runtime)
            reference = logits_of(target, "fp32", graphs["fp32"], bench.folder / "fp32", images)
            answers = logits_of(target, "int8", path, bench.folder / "limited", images)
            row = cells(reference, answers, labels_of(images), wanted_of(name, runtime)) | facts
            what = f"{title}, int8 with max_drop = {LIMIT}: {RUNTIMES[runtime]}"
            notebook.write("precision", [Row(what, row)])


def limit_int8(bench: Bench, name: str, graphs: dict[Precision, Path]) -> tuple[Path, dict[str, str]]:
    """Write a graph that holds the limit on calibration images, and say what is in float there."""
    graph = Int8Graph(graphs["fp32"], graphs["int8"])
    limits = Int8Section(max_drop=LIMIT)
    found, choice = control_int8(graph, graphs["fp32"], bench.calibration(), limits, TOLD)
    path = bench.folder / f"{name}-limited.onnx"
    graph.write(path, choice.in_float)
    macs = {one.layer.name: one.layer.macs for one in found}
    share = sum(macs[layer] for layer in choice.in_float) / sum(macs.values())
    TOLD.say(f"in float: {', '.join(choice.in_float) or 'none'}; {choice.before} -> {choice.after}")
    return path, {"layers in float (of their MACs)": f"{len(choice.in_float)} of {len(macs)} ({share:.1%})"}


@dataclass(frozen=True)
class Variant:
    """A way to quantise that edgevit does not take."""

    name: str
    file: str
    preset: str
    """NNCF's: "MIXED" gives activations zero points."""
    runtimes: tuple[Runtime, ...]


OTHERS = (
    Variant("asymmetric activations, Q/DQ graph", "asymmetric.onnx", "MIXED", ("openvino", "onnxruntime")),
    Variant("symmetric, NNCF's own OpenVINO path", "native.xml", "PERFORMANCE", ("openvino",)),
    Variant(
        "asymmetric activations, NNCF's own OpenVINO path", "native-asymmetric.xml", "MIXED", ("openvino",)
    ),
)


def quantise_otherwise(fp32: Path, images: list[Batch], variant: Variant, out: Path) -> None:
    """Let NNCF quantise the ONNX graph, or OpenVINO's model of it, without SmoothQuant."""
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import onnx
    import openvino
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
    )

    native = out.suffix == ".xml"
    model = openvino.Core().read_model(fp32) if native else onnx.load(fp32)
    found = nncf.quantize(
        model,
        nncf.Dataset(images, (lambda image: image) if native else (lambda image: {"image": image})),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset[variant.preset],
        subset_size=len(images),
        advanced_parameters=AdvancedQuantizationParameters(
            smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
        ),
    )
    if native:
        openvino.save_model(found, out, compress_to_fp16=False)
    else:
        onnx.save(found, out)


def others(bench: Bench, notebook: Notebook) -> None:
    """Evaluate DeiT-T quantised otherwise, in the runtimes that take it, as the part `accuracy` does."""
    graphs, images = bench.graphs("dense"), bench.evaluation()
    for variant in OTHERS:
        path = bench.other(variant)
        for runtime in variant.runtimes:
            target = bench.target(runtime)
            reference = logits_of(target, "fp32", graphs["fp32"], bench.folder / "fp32", images)
            with get_backend(runtime).load(path, target, "int8") as session:
                answers = predict(session, images.batches(1))
            row = cells(reference, answers, labels_of(images), (None, None))
            notebook.write("precision", [Row(f"DeiT-T, {variant.name}: {RUNTIMES[runtime]}", row)])


def half(bench: Bench, notebook: Notebook) -> None:
    """Compare the fp16 graph with the same model in fp32, in ONNX Runtime."""
    images, target = bench.evaluation(), bench.target("onnxruntime")
    labels = labels_of(images)
    for name, title in bench.models().items():
        paths, kept = bench.halved(name)
        reference, found = (
            logits_of(target, precision, paths[precision], bench.folder / precision, images)
            for precision in ("fp32", "fp16")
        )
        apart = float(np.abs(found - reference).max() / np.abs(reference).max())
        smaller = paths["fp16"].stat().st_size / paths["fp32"].stat().st_size
        more: dict[str, Figure | str] = {
            "largest difference of a logit, of the largest": f"{apart:.1e}",
            "nodes in fp32": str(len(kept.by_range) + len(kept.by_choice)),
            "size of the file": f"{smaller:.3f}",
        }
        row = cells(reference, found, labels, (None, Bound(low=0.995)))
        notebook.write("precision-half", [Row(f"{title}, fp16: ONNX Runtime", row | more)])


def cells(
    reference: Logits,
    found: Logits,
    labels: NDArray[np.int64],
    wanted: tuple[Bound | None, Bound | None],
) -> dict[str, Figure | str]:
    """Return what int8 costs."""
    interval = paired_bootstrap(correct(reference, labels), correct(found, labels), 0)
    lost = 100 * (top1(reference, labels) - top1(found, labels))
    return {
        "images": str(len(labels)),
        "top-1 in fp32, %": Figure(100 * top1(reference, labels), ".1f"),
        "drop, points": Figure(lost, ".2f", (interval.low, interval.high), wanted[0]),
        "agreement": Figure(agreement(reference, found), ".4f", None, wanted[1]),
        "KL": Figure(mean_kl(reference, found), ".4f"),
    }


def int8_precisions(runtime: Runtime) -> tuple[Precision, ...]:
    """Return the int8 precisions that this machine runs."""
    bf16 = runtime == "openvino" and "BF16" in read_installed("openvino", "CPU").capabilities
    return ("int8", "int8-bf16") if bf16 else ("int8",)


def quantising(bench: Bench, notebook: Notebook) -> None:
    """Time the quantising of DeiT-S and the measuring of its layers; weights do not matter for that."""
    path = bench.folder / "small-fp32.onnx"
    export_onnx(load_model(ModelSource(SMALL)).model, path, ExportOptions(batch=1))
    images = bench.calibration()
    begin, busy = time.perf_counter(), time.process_time()
    quantise(path, images, bench.folder / "small-int8.onnx", smooth=False)
    minutes, processor = (
        (time.perf_counter() - begin) / 60,
        (time.process_time() - busy) / 60,
    )
    begin = time.perf_counter()
    control_int8(Int8Graph(path, bench.folder / "small-int8.onnx"), path, images, Int8Section(), TOLD)
    measuring = (time.perf_counter() - begin) / 60
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    row: dict[str, Figure | str] = {
        "images": str(len(images)),
        "minutes": Figure(minutes, ".2f", None, Bound(high=2.0)),
        "minutes of CPU": Figure(processor, ".2f"),
        "minutes to measure its layers": Figure(measuring, ".2f"),
        "peak of the process, GB": Figure(peak, ".2f", None, Bound(high=4.0)),
    }
    notebook.write("precision-quantising", [Row("DeiT-S", row)])


def timing_of(bench: Bench) -> Timing:
    """Return how long pairs are timed."""
    quick = bench.arguments.quick
    return Timing(
        warmup_s=0.2 if quick else 2.0,
        seconds=1.0 if quick else bench.arguments.seconds,
        min_samples=10 if quick else 100,
        max_samples=100_000,
        max_interval_ratio=0.05,
    )


def noise_of(bench: Bench) -> Batch:
    """Return one image of noise."""
    shape = (1, *bench.dense.model.arch.image)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def others_speed(bench: Bench, notebook: Notebook) -> None:
    """Time edgevit's int8 artefact against what is quantised otherwise; 1 and more: edgevit's is as fast."""
    ours = bench.graphs("dense")["int8"]
    for variant in OTHERS:
        path = bench.other(variant)
        for runtime in variant.runtimes:
            target, backend = bench.target(runtime), get_backend(runtime)
            artefact = backend.build(ours, target, "int8", bench.folder / runtime / "int8")
            with backend.load(path, target, "int8") as one, backend.load(artefact, target, "int8") as other:
                found = measure_pair(one, other, noise_of(bench), timing_of(bench))
            assert found.candidate is not None
            assert found.speedup is not None
            ratio, trusted = found.speedup, found.verdict == "trusted"
            wanted = Bound(low=0.97) if path.suffix == ".xml" else None
            row: dict[str, Figure | str] = {
                "otherwise, ms": Figure(found.reference.median, ".2f"),
                "edgevit's Q/DQ graph, ms": Figure(found.candidate.median, ".2f"),
                "ratio": Figure(ratio.value, ".3f", (ratio.low, ratio.high), wanted, trusted),
                "verdict": found.verdict if trusted else f"untrusted: {found.why}",
            }
            title = f"DeiT-T, {variant.name}: {RUNTIMES[runtime]}, {target.threads} threads"
            notebook.write("precision-others-speed", [Row(title, row)])


def speed(bench: Bench, notebook: Notebook) -> None:
    """Time int8 against fp32, dense DeiT-T, in both runtimes."""
    timing, noise = timing_of(bench), noise_of(bench)
    graphs = bench.graphs("dense")
    for runtime in RUNTIMES:
        target, backend = bench.target(runtime), get_backend(runtime)
        reference = backend.build(graphs["fp32"], target, "fp32", bench.folder / runtime / "fp32")
        for precision in int8_precisions(runtime):
            artefact = backend.build(graphs["int8"], target, precision, bench.folder / runtime / precision)
            with (
                backend.load(reference, target, "fp32") as one,
                backend.load(artefact, target, precision) as other,
            ):
                found = measure_pair(one, other, noise, timing)
            assert found.candidate is not None
            assert found.speedup is not None
            wanted = Bound(low=1.8 if runtime == "openvino" else 1.0) if precision == "int8" else None
            ratio = found.speedup
            row: dict[str, Figure | str] = {
                "fp32, ms": Figure(found.reference.median, ".2f"),
                "int8, ms": Figure(found.candidate.median, ".2f"),
                "faster by": Figure(
                    ratio.value, ".3f", (ratio.low, ratio.high), wanted, found.verdict == "trusted"
                ),
                "verdict": found.verdict if found.verdict == "trusted" else f"untrusted: {found.why}",
            }
            notebook.write(
                "precision-speed",
                [Row(f"DeiT-T, {precision}: {RUNTIMES[runtime]}, {target.threads} threads", row)],
            )


PARTS = {
    "half": half,
    "accuracy": accuracy,
    "limited": limited,
    "others": others,
    "quantising": quantising,
    "speed": speed,
    "others-speed": others_speed,
}


def main() -> None:
    """Run the parts that were asked for."""
    arguments = parse_arguments()
    if not WEIGHTS.is_file():
        raise SystemExit(f"{WEIGHTS}: the real weights are not here")
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(arguments, folder)
        for part in arguments.parts:
            PARTS[part](bench, notebook)


if __name__ == "__main__":
    main()
