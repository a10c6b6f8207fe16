"""All targets of a build: which graphs they take, which candidates run here, which one each target keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgevit.errors import BackendUnavailableError, ParityError
from edgevit.gates import choose
from edgevit.images import Images
from edgevit.pipeline.board_results import BoardResults, kept_results
from edgevit.pipeline.candidate import Candidate, measure_candidate
from edgevit.pipeline.graphs import SIDES, Form, Graphs, Probe, make_probe
from edgevit.pipeline.inputs import CALIBRATED, Inputs, Wanted
from edgevit.pipeline.kits import KIT_FOLDER, make_kit, needs_kit
from edgevit.pipeline.models import Archs, Saved
from edgevit.pipeline.parsers import Parsers
from edgevit.pipeline.precision import GraphFiles
from edgevit.pipeline.results import estimate_speedup, make_results
from edgevit.pipeline.sets import Sets
from edgevit.pipeline.stages import Stages
from edgevit.plan import Plan, plan_sha256
from edgevit.recipe import Gates
from edgevit.report.model import KitFacts, NotBuilt, PreflightFacts, Result
from edgevit.target import TENSORRT_RUNTIMES, Precision


@dataclass(frozen=True)
class Measured:
    """What came out for all targets."""

    candidates: tuple[Candidate, ...]
    results: tuple[Result, ...]
    not_built: tuple[NotBuilt, ...]
    graphs: dict[Form, dict[Precision, Graphs]]
    preflights: tuple[PreflightFacts, ...] = ()
    kits: tuple[tuple[Path, KitFacts], ...] = ()
    """Where each kit lies in the store, and what the report says of it."""


def measure_targets(
    stages: Stages, inputs: Inputs, models: tuple[Saved, Saved], sets: Sets, plan: Plan
) -> Measured:
    """Export, build and measure for every target that the recipe names.

    Raises:
        ExportError, ParityError: a file is not what it should be.
        BackendUnavailableError: this machine can run no precision of a target.
    """
    archs = Archs(models[0].loaded.model.arch, models[1].loaded.model.arch)
    files = open_graphs(stages, inputs, dict(zip(SIDES, models, strict=True)), sets, plan)
    candidates: list[Candidate] = []
    results: list[Result] = []
    missing: list[NotBuilt] = []
    parsers, preflights = Parsers(stages), list[PreflightFacts]()
    kits: list[tuple[Path, KitFacts]] = []
    for wanted in inputs.wanted:
        graphs = graphs_for(files, inputs, wanted)
        if wanted.target.runtime in TENSORRT_RUNTIMES:
            preflights += parsers.check(wanted.target, graphs)
            if needs_kit(wanted.target):
                kit = make_kit(stages, wanted.target, graphs, files.probe)
                kits.append((kit, _kit_facts(wanted, inputs.gates)))
                brought = kept_results(stages.store.root, kit, estimate_speedup(archs))
                results += choose(brought.results, inputs.gates, wanted.section.prefer)
                missing += [*brought.not_built, *_elsewhere(kits[-1][1], brought)]
                continue
        mine = list(_candidates(stages, wanted, (graphs, files.probe), sets.evaluation, missing))
        made = make_results(mine, archs, sets.evaluation, {name: one.parity for name, one in graphs.items()})
        candidates += mine
        results += choose(made, inputs.gates, wanted.section.prefer)
    found = tuple(candidates), tuple(results), tuple(missing), files.made, tuple(preflights), tuple(kits)
    return Measured(*found)


def open_graphs(
    stages: Stages, inputs: Inputs, models: Mapping[str, Saved], sets: Sets, plan: Plan | None
) -> GraphFiles:
    """Return the graphs of a build's models, each of which is made when it is first asked for.

    Args:
        stages: runs the stages.
        inputs: the recipe and its targets.
        models: by side.
        sets: images that outputs are compared on, and that ranges are taken from.
        plan: what the slim model follows; None where the dense one is alone.
    """
    arch = next(iter(models.values())).loaded.model.arch
    probe = make_probe(sets.evaluation or sets.calibration, arch)
    follows = "" if plan is None else plan_sha256(plan)
    return GraphFiles(stages, models, follows, probe, sets.calibration, inputs.recipe.recipe.int8_limits)


def graphs_for(files: GraphFiles, inputs: Inputs, wanted: Wanted) -> dict[Precision, Graphs]:
    """Return the graphs that a target takes, by precision.

    Raises:
        ExportError, ParityError: a file is not what it should be.
    """
    form = Form.of(inputs.recipe.recipe.export, wanted.target)
    return {precision: files.of(form, precision) for precision in wanted.precisions}


def _kit_facts(wanted: Wanted, gates: Gates) -> KitFacts:
    name = wanted.target.name
    return KitFacts(
        target=name,
        precisions=wanted.precisions,
        folder=f"{name}/{KIT_FOLDER}",
        prefer=wanted.section.prefer,
        gates=gates.model_dump(exclude_none=True),
    )


def _elsewhere(kit: KitFacts, brought: BoardResults) -> list[NotBuilt]:
    """Say how to go on with the precisions that the board has not told of yet."""
    why = (
        f"it runs elsewhere: take the folder {kit.folder} there, start `python3 run.py`, and bring its report"
        " back with `edgevit report DIR --import FILE`"
    )
    return [
        NotBuilt(target=kit.target, precision=precision, why=why)
        for precision in kit.precisions
        if precision not in brought.precisions
    ]


def _candidates(
    stages: Stages,
    wanted: Wanted,
    checked: tuple[Mapping[Precision, Graphs], Probe],
    evaluation: Images | None,
    missing: list[NotBuilt],
) -> Iterator[Candidate]:
    """Yield the candidates that this machine can run; those that it cannot go to `missing`.

    An int8 or fp16 artefact that computes something else than its graph goes there too, beside fp32.

    Raises:
        BackendUnavailableError: it can run none of them.
        ParityError: an artefact in floating point does not compute what its graph does.
    """
    (graphs, probe), target, reasons = checked, wanted.target, []
    for precision in wanted.precisions:
        try:
            yield measure_candidate(stages, (target, precision), graphs[precision], probe, evaluation)
        except ParityError as error:
            if precision not in CALIBRATED:
                raise
            missing.append(NotBuilt(target=target.name, precision=precision, why=str(error)))
        except BackendUnavailableError as error:
            reasons.append(error)
            missing.append(NotBuilt(target=target.name, precision=precision, why=str(error)))
    if len(reasons) == len(wanted.precisions):
        raise reasons[0]
