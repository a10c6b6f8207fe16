"""Give DeiT-Tiny budgets of MACs and compare the artefacts of the plans that come out with the dense one's.

    python tools/bench/budgets.py --budgets 0.54 0.42

Cuts are measured on unlabelled images, a plan is solved for, the model is slimmed in closed form, built as
OpenVINO IR in fp32 and run on imagenet_val650; the numbers are the artefact's. What cuts cost is kept in
`--keep`, so a run that was stopped goes on and another budget measures nothing again.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import record
import torch
from closed_form import Bench, Wanted, judge, open_bench
from record import Figure, Notebook, Row
from subjects import TOLD, WEIGHTS, cpu_target, decode_now, load_deit_tiny, open_set, use_threads

from edgevit.cost import model_cost
from edgevit.images import Images
from edgevit.models.anatomy import read_anatomy
from edgevit.prune.allocate import Allocation, ArchCosts, allocate, choices_of
from edgevit.prune.curves import Sensitivity
from edgevit.prune.decisions import decisions
from edgevit.prune.sensitivity import BlockFile, Grid, joint_kl, measure_sensitivity
from edgevit.slim import SlimOptions, slim_model
from edgevit.slim.stream import BATCH

WANTED = {0.54: Wanted(0.5, 0.955), 0.42: Wanted(1.0, 0.93)}
"""The figures to reach, by the share of MACs that remains; with 750 calibration images."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budgets", type=float, nargs="+", default=list(WANTED), metavar="SHARE")
    parser.add_argument("--measured-on", type=int, default=128, metavar="IMAGES")
    parser.add_argument("--calibration", type=int, default=750, metavar="IMAGES")
    parser.add_argument("--keep", type=Path, help="folder for what cuts cost; default: a temporary one")
    record.add_options(parser)
    return parser.parse_args()


def batches_of(images: Images) -> Callable[[], Iterator[torch.Tensor]]:
    """Return a function that gives the images anew, float32 [b, C, H, W]."""
    return lambda: (torch.from_numpy(batch) for batch in images.batches(BATCH))


def measure_cuts(bench: Bench, images: Images, keep: Path) -> Sensitivity:
    """Measure what cuts cost, or go on where an earlier run has stopped."""
    grid = Grid()
    text = f"{WEIGHTS.name} {images.sha256} {grid}"
    kept = BlockFile(keep / f"cuts-{len(images)}.json", hashlib.sha256(text.encode()).hexdigest())
    return measure_sensitivity(bench.dense, batches_of(images), grid, kept, TOLD)


def solve(bench: Bench, sensitivity: Sensitivity, share: float) -> Allocation:
    """Solve for the plan of a share of the dense model's MACs."""
    arch = bench.dense.arch
    choices = choices_of(read_anatomy(arch), sensitivity, {}, dead_tokens=True)
    limit = share * model_cost(arch).total.macs
    costs = ArchCosts(arch, "macs", dead_tokens=True)
    found = allocate(sensitivity, choices, costs, limit)
    TOLD.say(f"{share}: {found.cost / 1e9:.3f} GMACs, KL {found.kl:.4f}")
    for sentence in decisions(arch, found, "macs", costs):
        TOLD.say(f"  {sentence}")
    return found


def measure(bench: Bench, found: Allocation, calibration: Images, wanted: Wanted | None) -> Row:
    """Slim by a plan, build and evaluate."""
    slim = slim_model(bench.dense, found.plan, SlimOptions("closed-form"), calibration, TOLD)
    cells = judge(bench, slim, wanted)
    joint = joint_kl(bench.dense, slim, batches_of(calibration)())
    more: dict[str, Figure | str] = {
        "GMACs": Figure(model_cost(slim.arch).total.macs / 1e9, ".3f"),
        "KL predicted": Figure(found.kl, ".4f"),
        "KL, calibration": Figure(joint, ".4f"),
        "tokens": " ".join(str(block.tokens) for block in found.plan.blocks[:-1]),
    }
    return Row("", more | cells)


def main() -> None:
    """Solve for every budget that was asked for, and measure it."""
    arguments = parse_arguments()
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    count = 32 if arguments.quick else None
    preprocess = load_deit_tiny().preprocess
    with tempfile.TemporaryDirectory() as folder:
        bench = open_bench(cpu_target("openvino", arguments.threads), count, Path(folder))
        keep = arguments.keep or Path(folder)
        measured_on = open_set("imagenet_train1000", preprocess, arguments.measured_on)
        sensitivity = measure_cuts(bench, measured_on, keep)
        calibration = open_set("imagenet_train1000", preprocess, arguments.calibration)
        decode_now(calibration)
        for share in arguments.budgets:
            found = solve(bench, sensitivity, share)
            whole = arguments.calibration == 750 and not arguments.quick
            row = measure(bench, found, calibration, WANTED.get(share) if whole else None)
            images = f"cuts measured on {len(measured_on)} images, slimmed with {len(calibration)}"
            notebook.write("budgets", [Row(f"macs = {share}: {images}", row.cells)])


if __name__ == "__main__":
    main()
