"""The report of a build, put together from what its stages found."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue

from edgevit.board import read_machine
from edgevit.cost import model_cost
from edgevit.images import Images
from edgevit.models.arch import Arch, BlockDims
from edgevit.pipeline.fused import fused_warnings, fusing_targets
from edgevit.pipeline.inputs import Inputs
from edgevit.pipeline.models import Archs
from edgevit.pipeline.sets import Sets, seen_share
from edgevit.pipeline.targets import Measured
from edgevit.plan import BlockPlan, Plan
from edgevit.report.model import (
    BlockFacts,
    BlockSide,
    BudgetFacts,
    ModelSize,
    ModelSizes,
    PlanBlock,
    PlanFacts,
    ReductionFacts,
    Report,
    Result,
    SearchFacts,
    SetFacts,
    SourceFacts,
    StageFacts,
    TuneFacts,
)
from edgevit.report.phrases import label

_BUSY = 1.5


@dataclass(frozen=True)
class Found:
    """What the stages found, beside the candidates."""

    archs: Archs
    plan: Plan
    random_weights: bool
    sets: Sets
    versions: dict[str, str]
    searches: tuple[SearchFacts, ...]
    tune: TuneFacts | None
    budget: BudgetFacts | None = None


def make_report(
    inputs: Inputs,
    found: Found,
    measured: Measured,
    stages: Sequence[StageFacts],
) -> Report:
    """Put the report together."""
    recipe, archs = inputs.recipe.recipe, found.archs
    sets, evaluation = found.sets, recipe.evaluation
    return Report(
        name=recipe.name,
        recipe_sha256=inputs.recipe.sha256,
        versions=dict(found.versions),
        warnings=(*_warnings(inputs, found), *busy_warnings(measured.results, os.cpu_count() or 1)),
        source=_source(inputs, found),
        recover=recipe.recover,
        plan=PlanFacts(
            blocks=tuple(_remaining(block, block.tokens) for block in found.plan.blocks),
            reductions=tuple(_reductions(archs.slim)),
            dead_tokens=found.plan.dead_tokens,
            methods=tuple(options.method for options in recipe.methods),
        ),
        models=ModelSizes(dense=_size(archs.dense), slim=_size(archs.slim)),
        blocks=tuple(_blocks(archs)),
        calibration=_set(recipe.calibration.set, sets.calibration, labelled=False)
        if recipe.calibration
        else None,
        evaluation=_set(evaluation.set, sets.evaluation, labelled=True, seen=seen_share(sets))
        if evaluation
        else None,
        budget=found.budget,
        searches=found.searches,
        tune=found.tune,
        results=measured.results,
        not_built=measured.not_built,
        int8=tuple(
            facts for made in measured.graphs.values() for graphs in made.values() for facts in graphs.int8
        ),
        preflights=measured.preflights,
        kits=tuple(facts for _, facts in measured.kits),
        machine=_machine(found.versions),
        stages=tuple(stages),
    )


def _machine(versions: dict[str, str]) -> dict[str, JsonValue]:
    facts: dict[str, JsonValue] = json.loads(json.dumps(asdict(read_machine(versions))))
    del facts["versions"]  # the report has them
    return facts


def _source(inputs: Inputs, found: Found) -> SourceFacts:
    model, dense = inputs.recipe.recipe.model, found.archs.dense
    named = Path(model.weights).name if model.weights else "pretrained" if model.pretrained else None
    saved = "model.safetensors" if inputs.source_sha256 else None
    return SourceFacts(
        name=model.name,
        weights="random" if found.random_weights else named or saved or "random",
        weights_sha256=inputs.source_sha256[-64:] if inputs.source_sha256 else None,
        image=dense.image,
        classes=dense.classes,
    )


def _set(name: str, images: Images | None, *, labelled: bool, seen: float | None = None) -> SetFacts | None:
    if images is None:
        return None
    return SetFacts(
        set=Path(name).stem,
        images=len(images),
        sha256=images.sha256,
        labelled=labelled and images.labels is not None,
        skipped=images.skipped_names,
        seen=seen,
    )


def _warnings(inputs: Inputs, found: Found) -> list[str]:
    sets = found.sets
    warnings = []
    if found.random_weights:
        warnings.append(
            "the weights are random: sizes and times are real, accuracy and agreement mean nothing"
        )
    trained_on = sets.tuning if sets.tuning is not sets.calibration else None
    named = (("calibration", sets.calibration), ("tuning", trained_on), ("evaluation", sets.evaluation))
    for name, images in named:
        if images is not None and images.skipped:
            total = len(images) + images.skipped
            warnings.append(f"{images.skipped} of {total} {name} images were corrupt and skipped")
    if sets.evaluation is None:
        warnings.append("no [evaluation] images: neither accuracy nor agreement is known")
    elif sets.evaluation.labels is None:
        warnings.append("the evaluation images have no labels: only the agreement is known")
    if sets.calibration is not None and sets.calibration.classes == 1 and len(sets.calibration) > 1:
        warnings.append(
            f"all {len(sets.calibration)} calibration images are of one class: what is fitted to them may"
            " not hold for others"
        )
    return [*warnings, *fused_warnings(fusing_targets(inputs), found.archs.dense, found.archs.slim)]


def busy_warnings(results: Sequence[Result], cores: int) -> list[str]:
    """Say which timings were taken beside other programs: their interval may be narrow and still be wrong.

    ONNX Runtime's threads wait for each other by spinning; with more programs than cores that multiplied the
    latency of a larger model by four and of a smaller one hardly at all. The build itself loads the machine
    with as many threads as there are cores, so that much is no sign of others.
    """
    warnings = []
    for result in results:
        load = result.protocol.get("load_1min")
        before = load[0] if isinstance(load, list) and load else None
        if isinstance(before, int | float) and before > _BUSY * cores:
            warnings.append(
                f"{label(result)} was timed at a load of {before:.1f} on {cores} cores:"
                " other programs were running, time it again on a quiet machine before you rely on it"
            )
    return warnings


def _reductions(arch: Arch) -> Iterator[ReductionFacts]:
    """Say where tokens become fewer, in the order of the way through the model."""
    places = [("input", arch.tokens, arch.merged, arch.choice)]
    places += [
        (f"blocks.{index}", block.queries, block.merged, block.choice)
        for index, block in enumerate(arch.blocks)
    ]
    for place, before, gone, choice in places:
        if gone:
            strategy = choice.strategy if choice is not None else "merge"
            yield ReductionFacts(place=place, strategy=strategy, before=before, after=before - gone)


def _size(arch: Arch) -> ModelSize:
    total = model_cost(arch).total
    return ModelSize(macs=total.macs, params=total.params)


def _blocks(archs: Archs) -> list[BlockFacts]:
    sides = zip(_sides(archs.dense), _sides(archs.slim), strict=True)
    return [
        BlockFacts(name=f"blocks.{index}", dense=dense, slim=slim)
        for index, (dense, slim) in enumerate(sides)
    ]


def _sides(arch: Arch) -> list[BlockSide]:
    costs = model_cost(arch).blocks
    return [
        BlockSide(**_remaining(block, block.tokens_out).model_dump(), macs=cost.macs, params=cost.params)
        for block, cost in zip(arch.blocks, costs, strict=True)
    ]


def _remaining(block: BlockPlan | BlockDims, tokens: int) -> PlanBlock:
    """Return the dims of a block as the report has them: of a plan, or of a model."""
    return PlanBlock(
        heads=block.heads,
        qk_dim=block.qk_dim,
        vo_dim=block.vo_dim,
        hidden=block.hidden,
        tokens=tokens,
        hidden_used=block.per_image.used if block.per_image else None,
        mlp_inputs=block.mlp_inputs,
    )
