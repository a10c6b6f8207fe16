"""Compare edgevit's median latency with that of OpenVINO's own benchmark_app on the same IR.

    python tools/bench/benchmark_app_agreement.py build/NAME/openvino-cpu/fp32/model.xml --threads 2

Both run in fresh processes, in turns, in an order that changes with every round, so that whatever else the
machine does hits both. Printed: the two medians of every round, and the ratio over all rounds with its 95 %
interval (rounds are resampled); the ratio is recorded. Exit code 1 when it is more than `--tolerance` from 1.

The precision, the input's type (benchmark_app would take u8) and the threads are given to both. What differs:
benchmark_app fills its input once and times OpenVINO alone; edgevit's sample is the whole call from Python,
with the input copied in and the logits out. That is about 0.01 ms for every run, besides the copy of the
image, so artefacts faster than about 0.2 ms differ by more than 5 %.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import record
from record import Bound, Figure, Notebook, Row

from edgevit.backends import get_backend
from edgevit.measure.protocol import measure_pair
from edgevit.target import Target, Timing


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artefact", type=Path, help="an OpenVINO .xml with its .bin beside it")
    parser.add_argument("--name", help="what the artefact is, for the record; default: its path")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=5, help="of each of the two, in each round")
    parser.add_argument("--tolerance", type=float, default=0.05)
    record.add_options(parser)
    parser.add_argument("--ours-once", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 2, 1
    return arguments


def measure_ours(arguments: argparse.Namespace) -> float:
    """Measure with edgevit's protocol in this process; return the median in ms."""
    target = Target(name="here", runtime="openvino", threads=arguments.threads)
    timing = Timing(warmup_s=1.0, seconds=arguments.seconds, max_samples=100_000)
    with get_backend("openvino").load(arguments.artefact, target, arguments.precision) as session:
        shape = [size or 1 for size in session.input_shape]
        sample = np.random.default_rng(0).random(shape, dtype=np.float32)
        return measure_pair(session, None, sample, timing).reference.median


def run_ours(arguments: argparse.Namespace) -> float:
    """Measure with edgevit in a fresh process; return the median in ms."""
    command = [sys.executable, __file__, str(arguments.artefact), "--ours-once"]
    for name in ("threads", "precision", "seconds"):
        command += [f"--{name}", str(getattr(arguments, name))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run_theirs(arguments: argparse.Namespace) -> float:
    """Measure with benchmark_app; return the median in ms."""
    hint = {"fp32": "f32", "bf16": "bf16"}[arguments.precision]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"  # benchmark_app takes -nthreads only without -hint
        config.write_text(json.dumps({"CPU": {"INFERENCE_NUM_THREADS": arguments.threads, "NUM_STREAMS": 1}}))
        command = [
            *(
                str(Path(sys.executable).with_name("benchmark_app")),
                "-m",
                str(arguments.artefact),
                "-d",
                "CPU",
            ),
            *("-api", "sync", "-hint", "latency", "-t", str(arguments.seconds), "-load_config", str(config)),
            *("-infer_precision", hint, "-ip", "f32"),
        ]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    threads = _find(r"INFERENCE_NUM_THREADS: (\d+)", log)[0]
    if int(threads) != arguments.threads:
        raise SystemExit(f"benchmark_app ran with {threads} threads, wanted {arguments.threads}")
    value, unit = _find(r"Median: +([\d.]+) (ms|us)", log)  # its JSON report rounds to 0.01 ms
    return float(value) / (1.0 if unit == "ms" else 1000.0)


def _find(pattern: str, log: str) -> tuple[str, ...]:
    match = re.search(pattern, log)
    if match is None:
        raise SystemExit(f"benchmark_app printed nothing like {pattern!r}:\n{log}")
    return match.groups()


def compare(arguments: argparse.Namespace) -> Row:
    """Measure with both in turns."""
    rng = np.random.default_rng(0)
    runs = {"edgevit": run_ours, "benchmark_app": run_theirs}
    rounds: list[tuple[float, float]] = []
    print("round  edgevit ms  benchmark_app ms   ratio", file=sys.stderr)
    for number in range(arguments.rounds):
        found = {name: runs[name](arguments) for name in rng.permutation(list(runs))}
        ours, theirs = found["edgevit"], found["benchmark_app"]
        rounds.append((ours, theirs))
        line = f"{number:5d}  {ours:10.3f}  {theirs:16.3f}  {ours / theirs:6.3f}"
        print(line, file=sys.stderr, flush=True)
    ratios = np.array([ours / theirs for ours, theirs in rounds])
    draws = np.median(ratios[rng.integers(0, len(ratios), (2000, len(ratios)))], axis=1)
    low, high = (float(end) for end in np.percentile(draws, [2.5, 97.5]))
    ours, theirs = (float(median) for median in np.median(np.array(rounds), axis=0))
    bound = Bound(1 - arguments.tolerance, 1 + arguments.tolerance)
    name = arguments.name or str(arguments.artefact)
    threads = f"{arguments.threads} thread{'s' if arguments.threads > 1 else ''}"
    return Row(
        f"{name}: {arguments.precision}, {threads}",
        {
            "edgevit, ms": Figure(ours, ".3f"),
            "benchmark_app, ms": Figure(theirs, ".3f"),
            "rounds": str(len(rounds)),
            "edgevit / benchmark_app": Figure(float(np.median(ratios)), ".3f", (low, high), bound),
        },
    )


def main() -> None:
    """Record the comparison; exit with 1 when the two disagree."""
    arguments = parse_arguments()
    if arguments.ours_once:
        print(measure_ours(arguments))
        return
    notebook = Notebook(quick=arguments.quick)
    row = compare(arguments)
    notebook.write("benchmark-app", [row])
    ratio = row.cells["edgevit / benchmark_app"]
    assert isinstance(ratio, Figure)
    if not ratio.met:
        raise SystemExit(f"they differ by {ratio.value - 1.0:+.1%}, allowed {arguments.tolerance:.0%}")


if __name__ == "__main__":
    main()
