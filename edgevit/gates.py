"""Choosing among the candidates of a target, and the limits that fail a build: pure functions on results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgevit.errors import AccuracyGateError, EdgevitError, LatencyGateError, MeasurementError
from edgevit.recipe import Gates, Prefer
from edgevit.report.model import Result
from edgevit.report.phrases import label


def choose(results: Sequence[Result], gates: Gates, prefer: Prefer) -> tuple[Result, ...]:
    """Mark which candidates of one target are chosen, and why the others are not.

    A candidate that misses an accuracy gate or whose timing is untrusted is refused; of the others the
    fastest is chosen, or each of them with `prefer = "all"`.
    """
    judged = [
        result.model_copy(update={"chosen": False, "refused": _unfit(result, gates)}) for result in results
    ]
    fit = [result for result in judged if result.refused is None]
    if not fit:
        return tuple(judged)
    fastest = min(fit, key=lambda result: result.slim.latency_ms.median)
    return tuple(_marked(result, fastest, prefer) for result in judged)


def _unfit(result: Result, gates: Gates) -> str | None:
    missed = accuracy_misses(result, gates)
    if missed:
        return f"misses the gate: {'; '.join(missed)} (median {result.slim.latency_ms.median:.3f} ms)"
    return f"untrusted timing: {result.why}" if result.verdict == "untrusted" else None


def _marked(result: Result, fastest: Result, prefer: Prefer) -> Result:
    if result.refused is not None:
        return result
    if prefer == "all" or result is fastest:
        return result.model_copy(update={"chosen": True})
    mine, best = result.slim.latency_ms.median, fastest.slim.latency_ms.median
    reason = f"not faster than {fastest.precision} on this target: {mine:.3f} ms against {best:.3f} ms"
    return result.model_copy(update={"refused": reason})


def accuracy_misses(result: Result, gates: Gates) -> list[str]:
    """List the accuracy gates that a result misses; a limit on something that was not measured is missed.

    A board compares outputs on stored images and measures no accuracy, so none is missed there.
    """
    if result.on_board:
        return []
    return [*_drop_misses(result, gates.max_drop), *_agreement_misses(result, gates.min_agreement)]


def _drop_misses(result: Result, limit: float | None) -> list[str]:
    """Judge the drop against dense in the same precision, and against dense in fp32 where that is known."""
    if limit is None:
        return []
    if result.drop is None:
        return [f"max_drop {limit:g} needs labelled evaluation images, and there are none"]
    drops = {"": result.drop, " against fp32": result.fp32.drop if result.fp32 else None}
    return [
        f"top-1 drops by {drop.points:.2f} points{against}, max_drop is {limit:g}"
        for against, drop in drops.items()
        if drop is not None and drop.points > limit
    ]


def _agreement_misses(result: Result, limit: float | None) -> list[str]:
    if limit is None:
        return []
    if result.slim.agreement is None:
        return [f"min_agreement {limit:g} needs evaluation images, and there are none"]
    shares = {"": result.slim.agreement, " with fp32": result.fp32.agreement if result.fp32 else None}
    return [
        f"agreement{against} is {share:.4f}, min_agreement is {limit:g}"
        for against, share in shares.items()
        if share is not None and share < limit
    ]


def latency_misses(result: Result, gates: Gates) -> list[str]:
    """List the latency gates that a result misses."""
    missed = []
    median, speedup = result.slim.latency_ms.median, result.speedup.measured
    if gates.max_latency_ms is not None and median > gates.max_latency_ms:
        missed.append(f"median latency is {median:.3f} ms, max_latency_ms is {gates.max_latency_ms:g}")
    if gates.min_speedup is not None and speedup < gates.min_speedup:
        missed.append(f"speed-up is {speedup:.3f}, min_speedup is {gates.min_speedup:g}")
    return missed


def require_measured(results: Sequence[Result], waiting: Sequence[str], gates: Gates) -> None:
    """Make sure that there is anything that the limits can judge.

    Args:
        results: of a finished build.
        waiting: targets that got a build kit and were not measured yet.
        gates: limits.

    Raises:
        MeasurementError: nothing was measured that a limit is on.
    """
    timed = gates.max_latency_ms is not None or gates.min_speedup is not None
    if any(timed or not result.on_board for result in results):
        return
    if waiting:
        raise MeasurementError(
            f"nothing to judge: {', '.join(waiting)} got a build kit and was not measured yet."
            " Run the kit there, and bring its report back with `edgevit report DIR --import FILE`."
        )
    if results:
        raise MeasurementError(
            "nothing to judge: boards alone were measured, and a board knows no accuracy."
            " Give a limit on latency or speed-up."
        )


def require_gates(results: Sequence[Result], gates: Gates) -> None:
    """Make sure that every target has a chosen candidate which keeps all limits.

    Args:
        results: of a finished build, with their choice.
        gates: limits; they may be others than those that the choice was made with.

    The message has all that was missed; the class is that of the first kind below.

    Raises:
        AccuracyGateError: a target has only candidates that miss an accuracy gate.
        MeasurementError: else, a target has only candidates whose timing cannot be trusted.
        LatencyGateError: else, a target has no candidate that is fast enough.
    """
    groups = [
        [r for r in results if r.target == target] for target in dict.fromkeys(r.target for r in results)
    ]
    accuracy = [line for group in groups for line in _accuracy_problems(group, gates)]
    untrusted = [line for group in groups for line in _untrusted(group, gates)]
    latency = [line for group in groups for line in _latency_problems(group, gates)]
    faster = "Cutting more costs accuracy: loosen a limit" if accuracy else "Cut more"
    kinds: list[tuple[type[EdgevitError], str, list[str], str]] = [
        (AccuracyGateError, "accuracy gate missed", accuracy, "Cut less, or calibrate on more images."),
        (MeasurementError, "timing cannot be trusted", untrusted, "Quieten the machine and run again."),
        (LatencyGateError, "latency gate missed", latency, f"{faster}, or choose another precision."),
    ]
    missed = [kind for kind in kinds if kind[2]]
    if missed:
        raise missed[0][0]("\n".join(_text(title, lines, advice) for _, title, lines, advice in missed))


def _accuracy_problems(group: Sequence[Result], gates: Gates) -> list[str]:
    """List the misses of a target: those of what was chosen, or of all where nothing holds the limits."""
    chosen = [result for result in group if result.chosen]
    return _problems(chosen, group, lambda result: accuracy_misses(result, gates))


def _untrusted(group: Sequence[Result], gates: Gates) -> list[str]:
    """Say why no timing of a target can be trusted, where that is so."""
    judged = [r for r in group if r.chosen] or [r for r in group if not accuracy_misses(r, gates)]
    if any(r.verdict == "trusted" for r in judged):
        return []
    return [f"{label(r)}: {r.why}" for r in group if r.verdict == "untrusted"]


def _latency_problems(group: Sequence[Result], gates: Gates) -> list[str]:
    """List the misses of a target, like those of accuracy; a timing that cannot be trusted misses nothing."""
    chosen = [result for result in group if result.chosen]
    trusted = [result for result in group if result.verdict == "trusted"]
    accurate = [result for result in trusted if not accuracy_misses(result, gates)]
    return _problems(chosen, accurate or trusted, lambda result: latency_misses(result, gates))


def _problems(
    chosen: Sequence[Result], others: Sequence[Result], missed: Callable[[Result], list[str]]
) -> list[str]:
    """List what the chosen miss; where none is chosen, what the others miss if none of them holds all."""
    judged = chosen or others
    found = [(result, missed(result)) for result in judged]
    if not chosen and not all(lines for _, lines in found):
        return []
    return [f"{label(result)}: {line}" for result, lines in found for line in lines]


def _text(title: str, lines: Sequence[str], advice: str) -> str:
    if len(lines) == 1:
        return f"{title}: {lines[0]}. {advice}"
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines), advice])
