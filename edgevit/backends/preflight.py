"""Ask TensorRT's real parser whether it takes a graph, before anything is built or sent to a board.

The parser runs in a process of its own: it needs no GPU there, and where it dies, edgevit lives on and shows
its log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from edgevit.engine import CPU_ONLY, FILE, MODULES, Refusal, refusal_text
from edgevit.target import TENSORRT_RUNTIMES, Runtime

ANSWER_S = 900
"""A process that has not answered by then hangs: the largest graphs build in a few minutes."""
_LOG_LINES = 15
GET_A_PARSER = "pip install tensorrt-rtx"

Outcome = Literal["accepted", "refused", "died", "unavailable"]
Answer = dict[str, JsonValue]


@dataclass(frozen=True)
class Preflight:
    """What a parser said of a graph."""

    outcome: Outcome
    parser: str | None
    """Module and version of the parser that was asked; None where none could be."""
    why: str
    """Layers of the network it made; or its error, with node and operator; or its last log lines; or how to
    get a parser."""


class DiedError(Exception):
    """A process that ended without an answer; says how, with the end of its log."""


def ask_parser(
    onnx: Path,
    runtimes: Sequence[Runtime] = TENSORRT_RUNTIMES,
    env: Mapping[str, str] | None = None,
) -> Preflight:
    """Let the first parser that can be imported parse a graph.

    Args:
        onnx: the graph.
        runtimes: whose parsers, the first that is here.
        env: environment of the process in place of this one's.
    """
    return first_answer((runtime, ask_one(onnx, runtime, env)) for runtime in runtimes)


def first_answer(answers: Iterable[tuple[Runtime, Preflight]]) -> Preflight:
    """Return what the first parser said that could be asked; no further one is asked.

    Args:
        answers: of one runtime's parser after the other, made when they are needed.
    """
    reasons = []
    for runtime, found in answers:
        if found.outcome != "unavailable":
            return found
        reasons.append(f"{runtime}: {found.why}")
    words = "; ".join(reasons)
    return Preflight("unavailable", None, f"no parser could be asked ({words}). Get one with: {GET_A_PARSER}")


def ask_one(onnx: Path, runtime: Runtime, env: Mapping[str, str] | None = None) -> Preflight:
    """Let the parser of one runtime parse a graph; "unavailable" where it cannot be imported.

    It is asked without a GPU first, which 10.x and 11.x allow by an option that other versions may not know.
    """
    around = dict(os.environ if env is None else env)
    found = _parse(onnx, runtime, around | CPU_ONLY)
    return _parse(onnx, runtime, around) if found.outcome in ("unavailable", "died") else found


def find_parser(runtime: Runtime, env: Mapping[str, str] | None = None) -> str | None:
    """Return module and version of a runtime's parser; None where it cannot be imported."""
    try:
        answer = ask_process(["version", runtime], env)
    except DiedError:
        return None
    return _parser_name(answer) if answer["answer"] == "here" else None


def _parser_name(answer: Answer) -> str:
    return f"{answer['module']} {answer['version']}"


def _parse(onnx: Path, runtime: Runtime, env: dict[str, str]) -> Preflight:
    try:
        answer = ask_process(["parse", runtime, str(onnx)], env)
    except DiedError as error:
        return Preflight("died", " or ".join(MODULES[runtime]), str(error))
    if answer["answer"] != "parsed":
        return Preflight("unavailable", None, str(answer["words"]))
    parser = _parser_name(answer)
    refusals = [Refusal(**one) for one in answer["refusals"]]  # type: ignore[union-attr, arg-type]
    if refusals:
        return Preflight("refused", parser, refusal_text(onnx, refusals))
    return Preflight("accepted", parser, f"{answer['layers']} layers")


def ask_process(arguments: Sequence[str], env: Mapping[str, str] | None = None) -> Answer:
    """Run engine.py in a process and return its answer.

    Raises:
        DiedError: it ended without one.
    """
    command = [sys.executable, str(FILE), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=env, timeout=ANSWER_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DiedError(f"no answer within {ANSWER_S} s; the process was ended") from error
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        answer: Answer = json.loads(lines[-1])
        return answer
    log = "\n  ".join(done.stderr.strip().splitlines()[-_LOG_LINES:]) or "(it logged nothing)"
    raise DiedError(f"{_ending(done.returncode)}. Its log ends:\n  {log}")


def _ending(code: int) -> str:
    if code >= 0:
        return f"the process ended with {code} and no answer"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    memory = " (out of memory? lower tensorrt.workspace_mb)" if name == "SIGKILL" else ""
    return f"the process was ended by {name}{memory}"
