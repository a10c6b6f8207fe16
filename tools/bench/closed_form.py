"""Slim DeiT-Tiny by selection and in closed form, and compare the artefacts with the dense one's.

    python tools/bench/closed_form.py --calibration 256 750

Every model is exported, built as OpenVINO IR in fp32 and run on imagenet_val650; the numbers are the
artefact's. A row is recorded as soon as it is there, so a run that was stopped keeps what it had.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import record
from numpy.typing import NDArray
from record import Bound, Figure, Notebook, Row
from subjects import (
    CUTS,
    TOLD,
    Cut,
    artefact_logits,
    cpu_target,
    cut_model,
    decode_now,
    labels_of,
    load_deit_tiny,
    open_set,
    use_threads,
)

from edgevit.images import Images
from edgevit.measure.accuracy import Logits, agreement, correct, mean_kl, paired_bootstrap, top1
from edgevit.models.layers import SlimViT
from edgevit.slim import SlimOptions
from edgevit.slim.site import ClosedForm
from edgevit.target import Target

FORMS = {
    "bases alone": ClosedForm(greedy=False, weighted=False, aim=None),
    "closed form": ClosedForm(),
}


@dataclass(frozen=True)
class Wanted:
    """The figures to reach for one cut."""

    drop: float
    agreement: float


WANTED = {  # by cut and calibration images
    ("qk48-vo48", 256): Wanted(1.0, 0.92),
    ("qk48-vo48", 750): Wanted(0.5, 0.93),
    ("qk32-vo48-hidden512", 256): Wanted(7.5, 0.80),
    ("qk32-vo48-hidden512", 750): Wanted(6.0, 0.82),
    ("merge80", 256): Wanted(1.0, 0.94),
    ("merge80", 750): Wanted(1.0, 0.94),
}


@dataclass(frozen=True)
class Bench:
    """What every row is measured with."""

    dense: SlimViT
    dense_logits: Logits
    images: Images
    labels: NDArray[np.int64]
    target: Target
    folder: Path


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calibration", type=int, nargs="+", default=[256, 750], metavar="IMAGES")
    parser.add_argument("--cases", nargs="+", choices=list(CUTS), default=list(CUTS))
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--images", type=int, help="evaluation images; default: all, and 32 with --quick")
    parser.add_argument(
        "--dead-tokens", action="store_true", help="also leave out dead tokens, as a recipe does by default"
    )
    record.add_options(parser)
    return parser.parse_args()


def open_bench(target: Target, count: int | None, folder: Path) -> Bench:
    """Load the model and the images, and evaluate the dense artefact."""
    loaded = load_deit_tiny()
    images = open_set("imagenet_val650", loaded.preprocess, count)
    TOLD.say("dense model")
    logits = artefact_logits(loaded.model, target, images, folder / "dense")
    return Bench(loaded.model, logits, images, labels_of(images), target, folder)


def judge(bench: Bench, slim: SlimViT, wanted: Wanted | None) -> dict[str, Figure | str]:
    """Return what the artefact of a slim model is worth."""
    logits = artefact_logits(slim, bench.target, bench.images, bench.folder / "slim")
    right = correct(bench.dense_logits, bench.labels), correct(logits, bench.labels)
    interval = paired_bootstrap(*right, seed=0)
    drop = 100 * float(right[0].mean() - right[1].mean())
    same = agreement(bench.dense_logits, logits)
    return {
        "top-1 %": Figure(100 * top1(logits, bench.labels), ".2f"),
        "drop, points": Figure(
            drop, ".2f", (interval.low, interval.high), Bound(high=wanted.drop) if wanted else None
        ),
        "agreement": Figure(same, ".3f", None, Bound(low=wanted.agreement) if wanted else None),
        "KL": Figure(mean_kl(bench.dense_logits, logits), ".4f"),
    }


def measure(
    bench: Bench, cut: Cut, options: SlimOptions, calibration: Images | None, wanted: Wanted | None
) -> dict[str, Figure | str]:
    """Slim, build and evaluate one row's model; tool_cost.py says what slimming takes."""
    return judge(bench, cut_model(bench.dense, cut, options, calibration), wanted)


def main() -> None:
    """Measure every case that was asked for."""
    arguments = parse_arguments()
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    count = arguments.images or (32 if arguments.quick else None)
    suffix = f", {count} evaluation images" if count else ""
    with tempfile.TemporaryDirectory() as folder:
        bench = open_bench(cpu_target("openvino", arguments.threads), count, Path(folder))
        dense_top1 = Figure(100 * top1(bench.dense_logits, bench.labels), ".2f")
        notebook.write("closed-form", [Row(f"dense{suffix}", {"top-1 %": dense_top1})])
        for case in arguments.cases:
            cut = replace(CUTS[case], dead_tokens=arguments.dead_tokens)
            name = cut.name + (", dead tokens left out" if cut.dead_tokens else "")
            TOLD.say(f"{name}: plain selection")
            found = measure(bench, cut, SlimOptions("none"), None, None)
            notebook.write("closed-form", [Row(f"{name}: plain selection{suffix}", found)])
            for images in arguments.calibration:
                for form in arguments.forms:
                    measure_closed_form(notebook, bench, (case, name, suffix), (cut, form), images)


def measure_closed_form(
    notebook: Notebook, bench: Bench, names: tuple[str, str, str], what: tuple[Cut, str], count: int
) -> None:
    """Measure one cut with one number of calibration images in one of `FORMS`."""
    (case, name, suffix), (cut, form) = names, what
    calibration = open_set("imagenet_train1000", load_deit_tiny().preprocess, count)
    decode_now(calibration)
    title = f"{name}: {form}, {count} images"
    TOLD.say(title)
    # The figures were set for all images, and for every token computed.
    judged = form == "closed form" and not suffix and not cut.dead_tokens
    wanted = WANTED.get((case, count)) if judged else None
    found = measure(bench, cut, SlimOptions("closed-form", FORMS[form]), calibration, wanted)
    notebook.write("closed-form", [Row(title + suffix, found)])


if __name__ == "__main__":
    main()
