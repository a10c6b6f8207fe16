"""Time pairs of artefacts against each other: promise kept, dead tokens, and whose dense baseline is faster.

    python tools/bench/speed.py --seconds 60

Random weights: times do not depend on them. Batch 1, fp32, edgevit's timing protocol; every pair takes
`--seconds` of samples. `--comparisons` and `--runtimes` choose; wanted figures are for OpenVINO, except that
the baseline must not be slower in either runtime.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import record
import timm
import torch
from numpy.typing import NDArray
from record import Bound, Figure, Notebook, Row
from subjects import CUTS, TOLD, Cut, build_artefact, cpu_target, cut_model, use_threads

from edgevit.backends import get_backend
from edgevit.cost import model_cost
from edgevit.measure.protocol import Measurement, measure_pair
from edgevit.models.layers import SlimViT
from edgevit.models.load import ModelSource, load_model
from edgevit.plan import Counts
from edgevit.slim import SlimOptions
from edgevit.target import Precision, Runtime, Target, Timing

SMALL, TINY = "deit_small_patch16_224", "deit_tiny_patch16_224"
_EQUAL = 1e-5
_EQUAL_EXPORTS = 1e-4
_NO_SLOWER = 0.99  # two runs of one artefact differ by as much


@dataclass(frozen=True)
class Comparison:
    """A dense model and its cut, and the figures wanted of the pair."""

    section: str
    name: str
    model: str
    cut: Cut
    speedup: float | None = None
    promise: float | None = None


COMPARISONS = {
    "dead-tokens": Comparison(
        "dead-tokens", "DeiT-S", SMALL, Cut("dead tokens", Counts(), dead_tokens=True), speedup=1.03
    ),
    "hidden": Comparison(
        "promise", "DeiT-S, hidden 1536 -> 768", SMALL, Cut("hidden", Counts(hidden=768)), promise=0.93
    ),
    "heads": Comparison(
        "promise", "DeiT-S, heads 6 -> 3", SMALL, Cut("heads", Counts(heads=3)), promise=0.93
    ),
    "merge": Comparison("promise", f"DeiT-T, {CUTS['merge80'].name}", TINY, CUTS["merge80"]),
}
BASELINE = "baseline"
RUNTIMES: dict[Runtime, str] = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}


@dataclass(frozen=True)
class Bench:
    """What every pair is timed with."""

    target: Target
    timing: Timing
    folder: Path

    @property
    def title(self) -> str:
        """Return how tables name the runtime with its threads."""
        threads = self.target.threads
        return f"{RUNTIMES[self.target.runtime]}, {threads} thread{'s' if threads > 1 else ''}"


@dataclass(frozen=True)
class Pair:
    """What timing two artefacts gave, and how far their outputs are apart."""

    measured: Measurement
    largest_difference: float

    def speedup(self, bound: Bound | None = None) -> Figure:
        """Return the measured speed-up."""
        ratio = self.measured.speedup
        assert ratio is not None
        trusted = self.measured.verdict == "trusted"
        return Figure(ratio.value, ".3f", (ratio.low, ratio.high), bound, trusted)

    def promise(self, estimated: float, bound: Bound | None = None) -> Figure:
        """Return measured over estimated speed-up."""
        found = self.speedup()
        assert found.interval is not None
        low, high = (end / estimated for end in found.interval)
        return Figure(found.value / estimated, ".3f", (low, high), bound, found.counts)

    def times(self) -> dict[str, Figure | str]:
        """Return both medians and the verdict."""
        one, other = self.measured.reference, self.measured.candidate
        assert other is not None
        return {
            "reference, ms": Figure(one.median, ".2f", (one.low, one.high)),
            "candidate, ms": Figure(other.median, ".2f", (other.low, other.high)),
            "samples each": str(len(one.samples_ms)),
            "verdict": self.measured.verdict
            if self.measured.verdict == "trusted"
            else f"untrusted: {self.measured.why}",
        }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*COMPARISONS, BASELINE]
    parser.add_argument("--comparisons", nargs="+", choices=names, default=names)
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES))
    parser.add_argument("--seconds", type=float, default=60.0, help="of samples for each pair")
    record.add_options(parser)
    return parser.parse_args()


def timing_of(seconds: float, *, quick: bool) -> Timing:
    """Return a protocol that takes samples until the time is over and trusts a narrow interval only."""
    if quick:
        return Timing(warmup_s=0.2, seconds=1.0, min_samples=10, max_samples=50)
    return Timing(
        warmup_s=3.0, seconds=seconds, min_samples=200, max_samples=100_000, max_interval_ratio=0.05
    )


@cache
def load_dense(name: str) -> SlimViT:
    """Load a model with random weights."""
    return load_model(ModelSource(name)).model


def time_pair(
    bench: Bench,
    reference: Path,
    candidate: Path,
    image: tuple[int, int, int],
    precisions: tuple[Precision, Precision] = ("fp32", "fp32"),
) -> Pair:
    """Time two artefacts, each in its precision, and compare their outputs on a few images of noise."""
    backend = get_backend(bench.target.runtime)
    noise = np.random.default_rng(0).standard_normal((4, 1, *image)).astype(np.float32)
    with (
        backend.load(reference, bench.target, precisions[0]) as one,
        backend.load(candidate, bench.target, precisions[1]) as other,
    ):
        difference = max(largest(one.run(sample) - other.run(sample)) for sample in noise)
        return Pair(measure_pair(one, other, noise[0], bench.timing, progress=tell), difference)


def tell(share: float) -> None:
    """Tell how much of a timing is over."""
    TOLD("timing, %", round(100 * share), 100)


def largest(difference: NDArray[np.float32]) -> float:
    """Return the largest absolute value."""
    return float(np.abs(difference).max())


def compare(bench: Bench, what: Comparison) -> Row:
    """Time a dense model against its cut."""
    dense = load_dense(what.model)
    slim = cut_model(dense, what.cut, SlimOptions("none"), None)
    estimated = model_cost(dense.arch).total.macs / model_cost(slim.arch).total.macs
    built = [
        build_artefact(model, bench.target, bench.folder / side)
        for model, side in ((dense, "dense"), (slim, "slim"))
    ]
    pair = time_pair(bench, built[0], built[1], dense.arch.image)
    judged = bench.target.runtime == "openvino"
    cells: dict[str, Figure | str] = {
        "estimated": Figure(estimated, ".3f"),
        "measured": pair.speedup(Bound(low=what.speedup) if what.speedup and judged else None),
        "measured / estimated": pair.promise(
            estimated, Bound(low=what.promise) if what.promise and judged else None
        ),
        **pair.times(),
    }
    if what.cut.dead_tokens:
        cells["largest difference"] = Figure(pair.largest_difference, ".1e", None, Bound(high=_EQUAL))
    return Row(f"{what.name}: {bench.title}", cells)


def export_theirs(name: str, out: Path, opset: int) -> None:
    """Export timm's own module, with the weights of `load_dense`, as torch does by default."""
    torch.manual_seed(0)  # as load_model does
    model = timm.create_model(name).eval()
    image = torch.zeros(1, *load_dense(name).arch.image)
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, (image,), out, opset_version=opset, dynamo=True)


def compare_baseline(bench: Bench) -> Row:
    """Time timm's export of DeiT-S against edgevit's dense one."""
    ours = build_artefact(load_dense(SMALL), bench.target, bench.folder / "ours")
    (bench.folder / "theirs").mkdir()
    onnx = bench.folder / "theirs" / "model.onnx"
    export_theirs(SMALL, onnx, bench.target.opset)
    theirs = get_backend(bench.target.runtime).build(onnx, bench.target, "fp32", onnx.parent / "built")
    pair = time_pair(bench, theirs, ours, load_dense(SMALL).arch.image)
    return Row(
        f"DeiT-S dense: {bench.title}",
        {
            "speed-up over timm's export": pair.speedup(Bound(low=_NO_SLOWER)),
            **pair.times(),
            "largest difference": Figure(pair.largest_difference, ".1e", None, Bound(high=_EQUAL_EXPORTS)),
        },
    )


def main() -> None:
    """Time every pair that was asked for."""
    arguments = parse_arguments()
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    for name in arguments.comparisons:
        for runtime in arguments.runtimes:
            TOLD.say(f"{name}, {runtime}")
            with tempfile.TemporaryDirectory() as folder:
                bench = Bench(
                    cpu_target(runtime, arguments.threads),
                    timing_of(arguments.seconds, quick=arguments.quick),
                    Path(folder),
                )
                if name == BASELINE:
                    notebook.write("baseline", [compare_baseline(bench)])
                else:
                    what = COMPARISONS[name]
                    notebook.write(what.section, [compare(bench, what)])


if __name__ == "__main__":
    main()
