"""Train a small Swin and a small CCT from scratch on CIFAR-10, to measure what pruning costs them.

    python tools/bench/train_small.py swin --out FOLDER
    python tools/bench/train_small.py cct --out FOLDER

It learns from cifar10_train alone and writes FOLDER/NAME.safetensors, in timm's layout. A training that was
stopped, also by --minutes, goes on where it stopped when the same command runs again. Weights and images stay
outside the repository.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from subjects import SMALL, SmallModel, labels_of, open_set, use_threads
from torch import Tensor, nn

from edgevit.images import Images
from edgevit.models import cct
from edgevit.models.load import ModelSource, load_model
from edgevit.training import Training
from edgevit.tune.checkpoint import CheckpointFile
from edgevit.tune.loop import train_
from edgevit.tune.objective import Objective
from edgevit.tune.soft_labels import SoftLabels
from edgevit.tune.supervised import cross_entropy
from edgevit.tune.views import Views

assert cct.default_cfgs  # importing it registers CCT with timm
SEED = 0
SMOOTHING = 0.1
LEAST_AREA = 0.5
CLASSES = 10


class Classification(Objective):
    """Cross-entropy of a timm model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of images, [B, C, H, W], with wanted probabilities, [B, K] -> []."""
        return cross_entropy(self.model(images), targets).mean()


class Clock:
    """A `Progress` that prints a line every 20 s, and stops the training at a checkpoint when time is up."""

    def __init__(self, minutes: float | None, checkpoint_steps: int) -> None:
        self._begin = self._last = time.monotonic()
        self._end = self._begin + 60 * minutes if minutes is not None else None
        self._checkpoint_steps = checkpoint_steps

    def __call__(self, task: str, done: int, total: int) -> None:
        """Tell how far the training is.

        Raises:
            SystemExit: time is up, and what was learnt is kept.
        """
        now = time.monotonic()
        if now - self._last > 20 or done == total:
            self._last = now
            print(f"{now - self._begin:6.0f} s  step {done} of {total}", flush=True)
        if self._end is not None and now > self._end and done < total and done % self._checkpoint_steps == 0:
            raise SystemExit("Time is up. The same command goes on from here.")


def train(small: SmallModel, epochs: int, folder: Path, clock: Clock, checkpoint_steps: int) -> nn.Module:
    """Train a new model on cifar10_train, or go on with one, and return it."""
    torch.manual_seed(SEED)
    model = timm.create_model(small.name, **small.options)
    preprocess = load_model(ModelSource(small.name, options=small.options)).preprocess
    images = open_set("cifar10_train_32", preprocess, None)
    target = SoftLabels(labels_of(images), CLASSES, SMOOTHING)
    data = Views(images.pixels(), images.preprocess, SEED, LEAST_AREA, target)
    training = Training(
        epochs=epochs,
        lr=small.lr,
        batch=128,
        seed=SEED,
        weight_decay=0.05,
        warmup=0.2,
        checkpoint_steps=checkpoint_steps,
    )
    checkpoint = CheckpointFile(folder / f"{small.key}.training.safetensors", f"{small.name} {small.options}")
    found = train_(Classification(model), data, training, checkpoint, clock)
    print(f"{found.seconds / 60:.1f} minutes of training, losses {found.epoch_losses}")
    return model


def score(small: SmallModel, weights: Path) -> float:
    """Return the top-1 on cifar10_val of what was saved, as edgevit loads it."""
    loaded = load_model(ModelSource(small.name, weights, options=small.options))
    images = open_set("cifar10_val_32", loaded.preprocess, None)
    return _top1(loaded.model, images)


@torch.inference_mode()
def _top1(model: nn.Module, images: Images) -> float:
    answers = [model(torch.from_numpy(batch)).argmax(dim=1) for batch in images.batches(256)]
    return float((torch.cat(answers).numpy() == labels_of(images)).mean())


def main() -> None:
    """Train one model, save its weights, and say how good they are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=list(SMALL))
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="for weights and checkpoint"
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    small = SMALL[arguments.model]
    weights = small.weights(arguments.out)
    arguments.out.mkdir(parents=True, exist_ok=True)
    steps = 100
    model = train(small, arguments.epochs, arguments.out, Clock(arguments.minutes, steps), steps)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    print(f"{weights}: top-1 {100 * score(small, weights):.2f} % on cifar10_val")


if __name__ == "__main__":
    main()
