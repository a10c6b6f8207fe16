"""Time the tool itself and take its peak memory, each part in a process of its own, on two cores.

    python tools/bench/tool_cost.py [--parts quickstart build closed-form deit-base vit-h mae-h]

quickstart: `edgevit build quickstart`. build: `edgevit build` of recipes/deit_tiny.toml into a fresh folder.
closed-form: the same cut with 750 images. deit-base: closed form with 256 images, export and IR of DeiT-B
with random weights. vit-h: export_vit_h.py. mae-h: the recipe toast-mae-huge-101.4 with random weights is
planned, slimmed (means folded) and exported, its dims and MACs checked.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import record
from record import Bound, Figure, Notebook, Row
from subjects import (
    BENCH,
    TOLD,
    Cut,
    build_artefact,
    cpu_target,
    cut_model,
    load_deit_tiny,
    open_set,
    use_threads,
)

from edgevit.cost import model_cost
from edgevit.export.graph_cost import check_macs
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.verify import check_dims
from edgevit.models.anatomy import read_anatomy
from edgevit.models.load import LoadedModel, ModelSource, load_model
from edgevit.plan import Counts, keep_all
from edgevit.prune import run_methods
from edgevit.recipe import load_recipe
from edgevit.slim import SlimOptions, slim_model

CORES = 2
TINY_CUT = Cut("as in recipes/deit_tiny.toml", Counts(qk_dim=48, vo_dim=48, hidden=512))
BASE_CUT = Cut("the same shares of DeiT-B", Counts(qk_dim=48, vo_dim=48, hidden=2048))
_UNTRUSTED = 7  # edgevit's exit code for a noisy machine: everything was built all the same


@dataclass(frozen=True)
class Part:
    """What is run, and the figures wanted of it."""

    name: str
    command: Callable[[Options], Sequence[str]]
    minutes: float | None
    gigabytes: float | None


@dataclass(frozen=True)
class Options:
    """How a part is run."""

    folder: Path
    quick: bool
    threads: int


EDGEVIT = [sys.executable, "-c", "from edgevit.cli import main; main()"]  # installed or not


def quickstart_command(options: Options) -> list[str]:
    """Return the command that the README begins with."""
    more = ["--target", str(_quick_target(options.folder))] if options.quick else []
    return [*EDGEVIT, "build", "quickstart", "--out", str(options.folder / "build"), *more]


def build_command(options: Options) -> list[str]:
    """Return the command of a whole build."""
    recipe = BENCH / "recipes" / "deit_tiny.toml"
    more: list[str] = []
    if options.quick:
        recipe, more = _quick_recipe(recipe, options.folder), ["--target", str(_quick_target(options.folder))]
    out = options.folder / "build"
    return [*EDGEVIT, "build", str(recipe), "--out", str(out), "--jobs", str(options.threads), *more]


def _quick_recipe(recipe: Path, folder: Path) -> Path:
    """Write the recipe with few images and paths that hold in another folder."""
    text = recipe.read_text().replace('"../', f'"{recipe.parent}/../')
    text = re.sub(r"images = \d+", "images = 16", text)
    text = text.replace('imagenet_val650.toml"', 'imagenet_val650.toml"\nimages = 16')
    (folder / recipe.name).write_text(text)
    return folder / recipe.name


def _quick_target(folder: Path) -> Path:
    path = folder / "quick.toml"
    path.write_text('runtime = "openvino"\nthreads = 1\n[timing]\nseconds = 0.5\nmin_samples = 10\n')
    return path


def own_command(inside: str) -> Callable[[Options], list[str]]:
    """Return what makes the command of a part that this file runs itself."""

    def command(options: Options) -> list[str]:
        given = ["--inside", inside, "--threads", str(options.threads)]
        return [
            sys.executable,
            str(Path(__file__).resolve()),
            *given,
            *(["--quick"] if options.quick else []),
        ]

    return command


def vit_h_command(options: Options) -> list[str]:
    """Return the command of the export of ViT-H/14."""
    script = str(BENCH / "export_vit_h.py")
    model = "deit-tiny" if options.quick else "vit-h"
    return [sys.executable, script, "--model", model, "--out", str(options.folder)]


PARTS = {
    "quickstart": Part(
        "`edgevit build quickstart`: the main job on scanned digits", quickstart_command, 3.0, None
    ),
    "build": Part(
        "`edgevit build` of DeiT-T: 256 calibration, 650 evaluation images, timing included",
        build_command,
        3.0,
        2.5,
    ),
    "closed-form": Part("DeiT-T: closed form with 750 images", own_command("closed-form"), 3.0, None),
    "deit-base": Part("DeiT-B: closed form with 256 images, export, IR", own_command("deit-base"), 8.0, 8.0),
    "vit-h": Part("ViT-H/14 (632 M params): export, checks", vit_h_command, None, 20.0),
    "mae-h": Part(
        "ViT-MAE-H: coupled-dims 90 %, static token-channels on 8 images, slimming, export, checks",
        own_command("mae-h"),
        None,
        20.0,
    ),
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--inside", choices=list(INSIDE), help=argparse.SUPPRESS)
    record.add_options(parser)
    return parser.parse_args()


def run_tiny(options: Options) -> None:
    """Slim DeiT-T with 750 images, images decoded here."""
    loaded = load_deit_tiny()
    _slim(loaded, TINY_CUT, 16 if options.quick else 750)


def run_base(options: Options) -> None:
    """Slim DeiT-B, export it and build the IR."""
    name = "deit_small_patch16_224" if options.quick else "deit_base_patch16_224"
    loaded = load_model(ModelSource(name))
    cut = Cut("quick", Counts(qk_dim=48, vo_dim=48)) if options.quick else BASE_CUT
    count = 16 if options.quick else 256
    slim = _slim(loaded, cut, count).model
    begin = time.perf_counter()
    build_artefact(slim, cpu_target("openvino", options.threads), options.folder)
    print(f"export and IR: {time.perf_counter() - begin:.1f} s")


def run_mae(options: Options) -> None:
    """Plan, slim and export a mean-pooled ViT-H as a shipped recipe says, but with random weights."""
    recipe = load_recipe("toast-mae-base-11.0" if options.quick else "toast-mae-huge-101.4").recipe
    begin = time.perf_counter()
    loaded = load_model(ModelSource(recipe.model.name, options=recipe.model.options))
    print(f"load: {time.perf_counter() - begin:.1f} s")
    images = open_set("imagenet_train1000", loaded.preprocess, 2 if options.quick else 8)
    begin = time.perf_counter()
    dense = keep_all(read_anatomy(loaded.model.arch))
    plan = run_methods(loaded.model, dense, recipe.methods, images, TOLD)
    print(f"plan: {time.perf_counter() - begin:.1f} s")
    begin = time.perf_counter()
    slim = slim_model(loaded.model, plan, SlimOptions("none", fold_means=True), images, TOLD)
    print(f"slim: {time.perf_counter() - begin:.1f} s")
    begin, path = time.perf_counter(), options.folder / "slim.onnx"
    export_onnx(slim, path, ExportOptions())
    check_dims(path, slim.arch)
    check_macs(path, slim.arch)
    print(f"export and checks: {time.perf_counter() - begin:.1f} s")
    costs = [model_cost(model.arch).total for model in (loaded.model, slim)]
    print("; ".join(f"{cost.macs / 1e9:.3f} GMACs, {cost.params / 1e6:.1f} M params" for cost in costs))


def _slim(loaded: LoadedModel, cut: Cut, count: int) -> LoadedModel:
    begin = time.perf_counter()
    images = open_set("imagenet_train1000", loaded.preprocess, count)
    slim = cut_model(loaded.model, cut, SlimOptions("closed-form"), images)
    print(f"closed form: {time.perf_counter() - begin:.1f} s")
    return LoadedModel(slim, loaded.preprocess, loaded.labels, loaded.random_weights)


INSIDE: dict[str, Callable[[Options], None]] = {
    "closed-form": run_tiny,
    "deit-base": run_base,
    "mae-h": run_mae,
}


def measure(part: Part, options: Options) -> Row:
    """Run one part in its process; return its row."""
    command = part.command(options)
    log = options.folder / "stdout.txt"
    begin = time.perf_counter()
    with log.open("wb") as stdout:
        process = subprocess.Popen(command, stdout=stdout)
        _, status, usage = os.wait4(process.pid, 0)
    minutes = (time.perf_counter() - begin) / 60
    process.returncode = os.waitstatus_to_exitcode(status)
    print(log.read_text(), file=sys.stderr)
    if process.returncode not in (0, _UNTRUSTED):
        raise SystemExit(f"{part.name}: exit code {process.returncode}")
    gigabytes = (
        usage.ru_maxrss * 1024 / 1e9
    )  # Linux counts KiB, from the fork on: never less than this process
    return Row(
        part.name,
        {
            "minutes": Figure(minutes, ".2f", None, Bound(high=part.minutes) if part.minutes else None),
            "peak memory, GB": Figure(
                gigabytes, ".2f", None, Bound(high=part.gigabytes) if part.gigabytes else None
            ),
            "CPU minutes": Figure((usage.ru_utime + usage.ru_stime) / 60, ".2f"),
            "of it, s": "; ".join(
                re.findall(r"^((?:load|plan|slim|closed form|export)[^:]*: [\d.]+) s", log.read_text(), re.M)
            ),
            "exit code": str(process.returncode),
        },
    )


def main() -> None:
    """Measure the parts, or be one."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        options = Options(Path(folder), arguments.quick, arguments.threads)
        if arguments.inside:
            use_threads(arguments.threads)
            INSIDE[arguments.inside](options)
            return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # children inherit it
    notebook = Notebook(quick=arguments.quick)
    for key in arguments.parts:
        TOLD.say(PARTS[key].name)
        with tempfile.TemporaryDirectory() as folder:
            options = Options(Path(folder), arguments.quick, arguments.threads)
            notebook.write("tool-cost", [measure(PARTS[key], options)])


if __name__ == "__main__":
    main()
