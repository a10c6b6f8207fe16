"""Distil a slimmed DeiT-Tiny from the dense one, on unlabelled images, and compare the artefacts.

    python tools/bench/distil.py

The model is slimmed in closed form, then trained as a recipe's [tune] does it. Every model is exported, built
as OpenVINO IR in fp32 and run on imagenet_val650; the numbers are the artefact's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import record
from closed_form import Bench, judge, open_bench
from record import Bound, Figure, Notebook, Row
from subjects import CUTS, TOLD, cpu_target, cut_model, decode_now, load_deit_tiny, open_set, use_threads

from edgevit.models.layers import SlimViT
from edgevit.recipe import TuneSection
from edgevit.slim import SlimOptions
from edgevit.training import Training
from edgevit.tune.distil import Distil, distil
from edgevit.tune.precision import resolve_precision

SECTION = "distil"
CASE = "qk32-vo48-hidden512"
CALIBRATION = 750
WANTED_AGREEMENT = Bound(low=0.86)
WANTED_MINUTES = Bound(high=6.0)


def parse_arguments() -> argparse.Namespace:
    """Read the command line; what is not given is a recipe's default."""
    own = TuneSection()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, nargs="+", default=[own.epochs])
    parser.add_argument("--lr", type=float, default=own.lr)
    parser.add_argument("--temperature", type=float, default=own.temperature)
    parser.add_argument("--hidden-states", type=float, default=own.hidden_states)
    parser.add_argument("--least-area", type=float, default=own.least_area)
    parser.add_argument("--images", type=int, default=1000, help="training images of imagenet_train1000")
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default=own.precision)
    record.add_options(parser)
    return parser.parse_args()


def options_of(arguments: argparse.Namespace, epochs: int) -> Distil:
    """Return the options of one training."""
    training = Training(epochs=epochs, lr=arguments.lr, precision=resolve_precision(arguments.precision))
    return Distil(
        training,
        temperature=arguments.temperature,
        hidden_states=arguments.hidden_states,
        least_area=arguments.least_area,
    )


def name_of(options: Distil, images: int) -> str:
    """Name a training by what differs from a recipe's defaults."""
    own, training = TuneSection(), options.training
    given: dict[str, float | None] = {
        "lr": training.lr,
        "temperature": options.temperature,
        "hidden_states": options.hidden_states,
        "least_area": options.least_area,
    }
    other = [
        f", {key} {value:g}"
        for key, value in given.items()
        if value is not None and value != getattr(own, key)
    ]
    return f"distilled, {training.epochs} epochs on {images} images, {training.precision}{''.join(other)}"


def measure(
    bench: Bench, slim: SlimViT, options: Distil, images: int, *, judged: bool
) -> dict[str, Figure | str]:
    """Train, build and evaluate one row's model."""
    pictures = open_set("imagenet_train1000", load_deit_tiny().preprocess, images)
    decode_now(pictures)
    begin = time.perf_counter()
    model, trained = distil(bench.dense, slim, pictures, options, progress=TOLD)
    minutes = (time.perf_counter() - begin) / 60
    cells = judge(bench, model, None)
    agreement = cells["agreement"]
    assert isinstance(agreement, Figure)
    return cells | {
        "agreement": replace(agreement, bound=WANTED_AGREEMENT if judged else None),
        "training, minutes": Figure(minutes, ".2f", None, WANTED_MINUTES if judged else None),
        "loss, first and last epoch": f"{trained.epoch_losses[0]:.3f}, {trained.epoch_losses[-1]:.3f}",
    }


def main() -> None:
    """Slim once, then train with every number of epochs that was asked for."""
    arguments = parse_arguments()
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    count = 32 if arguments.quick else None
    with tempfile.TemporaryDirectory() as folder:
        bench = open_bench(cpu_target("openvino", arguments.threads), count, Path(folder))
        calibration = open_set(
            "imagenet_train1000", load_deit_tiny().preprocess, 64 if arguments.quick else CALIBRATION
        )
        slim = cut_model(bench.dense, CUTS[CASE], SlimOptions("closed-form"), calibration)
        start = judge(bench, slim, None)
        notebook.write(SECTION, [Row(f"closed form, {len(calibration)} images", start)])
        images = 50 if arguments.quick else arguments.images
        for epochs in [1] if arguments.quick else arguments.epochs:
            options = options_of(arguments, epochs)
            name = name_of(options, images)
            TOLD.say(name)
            judged = epochs == TuneSection().epochs and images == 1000
            notebook.write(SECTION, [Row(name, measure(bench, slim, options, images, judged=judged))])


if __name__ == "__main__":
    main()
