"""Give DeiT-Tiny budgets, and compare what comes out with the dense model and with what was asked.

    python tools/bench/budgets.py --keep builds --cases macs-0.54 macs-0.42

Each case can be run alone. All but the last four kinds are recipes: cuts are measured on unlabelled images, a
plan is solved for, the model is slimmed in closed form with images of imagenet_train1000, some are trained
as [tune] does it, and the OpenVINO IR is run on imagenet_val650 and timed. `uniform` compares the plan of
macs-0.54 with the same widths in every block that take as long. `requests` asks for five speed-ups.
`promise-*` plans widths of a DeiT-S of random weights by its latency table. `sensitivity-base` measures the
cuts of a DeiT-B of random weights.

Builds stay in `--keep`: what cuts cost is measured once and latency tables once for a precision, a run that
was stopped goes on, and a case that was built is there at once.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import record
import speed
from budget_times import CALIBRATION, PRECISIONS, keep_promise, match_uniform, time_sensitivity
from record import Bound, Figure, Notebook, Row
from subjects import BENCH, DATA, TOLD, cpu_target, use_threads

from edgevit.errors import MeasurementError
from edgevit.pipeline import build
from edgevit.recipe import load_recipe
from edgevit.report.model import Report, Result, load_report

SECTION, REQUESTS_SECTION, PROMISE_SECTION = "budgets", "budget-requests", "budget-promise"
REQUESTS = (1.2, 1.4, 1.6, 1.8, 2.0)
WITHIN = Bound(0.93, 1.07)
REQUEST_IMAGES = 256
"""Images that a request is slimmed with: those that cuts are measured on, as only its time is looked at."""
WANTED_MINUTES = Bound(high=5.0)
WANTED_SENSITIVITY = Bound(high=6.0)

HEAD = """\
name = "{name}"
[model]
name = "deit_tiny_patch16_224"
weights = "{data}/deit_tiny_patch16_224_imagenet.safetensors"
[calibration]
set = "{bench}/sets/imagenet_train1000.toml"
images = {calibration}
[budget]
{budget}
[[target]]
name = "openvino-cpu"
precisions = {precisions}
"""
EVALUATION = """\
[evaluation]
set = "{bench}/sets/imagenet_val650.toml"
"""
QUICK_EVALUATION = EVALUATION + "images = 32\n"
TUNE = "[tune]\nepochs = {epochs}\n"


@dataclass(frozen=True)
class Case:
    """One budget, whether it is trained for a few minutes, and what is wanted of it."""

    name: str
    budget: str
    drop: float
    agreement: float | None = None
    speedup: float | None = None
    tuned: bool = False
    precision: str = "fp32"

    @property
    def folder(self) -> str:
        """Return the name of its build: trained or not, one budget has one, and is solved for once."""
        return f"{self.budget.replace(' = ', '-')}-{self.precision}"


CASES = {
    "macs-0.54": Case("macs = 0.54", "macs = 0.54", 0.5, agreement=0.955),
    "macs-0.42": Case("macs = 0.42", "macs = 0.42", 1.0, agreement=0.93),
    "macs-0.54-tuned": Case("macs = 0.54, trained", "macs = 0.54", 0.2, tuned=True),
    "macs-0.42-tuned": Case("macs = 0.42, trained", "macs = 0.42", 0.7, tuned=True),
    "fp32": Case("speedup = 1.6", "speedup = 1.6", 1.0, speedup=1.5),
    "fp32-tuned": Case("speedup = 1.85, trained", "speedup = 1.85", 1.0, speedup=1.7, tuned=True),
    "int8": Case("speedup = 1.4, int8", "speedup = 1.4", 1.0, speedup=1.3, precision="int8"),
    "int8-tuned": Case(
        "speedup = 1.9, int8, trained", "speedup = 1.9", 1.0, speedup=1.5, tuned=True, precision="int8"
    ),
}
OTHERS = ("uniform", "requests", "sensitivity-base", *(f"promise-{precision}" for precision in PRECISIONS))


@dataclass(frozen=True)
class Runs:
    """Where builds are, and what is run."""

    keep: Path
    notebook: Notebook
    quick: bool
    epochs: int
    seconds: float
    threads: int

    def build(self, name: str, text: str) -> Report:
        """Build a recipe, or go on with it, and return its report; only its times may be untrusted."""
        self.keep.mkdir(parents=True, exist_ok=True)
        path, out = self.keep / f"{name}.toml", self.keep / name
        path.write_text(text)
        try:
            return build(load_recipe(str(path)), out, progress=TOLD)
        except MeasurementError as error:
            if not (out / "report.json").is_file():
                raise
            TOLD.say(f"not to be trusted: {error}")
            return load_report(out)

    def recipe(self, case: Case) -> str:
        """Return the recipe of a case; a quick one has few images and means nothing."""
        text = HEAD + (QUICK_EVALUATION if self.quick else EVALUATION) + (TUNE if case.tuned else "")
        budget = case.budget + (f'\nprecision = "{case.precision}"' if case.speedup else "")
        return text.format(
            name=case.folder,
            data=DATA,
            bench=BENCH,
            calibration=64 if self.quick else CALIBRATION,
            budget=budget,
            precisions=_precisions(case.precision),
            epochs=1 if self.quick else self.epochs,
        )


def _precisions(wanted: str) -> str:
    """Return what a target builds so that one precision can be judged: against fp32."""
    return str([*dict.fromkeys(("fp32", wanted))]).replace("'", '"')


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*CASES, *OTHERS]
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--epochs", type=int, default=6, help="of the trained cases")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="of samples for each pair of uniform and promise"
    )
    parser.add_argument("--keep", type=Path, help="folder of the builds; default: one that is removed")
    record.add_options(parser)
    return parser.parse_args()


def run_case(runs: Runs, case: Case) -> None:
    """Build a budget, and record what came out."""
    report = runs.build(case.folder, runs.recipe(case))
    runs.notebook.write(SECTION, [Row(case.name, cells_of(case, report))])


def cells_of(case: Case, report: Report) -> dict[str, Figure | str]:
    """Return what the table shows of a build."""
    (result,) = (result for result in report.results if result.precision == case.precision)
    budget, drop = report.budget, result.drop
    assert budget is not None
    assert drop is not None
    cells: dict[str, Figure | str] = {
        "GMACs": Figure(report.models.slim.macs / 1e9, ".3f"),
        "top-1 %": Figure(100 * (result.slim.top1 or 0.0), ".2f"),
        "drop, points": Figure(drop.points, ".2f", drop.interval, Bound(high=case.drop)),
        "agreement": Figure(
            result.slim.agreement or 0.0, ".3f", None, Bound(low=case.agreement) if case.agreement else None
        ),
        "speed-up": speedup_of(result, Bound(low=case.speedup) if case.speedup else None),
        "dense, ms": Figure(result.dense.latency_ms.median, ".2f"),
        "KL, cuts added up": Figure(budget.predicted_kl, ".4f"),
        "KL, before training": Figure(budget.measured_kl, ".4f"),
        "tokens": " ".join(str(block.tokens) for block in report.plan.blocks[:-1]),
    }
    if report.tune is not None:
        cells["training, minutes"] = Figure(report.tune.seconds / 60, ".2f", None, WANTED_MINUTES)
    made = {stage.name: stage.seconds / 60 for stage in report.stages if not stage.reused}
    if "sensitivity" in made:
        cells["sensitivity, minutes"] = Figure(made["sensitivity"], ".1f", None, WANTED_SENSITIVITY)
    return cells


def speedup_of(result: Result, bound: Bound | None) -> Figure:
    """Return the measured speed-up of a build's artefact."""
    found = result.speedup
    return Figure(found.measured, ".3f", found.interval, bound, result.verdict == "trusted")


def run_requests(runs: Runs) -> None:
    """Ask for five speed-ups; they are slimmed with few images, as nothing but time is looked at."""
    kept = 0
    for asked in REQUESTS[:1] if runs.quick else REQUESTS:
        text = HEAD.format(
            name=f"request-{asked}",
            data=DATA,
            bench=BENCH,
            calibration=64 if runs.quick else REQUEST_IMAGES,
            budget=f"speedup = {asked}",
            precisions=_precisions("fp32"),
        )
        report = runs.build(f"request-{asked}", text)
        (result,), budget = report.results, report.budget
        assert budget is not None
        assert budget.table is not None
        ratio = Figure(result.speedup.measured / asked, ".3f", None, None, counts=result.verdict == "trusted")
        kept += ratio.counts and WITHIN.met(ratio)
        cells: dict[str, Figure | str] = {
            "asked": Figure(asked, ".2f"),
            "measured": speedup_of(result, None),
            "measured / asked": ratio,
            "estimated by MACs": Figure(result.speedup.estimated, ".3f"),
            "table: worst whole model, %": Figure(
                100 * max(abs(model.error) for model in budget.table.whole), ".1f"
            ),
            "tokens": " ".join(str(block.tokens) for block in report.plan.blocks[:-1]),
        }
        runs.notebook.write(REQUESTS_SECTION, [Row(f"speedup = {asked}", cells)])
    bound = Bound(low=0.8 * len(REQUESTS))
    cells = {f"within {WITHIN} of what was asked": Figure(kept, ".0f", None, bound)}
    runs.notebook.write(REQUESTS_SECTION, [Row(f"of {len(REQUESTS)} requests", cells)])


def run_uniform(runs: Runs) -> None:
    """Compare the plan of macs-0.54 with the same widths everywhere that take as long."""
    case = CASES["macs-0.54"]
    runs.build(case.folder, runs.recipe(case))
    with tempfile.TemporaryDirectory() as folder:
        target = cpu_target("openvino", runs.threads)
        row = match_uniform(runs.keep / case.folder, timing_of(runs, Path(folder)), target, quick=runs.quick)
    runs.notebook.write(SECTION, [row])


def run_sensitivity(runs: Runs) -> None:
    """Measure the cuts of a DeiT-B."""
    runs.notebook.write(SECTION, [time_sensitivity(quick=runs.quick)])


def timing_of(runs: Runs, folder: Path) -> speed.Bench:
    """Return how pairs are timed that are no recipe's."""
    target = cpu_target("openvino", runs.threads)
    return speed.Bench(target, speed.timing_of(runs.seconds, quick=runs.quick), folder)


def run_promise(runs: Runs, precision: str) -> None:
    """Plan widths of DeiT-S by its table, and compare speed-up and MACs."""
    with tempfile.TemporaryDirectory() as folder:
        row = keep_promise(timing_of(runs, Path(folder)), PRECISIONS[precision], runs.keep / "promise")
    runs.notebook.write(PROMISE_SECTION, [row])


def main() -> None:
    """Run every case that was asked for."""
    arguments = parse_arguments()
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    others: dict[str, Callable[[Runs], None]] = {
        "uniform": run_uniform,
        "requests": run_requests,
        "sensitivity-base": run_sensitivity,
    }
    with tempfile.TemporaryDirectory() as removed:
        runs = Runs(
            arguments.keep or Path(removed),
            notebook,
            arguments.quick,
            arguments.epochs,
            arguments.seconds,
            arguments.threads,
        )
        for name in arguments.cases:
            TOLD.say(name)
            if name in CASES:
                run_case(runs, CASES[name])
            elif name in others:
                others[name](runs)
            else:
                run_promise(runs, name.removeprefix("promise-"))


if __name__ == "__main__":
    main()
