"""A toy recipe that builds in seconds: its weights, images, image sets and a target with short timing."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import numpy as np
from PIL import Image

from edgevit.errors import MeasurementError
from edgevit.pipeline import BuildOptions, build
from edgevit.recipe import load_recipe
from edgevit.report.model import Report

OPTIONS = "{ img_size = 32, patch_size = 8, embed_dim = 48, depth = 2, num_heads = 3, num_classes = 10 }"
PLAN = "[plan]\nqk_dim = 12\nhidden = 96\n"

# An interval of 100 % is trusted: these tests are about the line, and the machine may be busy.
TIMING = (
    "[timing]\nwarmup_s = 0.0\nseconds = 0.1\nmin_samples = 20\nmax_samples = 400\nmax_interval_ratio = 1.0\n"
)


@functools.cache
def toy_weights() -> bytes:
    """Return a safetensors file of the toy model with seeded random weights."""
    import timm
    import torch
    from safetensors.torch import save

    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_((0.0 if name == "head.bias" else 0.2) * torch.randn(parameter.shape))
    return save(model.state_dict())


def write_images(folder: Path, count: int, classes: int = 2, seed: int = 0) -> None:
    """Write seeded coarse patterns as PNG files into one sub-folder per class."""
    generator = np.random.default_rng(seed)
    for index in range(count):
        below = folder / str(index % classes)
        below.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(below / f"{index:03}.png")


def write_toy(folder: Path, *, plan: str = PLAN, more: str = "", runtime: str = "onnxruntime") -> Path:
    """Write the toy recipe and all that it names into `folder`; `more` goes to the recipe's end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.safetensors").write_bytes(toy_weights())
    for seed, (name, count) in enumerate((("calibration", 64), ("evaluation", 24))):
        if not (folder / name).is_dir():
            write_images(folder / name, count, seed=seed)
        (folder / f"{name}.toml").write_text(f'kind = "folder"\npath = "{name}"\n')
    (folder / "short.toml").write_text(f'runtime = "{runtime}"\nthreads = 1\n{TIMING}')
    recipe = folder / "toy.toml"
    recipe.write_text(
        f'[model]\nname = "vit_tiny_patch16_224"\nweights = "toy.safetensors"\noptions = {OPTIONS}\n'
        '[calibration]\nset = "calibration.toml"\nimages = 64\n'
        '[evaluation]\nset = "evaluation.toml"\n'
        f'{plan}[[target]]\nname = "short.toml"\n{more}'
    )
    return recipe


def build_patiently(recipe: Path, out: Path, options: BuildOptions | None = None) -> Report:
    """Build; a timing that a busy machine made untrusted is taken again, all else is there already."""
    for _ in range(9):
        with contextlib.suppress(MeasurementError):
            return build(load_recipe(str(recipe)), out, options or BuildOptions())
    return build(load_recipe(str(recipe)), out, options or BuildOptions())


def made(report: Report) -> list[str]:
    """Return the stages that a build had to run, by name."""
    return [stage.name for stage in report.stages if not stage.reused]
