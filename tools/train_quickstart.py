"""Make the quickstart's real input: two image sets and the weights of a small ViT trained on one of them.

Run from a checkout with `pip install '.[quickstart-training]'`:

    python tools/train_quickstart.py

It writes calibration/digits-{train,test}.parquet and edgevit/recipes/quickstart.safetensors, and prints the
accuracy on the test digits. The images and their split are reproduced exactly. Training is seeded, but
floating-point sums depend on the processor and the number of threads, so the weights of another machine
differ a little.
"""

from __future__ import annotations

import argparse
import io
import math
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from datasets import ClassLabel, Dataset, Features, Image, disable_progress_bars, load_dataset
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

CHECKOUT = Path(__file__).resolve().parents[1]
SETS = CHECKOUT / "calibration"
RECIPES = CHECKOUT / "edgevit" / "recipes"
TEST_IMAGES = 597
SEED = 0


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    epochs: int
    batch: int = 64
    peak_lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup_epochs: int = 5

    def lr_at(self, epoch: float) -> float:
        """Return the learning rate: linear warm-up, then half a cosine down to zero."""
        if epoch < self.warmup_epochs:
            return self.peak_lr * epoch / self.warmup_epochs
        done = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return self.peak_lr * 0.5 * (1 + math.cos(math.pi * done))


def png_bytes(digit: np.ndarray) -> bytes:
    """Encode one digit, [8, 8] with values 0..16, as a grey PNG with values 0..255."""
    buffer = io.BytesIO()
    PILImage.fromarray(np.rint(digit * (255 / 16)).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_sets() -> None:
    """Write the stratified split of scikit-learn's digits as Parquet files in the Hugging Face layout."""
    digits = load_digits()
    features = Features({"image": Image(), "label": ClassLabel(names=[str(name) for name in range(10)])})
    rows = np.arange(len(digits.target))
    train, test = train_test_split(rows, test_size=TEST_IMAGES, stratify=digits.target, random_state=SEED)
    for name, chosen in {"train": train, "test": test}.items():
        # The path keeps the digit's place in load_digits(), so that anyone can trace an image.
        images = [{"bytes": png_bytes(digits.images[row]), "path": f"digit-{row:04d}.png"} for row in chosen]
        table = {"image": images, "label": digits.target[chosen].tolist()}
        Dataset.from_dict(table, features=features).to_parquet(str(SETS / f"digits-{name}.parquet"))


def read_set(name: str) -> tuple[Tensor, Tensor]:
    """Read a written set as the build does: resized images in 0..1, [B, 1, 32, 32], and labels, [B]."""
    rows = load_dataset("parquet", data_files=str(SETS / f"{name}.parquet"), split="train")
    bicubic = PILImage.Resampling.BICUBIC
    images = np.stack([np.asarray(row["image"].resize((32, 32), bicubic)) for row in rows])
    return torch.from_numpy(images).unsqueeze(1).float() / 255, torch.tensor(rows["label"])


def read_normalisation(images: Tensor) -> tuple[float, float]:
    """Read mean and std from digits-train.toml, and check them against the images.

    Raises:
        SystemExit: the file states other values than the images have.
    """
    preprocess = tomllib.loads((SETS / "digits-train.toml").read_text())["preprocess"]
    stated = (preprocess["mean"][0], preprocess["std"][0])
    found = (images.mean().item(), images.std().item())
    if max(abs(a - b) for a, b in zip(stated, found, strict=True)) > 1e-4:
        raise SystemExit(
            f"calibration/digits-train.toml states mean, std = {stated}, but the images have {found}. "
            f"Write mean = [{found[0]:.4f}] and std = [{found[1]:.4f}] in both digits-*.toml and run again."
        )
    return stated


def build_model() -> nn.Module:
    """Build the quickstart's model from the `[model]` table of its recipe, with random weights."""
    model = tomllib.loads((RECIPES / "quickstart.toml").read_text())["model"]
    built: nn.Module = timm.create_model(model["name"], **model["options"])
    return built


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn each image by up to 10 degrees, scale it by up to 10 % and shift it by up to 2 pixels."""
    turn, scale, dx, dy = (torch.rand(4, len(images), generator=generator) * 2 - 1).unbind()
    angle = turn * math.radians(10)
    zoom = 1 + 0.1 * scale
    reach = 2 / 16  # affine_grid measures from the centre: 16 pixels are 1
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    first = torch.stack([cos, -sin, dx * reach], dim=1)
    second = torch.stack([sin, cos, dy * reach], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train(model: nn.Module, images: Tensor, labels: Tensor, schedule: Schedule, normalise: nn.Module) -> None:
    """Train the model in place with AdamW, and print one line every tenth epoch."""
    generator = torch.Generator().manual_seed(SEED)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=schedule.peak_lr, weight_decay=schedule.weight_decay)
    model.train()
    start = time.perf_counter()
    for epoch in range(schedule.epochs):
        batches = torch.randperm(len(images), generator=generator).split(schedule.batch)
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr_at(epoch + (step + 1) / len(batches))
            logits = model(normalise(jitter(images[batch], generator)))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if (epoch + 1) % 10 == 0:
            seconds = time.perf_counter() - start
            print(f"epoch {epoch + 1:3d}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose largest logit is the label's."""
    model.eval()
    return (model(images).argmax(dim=1) == labels).float().mean().item()


class Normalise(nn.Module):
    """Subtract the mean and divide by the standard deviation of the training images."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean = mean
        self.std = std

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images in 0..1, any shape."""
        return (images - self.mean) / self.std


def main() -> None:
    """Write the sets, train, save the weights, and say how good they are as saved."""
    parser = argparse.ArgumentParser(description="Write the quickstart's image sets and weights.")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RECIPES / "quickstart.safetensors")
    options = parser.parse_args()
    disable_progress_bars()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)

    write_sets()
    images, labels = read_set("digits-train")
    normalise = Normalise(*read_normalisation(images))
    model = build_model()
    train(model, images, labels, Schedule(epochs=options.epochs), normalise)

    save_file({name: tensor.half() for name, tensor in model.state_dict().items()}, options.out)
    options.out.chmod(0o644)  # safetensors writes files that only their owner may read
    saved = build_model()
    saved.load_state_dict({name: tensor.float() for name, tensor in load_file(options.out).items()})
    test_images, test_labels = read_set("digits-test")
    correct = accuracy(saved, normalise(test_images), test_labels)
    size_mb = options.out.stat().st_size / 1e6
    print(f"{options.out}: {size_mb:.2f} MB, top-1 {correct:.4f} on {TEST_IMAGES} test digits")


if __name__ == "__main__":
    main()
