"""Intra-head pruning of a DeiT-Tiny for CIFAR-10, from the search to the tuned artefact, and compare.

    python tools/bench/intra_head.py --work FOLDER

Searches rows on labelled images of cifar10_train, decides within the MAC budget, slims in closed form, and
distils from the dense model. Evaluated on cifar10_val; every model is exported, built as OpenVINO IR in fp32
and run. The trainings keep checkpoints in FOLDER and go on from there.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import record
from methods import Bench, open_bench
from record import Bound, Figure, Notebook, Row
from subjects import (
    TOLD,
    artefact_logits,
    cpu_target,
    decode_now,
    load_deit_tiny_cifar,
    open_set,
    use_threads,
)

from edgevit.cost import model_cost
from edgevit.images import Images
from edgevit.measure.accuracy import agreement, correct, mean_kl, paired_bootstrap, top1
from edgevit.methods import IntraHead, SearchSection
from edgevit.models.anatomy import read_anatomy
from edgevit.models.layers import SlimViT
from edgevit.plan import keep_all
from edgevit.prune import run_methods
from edgevit.slim import SlimOptions, slim_model
from edgevit.training import Training
from edgevit.tune.checkpoint import CheckpointFile
from edgevit.tune.distil import Distil, distil
from edgevit.tune.precision import resolve_precision
from edgevit.tune.search import run_search, search_of

SECTION = "intra-head"
WANTED_DROP = Bound(high=0.7)
WANTED_CUT = Bound(low=46.2)
EPOCH = 40_000
"""Images of cifar10_train: what an epoch of training means in the table."""


@dataclass(frozen=True)
class Trained:
    """A training and the share of all training images that it took, in epochs."""

    model: SlimViT
    epochs: float


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--macs", type=float, default=0.538, help="share of the dense model's MACs")
    parser.add_argument("--calibration", type=int, default=1000, help="images of the closed form")
    parser.add_argument("--search-images", type=int, default=8000)
    parser.add_argument("--weights", choices=["pretrained", "searched"], default="pretrained")
    parser.add_argument("--epochs", type=int, default=1, help="of distillation")
    parser.add_argument("--images", type=int, default=EPOCH, help="of distillation")
    parser.add_argument("--lr", type=float, default=2e-4, help="of distillation")
    parser.add_argument("--batch", type=int, default=64, help="of distillation")
    parser.add_argument("--labels", type=float, default=0.5, help="weight of labels in the distillation")
    parser.add_argument("--work", type=Path, help="keeps checkpoints; default: a folder that goes")
    record.add_options(parser)
    return parser.parse_args()


def checkpoint(arguments: argparse.Namespace, name: str, folder: Path) -> CheckpointFile:
    """Return where a training is kept."""
    options = {key: str(value) for key, value in vars(arguments).items() if key != "work"}
    return CheckpointFile((arguments.work or folder) / f"{name}.safetensors", repr(sorted(options.items())))


def decide(
    arguments: argparse.Namespace, bench: Bench, images: Images, folder: Path
) -> tuple[Trained, SlimViT]:
    """Search, decide and slim; return the model that slimming started from, and the slim one."""
    method = IntraHead(
        method="intra-head",
        macs=arguments.macs,
        weights=arguments.weights,
        search=SearchSection(images=len(images)),
    )
    found = run_search(bench.dense, images, search_of(method), checkpoint(arguments, "search", folder), TOLD)
    start = found.model if arguments.weights == "searched" else bench.dense
    plan = run_methods(start, keep_all(read_anatomy(start.arch)), (method,), None, TOLD, {0: found.scores})
    slim = slim_model(start, plan, SlimOptions("closed-form"), bench.calibration, TOLD)
    return Trained(start, len(images) / EPOCH), slim


def tune(arguments: argparse.Namespace, bench: Bench, slim: SlimViT, folder: Path) -> Trained:
    """Distil the slim model from the dense one, with labels."""
    images = open_set("cifar10_train", load_deit_tiny_cifar().preprocess, arguments.images)
    training = Training(
        epochs=arguments.epochs,
        lr=arguments.lr,
        batch=arguments.batch,
        precision=resolve_precision("auto"),
    )
    options = Distil(training, labels=arguments.labels)
    model, _ = distil(bench.dense, slim, images, options, checkpoint(arguments, "tune", folder), TOLD)
    return Trained(model, arguments.epochs * len(images) / EPOCH)


def judge(bench: Bench, slim: SlimViT, epochs: float, wanted: Bound | None) -> dict[str, Figure | str]:
    """Build and evaluate a model."""
    logits = artefact_logits(slim, bench.target, bench.images, bench.folder / "slim")
    right = correct(bench.dense_logits, bench.labels), correct(logits, bench.labels)
    interval = paired_bootstrap(*right, seed=0)
    drop = 100 * float(right[0].mean() - right[1].mean())
    macs = [model_cost(model.arch).total.macs for model in (bench.dense, slim)]
    cut = 100 * (1 - macs[1] / macs[0])
    return {
        "MACs cut, %": Figure(cut, ".2f", None, WANTED_CUT if wanted else None),
        "epochs of training": Figure(epochs, ".2f"),
        "top-1 %": Figure(100 * top1(logits, bench.labels), ".2f"),
        "drop, points": Figure(drop, ".2f", (interval.low, interval.high), wanted),
        "agreement": Figure(agreement(bench.dense_logits, logits), ".3f"),
        "KL": Figure(mean_kl(bench.dense_logits, logits), ".4f"),
    }


def main() -> None:
    """Measure each stage."""
    arguments = parse_arguments()
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    if arguments.quick:
        arguments.calibration, arguments.search_images, arguments.images = 64, 128, 128
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = cpu_target("openvino", arguments.threads)
        bench = open_bench(target, (arguments.calibration, 64 if arguments.quick else None), folder)
        dense = Figure(100 * top1(bench.dense_logits, bench.labels), ".2f")
        notebook.write(SECTION, [Row("dense", {"top-1 %": dense})])
        images = open_set("cifar10_train", load_deit_tiny_cifar().preprocess, arguments.search_images)
        decode_now(images)
        start, slim = decide(arguments, bench, images, folder)
        title = f"searched, {arguments.weights} weights in closed form with {len(bench.calibration)} images"
        notebook.write(SECTION, [Row(title, judge(bench, slim, start.epochs, None))])
        tuned = tune(arguments, bench, slim, folder)
        title += f", distilled with labels for {arguments.epochs} on {arguments.images} images"
        cells = judge(bench, tuned.model, start.epochs + tuned.epochs, WANTED_DROP)
        notebook.write(SECTION, [Row(title, cells)])


if __name__ == "__main__":
    main()
