"""Build a DeiT-Tiny for CIFAR-10 by recipes whose methods cut deep, and train it again.

    python tools/bench/trained_methods.py

Each case is a recipe: the methods, with their search where they learn, slimming in closed form, [tune]. It
learns from cifar10_train and is evaluated on cifar10_val, as OpenVINO IR in fp32. Builds stay in `--keep`:
an interrupted run then goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import record
from record import Bound, Figure, Notebook, Row
from subjects import BENCH, DATA, TOLD, use_threads

from edgevit.errors import MeasurementError
from edgevit.pipeline import build
from edgevit.recipe import load_recipe
from edgevit.report.model import Report, load_report

SECTION = "trained-methods"
TRAINED_ON = 40_000
MOST_EPOCHS = 3.0

HEAD = """\
name = "{case}"
[model]
name = "deit_tiny_patch16_224"
weights = "{data}/deit_tiny_cifar10_96.safetensors"
options = {{ img_size = 96, num_classes = 10 }}
[calibration]
set = "{bench}/sets/cifar10_train.toml"
images = {calibration}
[evaluation]
set = "{bench}/sets/cifar10_val.toml"
images = {evaluation}
[[target]]
name = "openvino-cpu"
precisions = ["fp32"]
"""


@dataclass(frozen=True)
class Case:
    """What one recipe says of its method and trainings, the drop to stay below, and the cut to reach."""

    name: str
    method: str
    tune: str
    wanted: float
    cut: float | None = None


_TUNE = """\
[tune]
images = %s
epochs = %d
batch = 64
lr = 2e-4
hidden_states = 40.0
temperature = 4.0
least_area = 0.8
"""
_LABELS = "labels = 1.0\n"
_HALF = """\
[[prune]]
method = "coupled-dims"
qk_drop = 0.5
vo_drop = 0.5
keep_first = false
[[prune]]
method = "token-channels"
hidden_drop = 0.5
keep_first = false
"""
CASES = {
    "effiselect": Case(
        "effiselect, heads 0.3, neurons 0.5",
        """\
[prune]
method = "effiselect"
heads_drop = 0.3
hidden_drop = 0.5
train = "gates"
gate_lr = 2e-2
search = {{ images = {gated}, batch = 64 }}
""",
        _TUNE % ("{after_gates}", 3) + _LABELS,
        0.5,
    ),
    "intra-head": Case(
        "intra-head, 53.8 % of the MACs",
        """\
[prune]
method = "intra-head"
macs = 0.538
weights = "pretrained"
search = {{ images = {searched}, batch = 64 }}
""",
        _TUNE % ("{trained}", 2) + _LABELS,
        0.7,
        46.2,
    ),
    "half": Case(
        "coupled-dims 50 %, token-channels 50 %",
        _HALF,
        _TUNE % ("{trained}", 3),
        0.5,
    ),
    "half-labels": Case(
        "coupled-dims 50 %, token-channels 50 %, labels too",
        _HALF,
        _TUNE % ("{trained}", 3) + _LABELS,
        0.5,
    ),
    "deep": Case(
        "coupled-dims QK 16, VO 32, token-channels 256",
        """\
[[prune]]
method = "coupled-dims"
qk_dim = 16
vo_dim = 32
keep_first = false
[[prune]]
method = "token-channels"
hidden = 256
keep_first = false
""",
        _TUNE % ("{trained}", 3),
        1.2,
    ),
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--keep", type=Path, help="folder of the builds; default: one that is removed")
    record.add_options(parser)
    return parser.parse_args()


def recipe_text(key: str, *, quick: bool) -> str:
    """Return the recipe of a case; a quick one trains for seconds and means nothing."""
    case = CASES[key]
    counts = {
        "calibration": 64 if quick else 3000,
        "evaluation": 64 if quick else 10_000,
        "gated": 128 if quick else 5_000,  # frozen weights: gates settle in fewer steps
        "searched": 128 if quick else 20_000,
        "trained": 128 if quick else TRAINED_ON,
        "after_gates": 128 if quick else 38_000,  # search and training together: three epochs at most
    }
    text = HEAD + case.method + case.tune
    return text.format(case=key, data=DATA, bench=BENCH, **counts)


def build_case(key: str, keep: Path, *, quick: bool) -> Report:
    """Build a case, or go on with it, and return its report; its times may be untrusted, nothing else."""
    keep.mkdir(parents=True, exist_ok=True)
    path = keep / f"{key}.toml"
    path.write_text(recipe_text(key, quick=quick))
    out = keep / key
    try:
        return build(load_recipe(str(path)), out, progress=TOLD)
    except MeasurementError as error:
        TOLD.say(f"not timed: {error}")
        return load_report(out)


def cells_of(case: Case, report: Report) -> dict[str, Figure | str]:
    """Return what the table shows of a build."""
    (result,) = report.results
    dense, slim, drop, tune = result.dense, result.slim, result.drop, report.tune
    assert drop is not None
    assert tune is not None
    searched = sum(search.epochs * search.images for search in report.searches)
    trainings = [*report.searches, tune]
    cut = None if case.cut is None else Bound(low=case.cut)
    return {
        "MACs cut, %": Figure(
            100 * (1 - report.models.slim.macs / report.models.dense.macs), ".2f", None, cut
        ),
        "dense top-1 %": Figure(100 * (dense.top1 or 0.0), ".2f"),
        "top-1 %": Figure(100 * (slim.top1 or 0.0), ".2f"),
        "drop, points": Figure(drop.points, ".2f", drop.interval, Bound(high=case.wanted)),
        "agreement": Figure(slim.agreement or 0.0, ".3f"),
        "epochs in all": Figure(
            (searched + tune.epochs * tune.images) / TRAINED_ON, ".2f", None, Bound(high=MOST_EPOCHS)
        ),
        "search and training, minutes": Figure(sum(t.seconds for t in trainings) / 60, ".1f"),
    }


def main() -> None:
    """Build and record every case that was asked for."""
    arguments = parse_arguments()
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    with tempfile.TemporaryDirectory() as removed:
        for key in arguments.cases:
            TOLD.say(CASES[key].name)
            report = build_case(key, arguments.keep or Path(removed), quick=arguments.quick)
            notebook.write(SECTION, [Row(CASES[key].name, cells_of(CASES[key], report))])


if __name__ == "__main__":
    main()
