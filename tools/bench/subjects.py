"""What the benchmarks share: the real model, its cuts, the images, and how a model becomes an artefact."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgevit.backends import get_backend
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.images import Images, load_image_set, open_images
from edgevit.measure.accuracy import Logits, predict
from edgevit.models.anatomy import read_anatomy
from edgevit.models.layers import SlimViT
from edgevit.models.load import LoadedModel, ModelSource, load_model
from edgevit.plan import Counts, plan_from_counts
from edgevit.preprocess import Preprocess
from edgevit.slim import SlimOptions, slim_model
from edgevit.target import Runtime, Target, load_target

BENCH = Path(__file__).resolve().parent
DATA = BENCH.parents[2] / "shared" / "data"
WEIGHTS = DATA / "deit_tiny_patch16_224_imagenet.safetensors"

_BATCH = 32
_BETWEEN_LINES_S = 5.0


@dataclass(frozen=True)
class Cut:
    """A plan by hand, and what the tables call it."""

    name: str
    counts: Counts
    dead_tokens: bool = False


CUTS = {
    "qk48-vo48": Cut("QK 48, VO 48", Counts(qk_dim=48, vo_dim=48)),
    "qk32-vo48-hidden512": Cut("QK 32, VO 48, hidden 512", Counts(qk_dim=32, vo_dim=48, hidden=512)),
    "merge80": Cut("80 tokens merged once, in block 4", Counts(tokens=[197] * 3 + [117] * 9)),
}


@dataclass(frozen=True)
class SmallModel:
    """A model small enough to be trained from scratch on two cores, for CIFAR-10 at its own 32x32."""

    key: str
    """What command lines and files call it."""
    title: str
    name: str
    """timm's name."""
    options: dict[str, object]
    lr: float
    """The highest learning rate of its training."""

    def weights(self, folder: Path) -> Path:
        """Return where train_small.py keeps its weights in a folder."""
        return folder / f"{self.key}.safetensors"


_SMALL_SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 48,
    "depths": (2, 2, 2),
    "num_heads": (3, 6, 12),
    "num_classes": 10,
    "drop_path_rate": 0.0,
}
SMALL = {
    "swin": SmallModel(
        "swin", "Swin, width 48, depths 2-2-2, windows of 4x4",
        "swin_tiny_patch4_window7_224", _SMALL_SWIN, 1.5e-3,
    ),
    "cct": SmallModel("cct", "CCT-4/3x2", "cct_4_3x2", {"drop_path_rate": 0.0}, 1.5e-3),
}  # fmt: skip


class Told:
    """A `Progress` that writes a line to stderr every few seconds, and one at the end of each task."""

    def __init__(self) -> None:
        self._begin = self._last = time.perf_counter()

    def __call__(self, task: str, done: int, total: int) -> None:
        """Tell how far a task is."""
        now = time.perf_counter()
        if done == total or now - self._last > _BETWEEN_LINES_S:
            self._last = now
            self.say(f"  {task} {done}/{total}")

    def say(self, text: str) -> None:
        """Write one line with the seconds since the start."""
        print(f"{time.perf_counter() - self._begin:7.1f} s  {text}", file=sys.stderr, flush=True)


TOLD = Told()


def load_deit_tiny() -> LoadedModel:
    """Load DeiT-Tiny with its ImageNet weights."""
    return load_model(ModelSource("deit_tiny_patch16_224", weights=WEIGHTS))


def load_deit_tiny_cifar() -> LoadedModel:
    """Load the DeiT-Tiny that was transferred to CIFAR-10 at 96x96."""
    weights = DATA / "deit_tiny_cifar10_96.safetensors"
    return load_model(
        ModelSource("deit_tiny_patch16_224", weights=weights, options={"img_size": 96, "num_classes": 10})
    )


def open_set(name: str, preprocess: Preprocess, count: int | None) -> Images:
    """Draw `count` images (all when None) of a set in `sets/`, with seed 0."""
    source = load_image_set(f"sets/{name}.toml", BENCH)
    return open_images(source, preprocess, count, 0)


def decode_now(images: Images) -> None:
    """Decode all images, so that what follows is timed without it."""
    for _ in images.batches(_BATCH):
        pass


def cut_model(dense: SlimViT, cut: Cut, options: SlimOptions, images: Images | None) -> SlimViT:
    """Return the slim model of a cut."""
    plan = plan_from_counts(read_anatomy(dense.arch), cut.counts, dead_tokens=cut.dead_tokens)
    return slim_model(dense, plan, options, images, TOLD)


def cpu_target(runtime: Runtime, threads: int) -> Target:
    """Return the shipped CPU target of a runtime with this many threads."""
    return load_target(f"{runtime}-cpu", BENCH).model_copy(update={"threads": threads})


def build_artefact(model: SlimViT, target: Target, folder: Path) -> Path:
    """Write `model.onnx` and the artefact made of it below `folder`; return the file that `load` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(model, folder / "model.onnx", ExportOptions(opset=target.opset, batch=target.batch))
    return get_backend(target.runtime).build(
        folder / "model.onnx", target, "fp32", folder / target.name / "fp32"
    )


def artefact_logits(model: SlimViT, target: Target, images: Images, folder: Path) -> Logits:
    """Build the fp32 artefact of a model and return its logits for all images, [n, classes]."""
    artefact = build_artefact(model, target, folder)
    with get_backend(target.runtime).load(artefact, target, "fp32") as session:
        return predict(
            session, images.batches(_BATCH), progress=lambda done: TOLD("evaluating", done, len(images))
        )


def labels_of(images: Images) -> NDArray[np.int64]:
    """Return the labels of a set that has them, int64 [n]."""
    if images.labels is None:
        raise SystemExit("this benchmark needs a set with labels")
    return images.labels


def use_threads(count: int) -> None:
    """Let torch compute with this many threads."""
    torch.set_num_threads(count)
