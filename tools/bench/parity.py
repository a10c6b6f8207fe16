"""Compare torch, ONNX and OpenVINO IR on the real model, dense and slim.

    python tools/bench/parity.py

Slim models come from the closed form with 256 calibration images. Differences are of logits, batch 1.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import record
from record import Bound, Figure, Notebook, Row
from subjects import (
    CUTS,
    TOLD,
    Cut,
    build_artefact,
    cpu_target,
    cut_model,
    load_deit_tiny,
    open_set,
    use_threads,
)

from edgevit.backends import get_backend
from edgevit.export.links import onnx_link, torch_link
from edgevit.export.parity import (
    CHOSEN_OUTLIERS,
    ONNX_TO_ARTEFACT,
    TORCH_TO_ONNX,
    Parity,
    Runner,
    choosing_blocks,
    parity,
)
from edgevit.images import Images
from edgevit.models.layers import SlimViT
from edgevit.models.load import LoadedModel
from edgevit.plan import Counts
from edgevit.slim import SlimOptions
from edgevit.target import Target

DEAD_TOKENS = 1e-5


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calibration", type=int, default=256, metavar="IMAGES")
    parser.add_argument("--cases", nargs="*", choices=list(CUTS), default=list(CUTS))
    parser.add_argument("--images", type=int, help="evaluation images; default: all, and 32 with --quick")
    record.add_options(parser)
    return parser.parse_args()


def compare(name: str, links: tuple[Runner, Runner], images: Images, tolerance: float) -> Parity:
    """Compare two links on all images, one by one."""

    def told() -> Iterator[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        for done, batch in enumerate(images.batches(1), start=1):
            yield batch
            TOLD(name, done, len(images))

    return parity(*links, told(), tolerance)


def row_of(name: str, found: Parity, tolerance: float, *, merges: bool) -> Row:
    """Return the row of one comparison; a model that merges tokens may have images beyond the tolerance."""
    differs = found.images - round(found.top1_agreement * found.images)
    allowed = int(CHOSEN_OUTLIERS * found.images)
    return Row(
        name,
        {
            "images": str(found.images),
            "tolerance": f"{tolerance:g}",
            "largest difference": Figure(
                found.max_abs, ".1e", None, None if merges else Bound(high=tolerance)
            ),
            "mean difference": Figure(found.mean_abs, ".1e"),
            "images beyond the tolerance": Figure(
                found.outliers, "d", None, Bound(high=allowed) if merges else None
            ),
            "other top-1": Figure(differs, "d", None, Bound(high=0)),
        },
    )


def measure(name: str, model: SlimViT, target: Target, images: Images, folder: Path) -> list[Row]:
    """Compare both neighbours of the chain for one model."""
    merges = bool(choosing_blocks(model.arch))
    artefact = build_artefact(model, target, folder)
    onnx = onnx_link(folder / "model.onnx", target.threads).run
    first = compare(f"{name}: torch, ONNX", (torch_link(model).run, onnx), images, TORCH_TO_ONNX)
    with get_backend(target.runtime).load(artefact, target, "fp32") as session:
        second = compare(f"{name}: ONNX, IR", (onnx, session.run), images, ONNX_TO_ARTEFACT)
    return [
        row_of(f"{name}: torch against ONNX", first, TORCH_TO_ONNX, merges=merges),
        row_of(f"{name}: ONNX against IR", second, ONNX_TO_ARTEFACT, merges=merges),
    ]


def measure_dead_tokens(loaded: LoadedModel, target: Target, images: Images, folder: Path) -> list[Row]:
    """Compare the dense model with the one that leaves dead tokens out, in torch and as artefacts."""
    short = cut_model(loaded.model, Cut("", Counts(), dead_tokens=True), SlimOptions("none"), None)
    found = compare(
        "dead tokens: torch", (torch_link(loaded.model).run, torch_link(short).run), images, DEAD_TOKENS
    )
    rows = [row_of("torch", found, DEAD_TOKENS, merges=False)]
    backend = get_backend(target.runtime)
    built = [
        build_artefact(model, target, folder / label) for model, label in ((loaded.model, "a"), (short, "b"))
    ]
    with backend.load(built[0], target, "fp32") as dense, backend.load(built[1], target, "fp32") as slim:
        found = compare("dead tokens: IR", (dense.run, slim.run), images, DEAD_TOKENS)
    return [*rows, row_of("OpenVINO IR", found, DEAD_TOKENS, merges=False)]


def main() -> None:
    """Compare the dense model and every slim one."""
    arguments = parse_arguments()
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    target = cpu_target("openvino", arguments.threads)
    loaded = load_deit_tiny()
    images = open_set(
        "imagenet_val650", loaded.preprocess, arguments.images or (32 if arguments.quick else None)
    )
    calibration = open_set(
        "imagenet_train1000", loaded.preprocess, 32 if arguments.quick else arguments.calibration
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_dead_tokens(loaded, target, images, Path(folder))
        notebook.write("dead-tokens-real", rows)
        notebook.write("parity", measure("dense", loaded.model, target, images, Path(folder) / "dense"))
        for cut in map(CUTS.__getitem__, arguments.cases):
            TOLD.say(cut.name)
            slim = cut_model(loaded.model, cut, SlimOptions("closed-form"), calibration)
            notebook.write("parity", measure(cut.name, slim, target, images, Path(folder) / "slim"))


if __name__ == "__main__":
    main()
