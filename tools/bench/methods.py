"""Let methods decide what remains of a DeiT-Tiny for CIFAR-10, slim it without training, and compare.

    python tools/bench/methods.py

Calibrated on images of cifar10_train without their labels, evaluated on cifar10_val. Every model is exported,
built as OpenVINO IR in fp32 and run; the numbers are the artefact's. Each row is recorded at once.
"""

from __future__ import annotations

import argparse
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
    artefact_logits,
    cpu_target,
    decode_now,
    labels_of,
    load_deit_tiny_cifar,
    open_set,
    use_threads,
)

from edgevit.cost import model_cost
from edgevit.images import Images
from edgevit.measure.accuracy import Logits, agreement, correct, mean_kl, paired_bootstrap, top1
from edgevit.methods import CoupledDims, Method, PatchSimilarity, TokenChannels
from edgevit.models.anatomy import read_anatomy
from edgevit.models.layers import SlimViT
from edgevit.plan import keep_all
from edgevit.prune import run_methods
from edgevit.slim import SlimOptions, slim_model
from edgevit.target import Target


@dataclass(frozen=True)
class Case:
    """Methods that decide together, and the drop to stay below with the closed form."""

    name: str
    methods: tuple[Method, ...]
    wanted: float | None


CASES = {
    "half": Case(
        "coupled-dims 50 %, token-channels 50 %",
        (
            CoupledDims(method="coupled-dims", qk_drop=0.5, vo_drop=0.5, keep_first=False),
            TokenChannels(method="token-channels", hidden_drop=0.5, keep_first=False),
        ),
        1.5,
    ),
    "per-image": Case(
        "token-channels 50 % of fc2, per image",
        (TokenChannels(method="token-channels", hidden_drop=0.5, selection="per-image", keep_first=False),),
        None,
    ),
    "static": Case(
        "token-channels 25 %",  # the same MACs as the one before
        (TokenChannels(method="token-channels", hidden_drop=0.25, keep_first=False),),
        None,
    ),
    "deep": Case(
        "coupled-dims QK 16, VO 32, token-channels 256",
        (
            CoupledDims(method="coupled-dims", qk_dim=16, vo_dim=32, keep_first=False),
            TokenChannels(method="token-channels", hidden=256, keep_first=False),
        ),
        None,
    ),
    "patches": Case(
        "patch-similarity merge, 37 to 22 tokens in block 4",
        (PatchSimilarity(method="patch-similarity", tokens=22, blocks=(4,), strategy="merge"),),
        1.0,
    ),
    "patches-early": Case(
        "patch-similarity merge, 37 to 24 tokens in block 3",  # the same MACs as the one before
        (PatchSimilarity(method="patch-similarity", tokens=24, blocks=(3,), strategy="merge"),),
        None,
    ),
}
FORMS = {
    "rows cut": SlimOptions("none"),
    "rows cut, means folded": SlimOptions("none", fold_means=True),
    "closed form": SlimOptions("closed-form"),
}


@dataclass(frozen=True)
class Bench:
    """What every row is measured with."""

    dense: SlimViT
    dense_logits: Logits
    images: Images
    labels: NDArray[np.int64]
    calibration: Images
    target: Target
    folder: Path


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--calibration", type=int, metavar="IMAGES", help="default: 1000, and 64 with --quick"
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    record.add_options(parser)
    return parser.parse_args()


def open_bench(target: Target, counts: tuple[int, int | None], folder: Path) -> Bench:
    """Load the model and the images (calibration, evaluation), and evaluate the dense artefact."""
    loaded = load_deit_tiny_cifar()
    calibration, images = (
        open_set(name, loaded.preprocess, count)
        for name, count in zip(("cifar10_train", "cifar10_val"), counts, strict=True)
    )
    decode_now(calibration)
    TOLD.say("dense model")
    logits = artefact_logits(loaded.model, target, images, folder / "dense")
    return Bench(loaded.model, logits, images, labels_of(images), calibration, target, folder)


def measure(bench: Bench, case: Case, form: str) -> dict[str, Figure | str]:
    """Decide, slim, build and evaluate one row's model."""
    begin = time.perf_counter()
    slim = make_slim(bench, case, form)
    seconds = Figure(time.perf_counter() - begin, ".1f")
    bound = Bound(high=case.wanted) if form == "closed form" and case.wanted is not None else None
    return judge(bench, slim, bound) | {"deciding and slimming, s": seconds}


def make_slim(bench: Bench, case: Case, form: str) -> SlimViT:
    """Decide what remains, and slim."""
    plan = keep_all(read_anatomy(bench.dense.arch))
    plan = run_methods(bench.dense, plan, case.methods, bench.calibration, TOLD)
    return slim_model(bench.dense, plan, FORMS[form], bench.calibration, TOLD)


def judge(bench: Bench, slim: SlimViT, bound: Bound | None) -> dict[str, Figure | str]:
    """Build and evaluate a slim model; `bound` is that of the drop."""
    logits = artefact_logits(slim, bench.target, bench.images, bench.folder / "slim")
    right = correct(bench.dense_logits, bench.labels), correct(logits, bench.labels)
    interval = paired_bootstrap(*right, seed=0)
    drop = 100 * float(right[0].mean() - right[1].mean())
    macs = [model_cost(model.arch).total.macs for model in (bench.dense, slim)]
    return {
        "MACs cut, %": Figure(100 * (1 - macs[1] / macs[0]), ".1f"),
        "top-1 %": Figure(100 * top1(logits, bench.labels), ".2f"),
        "drop, points": Figure(drop, ".2f", (interval.low, interval.high), bound),
        "agreement": Figure(agreement(bench.dense_logits, logits), ".3f"),
        "KL": Figure(mean_kl(bench.dense_logits, logits), ".4f"),
    }


def main() -> None:
    """Measure every case that was asked for."""
    arguments = parse_arguments()
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    calibration = arguments.calibration or (64 if arguments.quick else 1000)
    with tempfile.TemporaryDirectory() as folder:
        target = cpu_target("openvino", arguments.threads)
        bench = open_bench(target, (calibration, 64 if arguments.quick else None), Path(folder))
        dense = Figure(100 * top1(bench.dense_logits, bench.labels), ".2f")
        notebook.write("methods", [Row("dense", {"top-1 %": dense})])
        for case in map(CASES.__getitem__, arguments.cases):
            for form in arguments.forms:
                title = f"{case.name}: {form}, {calibration} images"
                TOLD.say(title)
                notebook.write("methods", [Row(title, measure(bench, case, form))])


if __name__ == "__main__":
    main()
