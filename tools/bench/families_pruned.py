"""Prune a small Swin and a small CCT that were trained from scratch on CIFAR-10, and compare.

    python tools/bench/train_small.py swin --out FOLDER
    python tools/bench/train_small.py cct --out FOLDER
    python tools/bench/families_pruned.py --weights FOLDER

Calibrated and distilled on images of cifar10_train without labels, evaluated on cifar10_val. Every model is
exported, built as OpenVINO IR in fp32 and run; the numbers are the artefact's. Each row is recorded at once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import record
from methods import Bench, Case, judge, make_slim
from record import Figure, Notebook, Row
from subjects import (
    SMALL,
    TOLD,
    SmallModel,
    artefact_logits,
    cpu_target,
    decode_now,
    labels_of,
    open_set,
    use_threads,
)

from edgevit.cost import model_cost
from edgevit.measure.accuracy import top1
from edgevit.methods import CoupledDims, PatchSimilarity, TokenChannels
from edgevit.models.load import ModelSource, load_model
from edgevit.target import Target
from edgevit.training import Training
from edgevit.tune.distil import Distil, distil

SECTION = "families-pruned"
TRAINING = Training(epochs=1, lr=5e-4, batch=50)


def dims(share: float) -> Case:
    """Cut this share of QK and VO dims and of hidden neurons, in every block."""
    return Case(
        f"coupled-dims {share:.0%}, token-channels {share:.0%}".replace("%", " %"),
        (
            CoupledDims(method="coupled-dims", qk_drop=share, vo_drop=share, keep_first=False),
            TokenChannels(method="token-channels", hidden_drop=share, keep_first=False),
        ),
        None,
    )


def merged(tokens: int) -> Case:
    """Merge tokens into so many, in the second block."""
    methods = (PatchSimilarity(method="patch-similarity", tokens=tokens, blocks=(1,), strategy="merge"),)
    return Case(f"patch-similarity merge, 64 to {tokens} tokens in block 1", methods, None)


CASES = {
    "swin": (dims(0.25), dims(0.5)),  # windows are whole: no token can go
    "cct": (dims(0.25), dims(0.5), merged(48), merged(40)),
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, metavar="FOLDER", help="of train_small.py")
    parser.add_argument("--models", nargs="+", choices=list(SMALL), default=list(SMALL))
    parser.add_argument("--calibration", type=int, metavar="IMAGES", default=1000)
    parser.add_argument("--tuning", type=int, metavar="IMAGES", default=10_000)
    record.add_options(parser)
    return parser.parse_args()


def open_bench(small: SmallModel, weights: Path, images: tuple[int, int | None], folder: Path) -> Bench:
    """Load a model and its images (calibration, evaluation), and evaluate the dense artefact."""
    loaded = load_model(ModelSource(small.name, small.weights(weights), options=small.options))
    calibration, evaluation = (
        open_set(f"cifar10_{name}_32", loaded.preprocess, count)
        for name, count in zip(("train", "val"), images, strict=True)
    )
    decode_now(calibration)
    target: Target = cpu_target("openvino", 2)
    logits = artefact_logits(loaded.model, target, evaluation, folder / "dense")
    return Bench(loaded.model, logits, evaluation, labels_of(evaluation), calibration, target, folder)


def dense_row(small: SmallModel, bench: Bench) -> Row:
    """Return what the dense model is."""
    cost = model_cost(bench.dense.arch).total
    accuracy = Figure(100 * top1(bench.dense_logits, bench.labels), ".2f")
    size = f"{cost.macs / 1e6:.1f} M MACs, {cost.params / 1e6:.2f} M params"
    return Row(f"{small.title}: dense", {"top-1 %": accuracy, "dense": size})


def rows(small: SmallModel, bench: Bench, case: Case, tuning: int) -> list[Row]:
    """Measure one case: rows cut, in closed form, and distilled after that."""
    found = []
    for form in ("rows cut, means folded", "closed form"):
        TOLD.say(f"{small.title}: {case.name}: {form}")
        begin = time.perf_counter()
        slim = make_slim(bench, case, form)
        seconds = time.perf_counter() - begin
        found.append(_row(small, case, form, judge(bench, slim, None), seconds))
    preprocess = load_model(ModelSource(small.name, options=small.options)).preprocess
    images = open_set("cifar10_train_32", preprocess, tuning)
    decode_now(images)
    begin = time.perf_counter()
    tuned, _ = distil(bench.dense, slim, images, Distil(TRAINING), progress=TOLD)
    seconds = time.perf_counter() - begin
    form = f"closed form, then distilled for an epoch on {tuning} images"
    return [*found, _row(small, case, form, judge(bench, tuned, None), seconds)]


def _row(small: SmallModel, case: Case, form: str, cells: dict[str, Figure | str], seconds: float) -> Row:
    return Row(f"{small.title}: {case.name}: {form}", cells | {"seconds": Figure(seconds, ".1f")})


def main() -> None:
    """Measure every model that was asked for."""
    arguments = parse_arguments()
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    calibration = 64 if arguments.quick else arguments.calibration
    tuning = 100 if arguments.quick else arguments.tuning
    with tempfile.TemporaryDirectory() as folder:
        for small in map(SMALL.__getitem__, arguments.models):
            images = calibration, 64 if arguments.quick else None
            bench = open_bench(small, arguments.weights, images, Path(folder) / small.key)
            notebook.write(SECTION, [dense_row(small, bench)])
            for case in CASES[small.key]:
                notebook.write(SECTION, rows(small, bench, case, tuning))


if __name__ == "__main__":
    main()
