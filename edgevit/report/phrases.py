"""Numbers and findings in words, the same in the terminal and in the HTML; plain ASCII."""

from __future__ import annotations

from collections.abc import Sequence

from edgevit.budget import Unit
from edgevit.report.blocks import BudgetRow, block_scales, breaking, planned_for
from edgevit.report.model import (
    BudgetFacts,
    Drop,
    Int8Facts,
    Int8Loss,
    Interval,
    ReductionFacts,
    Report,
    Result,
    SetFacts,
    TableFacts,
    unmeasured,
)
from edgevit.report.sweep import Sweep, SweepPoint, SweepResult

NONE = "-"


def count(value: int, like: int | None = None) -> str:
    """Write MACs or params with the prefix and decimals that `like` (default: itself) has: "1.254 G"."""
    scale = value if like is None else like
    for limit, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if scale >= limit:
            decimals = 3 if scale < 10 * limit else 2 if scale < 100 * limit else 1
            return f"{value / limit:.{decimals}f} {prefix}"
    return str(value)


def size(value_bytes: int) -> str:
    """Write a size with decimal prefixes: "22.9 MB"."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value_bytes >= limit:
            return f"{value_bytes / limit:.1f} {unit}"
    return f"{value_bytes} B"


def hidden(neurons: int, used: int | None, inputs: int | None) -> str:
    """Write hidden neurons, with those that each image uses and the channels they read: "768 (154 used)"."""
    notes = [f"{count} {word}" for count, word in ((used, "used"), (inputs, "inputs")) if count is not None]
    return f"{neurons} ({', '.join(notes)})" if notes else str(neurons)


def share(value: float | None) -> str:
    """Write a fraction as percent with one decimal; "-" for None."""
    return NONE if value is None else f"{100 * value:.1f}%"


def share_interval(interval: Interval) -> str:
    """Write an interval of fractions: "76.1-79.3%"."""
    return f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}%"


def milliseconds(value: float, like: float | None = None) -> str:
    """Write a time with as many decimals as `like` (default: itself) deserves."""
    scale = value if like is None else like
    decimals = 1 if scale >= 100 else 2 if scale >= 1 else 3 if scale >= 0.1 else 4
    return f"{value:.{decimals}f}"


def milliseconds_interval(interval: Interval, like: float) -> str:
    """Write an interval of times with the decimals of `like`: "7.38-7.47"."""
    return "-".join(milliseconds(end, like) for end in interval)


def cost(value: float | None, unit: Unit, like: float | None = None) -> str:
    """Write what a block costs in the unit of a budget, milliseconds without theirs; "-" for None."""
    if value is None:
        return NONE
    if unit == "ms":
        return milliseconds(value, like)
    return count(round(value), None if like is None else round(like))


def ratio(value: float) -> str:
    """Write a speed-up: "1.42x"."""
    return f"{value:.2f}x"


def ratio_interval(interval: Interval) -> str:
    """Write the interval of a speed-up: "1.39-1.45"."""
    return f"{interval[0]:.2f}-{interval[1]:.2f}"


def points(value: float) -> str:
    """Write percentage points: "0.6"."""
    return f"{value:.1f}"


def points_interval(interval: Interval) -> str:
    """Write an interval of percentage points: "-0.2 to 1.4"."""
    return f"{points(interval[0])} to {points(interval[1])}"


def kept(promise: float) -> str:
    """Write the share of the promise that was kept: "88%"."""
    return f"{100 * promise:.0f}%"


def label(result: Result | SweepResult) -> str:
    """Name a candidate: "openvino-cpu fp32"."""
    return f"{result.target} {result.precision}"


def status(result: Result) -> str:
    """Say "chosen", "refused" or nothing."""
    return "chosen" if result.chosen else "refused" if result.refused is not None else ""


def speed(result: Result) -> str:
    """Say what was measured beside what the MACs promised, in one sentence."""
    speedup = result.speedup
    low, high = speedup.interval
    found = f"{ratio(speedup.measured)} as fast as dense ({ratio_interval(speedup.interval)})"
    if high < 1.0:
        found = f"slower than dense, {ratio(speedup.measured)} as fast ({ratio_interval(speedup.interval)})"
    elif low <= 1.0:
        found = (
            f"no faster as far as can be told, {ratio(speedup.measured)} ({ratio_interval(speedup.interval)})"
        )
    doubt = "" if result.verdict == "trusted" else f" Do not trust this timing: {result.why}."
    promise = f"MACs promised {ratio(speedup.estimated)}: {kept(speedup.promise)} of the promise kept."
    return f"{found}, {promise}{doubt}"


def accuracy(result: Result, evaluation: SetFacts | None) -> str:
    """Say what the slim artefact's answers are worth, in one or two sentences."""
    if evaluation is None or result.slim.agreement is None:
        return "Accuracy was not measured: the recipe has no [evaluation]."
    images = f"{evaluation.images:,} images"
    same = f"It answers like the dense model on {share(result.slim.agreement)} of {images}"
    if result.slim.top1 is None or result.drop is None:
        return f"{same}; they have no labels, so top-1 is unknown.{_precision_cost(result)}"
    return f"{same}; top-1 is {share(result.slim.top1)}, {_lost(result.drop)}.{_precision_cost(result)}"


def _precision_cost(result: Result) -> str:
    """Say what the precision costs, where there is an artefact in fp32 to compare with."""
    against = result.fp32
    if against is None:
        return ""
    lost = f", {_lost(against.drop)}" if against.drop else ""
    return f" Against the dense model in fp32: {share(against.agreement)} alike{lost}."


def reduction(facts: ReductionFacts) -> str:
    """Say where tokens become fewer, and how: "merge in blocks.3, 37 to 24 tokens"."""
    return f"{facts.strategy} in {facts.place}, {facts.before} to {facts.after} tokens"


def int8(facts: Int8Facts) -> str:
    """Say what a graph in int8 costs, which layers went back to float for that, and why."""
    what = f"{facts.side} in int8"
    returned = [layer for layer in facts.layers if layer.returned is not None]
    loss = f"{_int8_loss(facts.after)}, on {facts.images} calibration images against fp32"
    if not returned:
        return f"{what}: all {len(facts.layers)} layers; {loss}."
    total = sum(layer.macs for layer in facts.layers)
    share_of_macs = share(sum(layer.macs for layer in returned) / total)
    limits = {"max_drop": facts.max_drop, "min_agreement": facts.min_agreement}
    asked = " and ".join(f"{name} {limit:g}" for name, limit in limits.items() if limit is not None)
    return (
        f"{what}: {len(returned)} of {len(facts.layers)} layers ({share_of_macs} of their MACs) went back to"
        f" float for {asked}; with all in int8: {_int8_loss(facts.before)}; now: {loss}."
    )


def _int8_loss(loss: Int8Loss) -> str:
    return f"{loss.expected_drop:.2f} points of top-1 expected to be lost, {share(loss.agreement)} alike"


def training(report: Report) -> str | None:
    """Say what the training changed; None where nothing was trained or evaluated."""
    tune = report.tune
    if tune is None or tune.agreement_before is None:
        return None
    after = next(result.slim for result in report.results if label(result) == tune.measured_on)
    text = f"agreement from {share(tune.agreement_before)} to {share(after.agreement)}"
    if tune.top1_before is not None:
        text += f", top-1 from {share(tune.top1_before)} to {share(after.top1)}"
    return f"The training took {text} ({tune.measured_on})."


def budget(report: Report) -> list[str]:
    """Say what the budget was, what came out beside what was predicted, and what was decided for it."""
    facts = report.budget
    if facts is None:
        return []
    table = [] if facts.table is None else [_table(facts.table)]
    spent = f"Budget: {_spent(facts)}{_other_precision(report)}; {_judged(facts)}."
    return [spent, *table, *_broken(report, facts), " ".join(facts.decisions)]


_NAMED = 3
"""Of the blocks that keep too little of their promise, so many are named."""


def _broken(report: Report, facts: BudgetFacts) -> list[str]:
    """Name the blocks that lose most of what their MACs promise; nothing where all keep enough."""
    worst = [_of_promise(report, row) for row in breaking(report)[:_NAMED]]
    if not worst:
        return []
    measured = "Blocks were timed alone, and are scaled to what the whole models took"
    times = "The times are planned" if block_scales(facts) is None else measured
    text = f"Of what MACs promise, most is lost in {'; then '.join(worst)}"
    return [f"{text}. {times}; those of the dense blocks are the latency table's."]


def _of_promise(report: Report, row: BudgetRow) -> str:
    """Say how much a block keeps, what was done to it, and how fast it would be if it kept all."""
    assert row.kept is not None  # it is one of `breaking`
    assert row.time is not None
    wanted = milliseconds(row.time * row.kept, row.time)
    times = f"{milliseconds(row.time)} ms where {wanted} would keep it"
    return f"{row.name}, which keeps {kept(row.kept)} ({_done_to(report, row)}; {times})"


_COUNTS = {"heads": "heads", "qk_dim": "QK dims", "vo_dim": "VO dims", "hidden": "hidden neurons"}


def _done_to(report: Report, row: BudgetRow) -> str:
    """Say what makes a block cheaper: fewer tokens behind its attention, else all that there is less of."""
    fewer = [one for one in report.plan.reductions if one.place == row.name]
    if fewer:
        return f"{fewer[0].strategy}, {fewer[0].before} to {fewer[0].after} tokens"
    if row.tokens_out < row.tokens_in:
        return "dead tokens dropped"
    block = next(block for block in report.blocks if block.name == row.name)
    counts = [(row.tokens_in, block.dense.tokens, "tokens")]
    counts += [(getattr(block.slim, key), getattr(block.dense, key), word) for key, word in _COUNTS.items()]
    less = [f"{slim} of {dense} {word}" for slim, dense, word in counts if slim < dense]
    return ", ".join(less) or "fewer MACs"


def _judged(facts: BudgetFacts) -> str:
    """Say how far the slim model's answers are from the dense one's, and on which images."""
    kl = f"KL(dense || slim) {facts.measured_kl:.3g}"
    alone = (
        f"the cuts one by one add up to {facts.predicted_kl:.3g} on a third of {facts.images} calibration"
        " images, fitted to the others"
    )
    if facts.judged == "evaluation":
        return f"{kl} on {facts.judged_images} evaluation images, {alone}"
    return f"{kl} on calibration images that it was fitted to, so more on others; {alone}"


_RESTLESS = 0.1
"""Change of a machine's speed while a table was timed of which a reader is told, as a share."""


def _table(facts: TableFacts) -> str:
    """Say how far off the latency table is that a budget was planned by."""
    text = f"The latency table is of {facts.parts} parts, the worst of which is {share(facts.worst_part)} off"
    if abs(facts.drift) > _RESTLESS:
        change = "slower" if facts.drift > 0 else "faster"
        text += f", timed on a machine that became {share(abs(facts.drift))} {change} meanwhile"
    worst = max(facts.whole, key=lambda model: abs(model.error))
    way = "above" if worst.error > 0 else "below"
    return (
        f"{text}. Of {len(facts.whole)} whole models, each predicted from the others, the one that is"
        f" {worst.name} is farthest off: {share(abs(worst.error))} {way} what it took."
    )


def _spent(facts: BudgetFacts) -> str:
    """Say what the slim model costs beside what it may."""
    if facts.unit != "ms":
        unit = "MACs" if facts.unit == "macs" else "params"
        dense = round(facts.dense)
        used = count(round(facts.counted or 0), dense)
        return f"{used} of at most {count(round(facts.limit), dense)} {unit} are used"
    planned = f"{milliseconds(facts.predicted)} of at most {milliseconds(facts.limit)} ms were planned"
    if facts.counted is None or facts.dense_measured is None:
        return planned
    took = f"{planned}, {milliseconds(facts.counted)} ms measured ({facts.measured_on})"
    faster = f"that is {facts.dense_measured / facts.counted:.2f}x the dense model's speed"
    if facts.key == "latency_ms":
        return f"{took}, where {facts.limit:g} ms were asked; {faster}"
    return f"{took}; {faster}, where {facts.dense / facts.limit:.2f}x was asked"


def _other_precision(report: Report) -> str:
    """Say it where another precision was chosen than the one that a budget of time planned for."""
    planned = planned_for(report)
    if planned is None:
        return ""
    chosen = [r.precision for r in report.results if r.target == planned.target and r.chosen]
    if not chosen or planned.precision in chosen:
        return ""
    return (
        f"; planned for {planned.precision}, {_listed(chosen)} {'was' if len(chosen) == 1 else 'were'} chosen"
    )


def sweep_findings(sweep: Sweep) -> list[str]:
    """Say what a sweep means: how far the curve goes, and which points are missing from it, and why."""
    said = [_reach(sweep, target) for target in _targets(sweep)]
    said += [
        f"{budget_text(sweep, p)} was not built: {p.failed}" for p in sweep.points if p.failed is not None
    ]
    return [*said, *(f"{budget_text(sweep, p)}: {p.missed}" for p in sweep.points if p.missed is not None)]


def budget_text(sweep: Sweep, point: SweepPoint) -> str:
    """Write a point's budget: "macs 0.8"."""
    value = point.asked
    return f"{sweep.budget} {value if isinstance(value, str) else f'{value:g}'}"


def _targets(sweep: Sweep) -> list[str]:
    return list(dict.fromkeys(result.target for point in sweep.points for result in point.results))


def _reach(sweep: Sweep, target: str) -> str:
    """Say which points of a target no other beats, from the most accurate to the fastest."""
    front = [
        (result.slim.latency_ms.median, point, result)
        for point in sweep.points
        for result in point.results
        if result.target == target and result.front
    ]
    if not front:
        return f"{target}: no point is both trusted and better than the dense model in time or accuracy."
    ends = [front[0]] if len(front) == 1 else [max(front, key=_ms), min(front, key=_ms)]
    places = [
        f"{budget_text(sweep, point)} ({result.precision}, {milliseconds(ms)} ms, {_worth(result)},"
        f" {ratio(result.speedup.measured)})"
        for ms, point, result in ends
    ]
    if len(front) == 1:
        return f"{target}: one point is beaten by none in both time and accuracy, {places[0]}."
    return (
        f"{target}: {len(front)} points are beaten by none in both time and accuracy, from {places[0]} to"
        f" {places[1]}."
    )


def _ms(place: tuple[float, SweepPoint, SweepResult]) -> float:
    return place[0]


def _worth(result: SweepResult) -> str:
    if result.slim.top1 is not None:
        return f"top-1 {share(result.slim.top1)}"
    return f"agreement {share(result.slim.agreement)}"


def _lost(drop: Drop) -> str:
    if drop.points >= 0:
        return f"{points(drop.points)} points lost ({points_interval(drop.interval)})"
    low, high = drop.interval
    return f"{points(-drop.points)} points gained ({points_interval((-high, -low))})"


def findings(report: Report) -> list[str]:
    """Say what the report means: a sentence or two for every candidate that needs one."""
    offered = [r for r in report.results if r.chosen] or [r for r in report.results if r.refused is None]
    said = [f"{label(result)}: {speed(result)} {accuracy(result, report.evaluation)}" for result in offered]
    trained = [text] if (text := training(report)) is not None else []
    none = ["No candidate is offered: all were refused."] if report.results and not offered else []
    refused = [f"{label(r)} refused: {r.refused}." for r in report.results if r.refused is not None]
    others = [
        r
        for r in report.results
        if r.verdict == "untrusted" and r not in offered and r.why not in (r.refused or "")
    ]
    untrusted = [f"{label(r)} untrusted: {r.why}." for r in others]
    limited = [int8(f) for f in report.int8 if any(layer.returned is not None for layer in f.layers)]
    kept = [*said, *trained, *budget(report), *none, *refused, *untrusted]
    return [*kept, *_missing(report), *limited, *_unjudged(report), *_parsers(report)]


_ACCURACY_GATES = ("max_drop", "min_agreement")


def _unjudged(report: Report) -> list[str]:
    """Say which limits nobody judged: those of targets that wait for their board, and accuracy on boards."""
    waiting = unmeasured(report.kits, report.results)
    said = []
    for kit in report.kits:
        gates = {
            name: value
            for name, value in kit.gates.items()
            if kit.target in waiting or name in _ACCURACY_GATES
        }
        limits = " and ".join(f"{name} {value:g}" for name, value in gates.items())
        why = (
            "was not measured"
            if kit.target in waiting
            else "was measured on its board, which knows no accuracy"
        )
        if limits:
            said.append(f"{kit.target} {why}: {limits} {'was' if len(gates) == 1 else 'were'} not judged.")
    return said


def _missing(report: Report) -> list[str]:
    """Say which candidates there is no artefact of, and why."""
    alike: dict[tuple[str, str], list[str]] = {}
    for one in report.not_built:
        alike.setdefault((one.target, one.why), []).append(one.precision)
    return [f"{target} {_listed(names)} not built: {why}." for (target, why), names in alike.items()]


def _parsers(report: Report) -> list[str]:
    """Say what a parser said of the graphs of each target; both sides where none is named."""
    alike: dict[tuple[str, str], dict[str, list[str]]] = {}
    for one in report.preflights:
        asked = f"{one.parser} {one.outcome} it" if one.parser else "not checked"
        said = f"{asked}: {one.why}"
        if one.outcome == "accepted":
            said = f"accepted by the parser of {one.parser}"
        alike.setdefault((one.target, said), {}).setdefault(one.precision, []).append(one.side)
    return [
        f"Graphs for {target}, {_listed([_of_sides(*one) for one in found.items()])}: {said}."
        for (target, said), found in alike.items()
    ]


def _of_sides(precision: str, sides: list[str]) -> str:
    return precision if len(sides) > 1 else f"{precision} {sides[0]}"


def _listed(names: Sequence[str]) -> str:
    """Write names as "fp32, fp16 and int8"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
