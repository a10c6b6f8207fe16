"""What the slim model answered before it was trained: scored like every other, on an artefact of its own."""

from __future__ import annotations

from edgevit.measure.accuracy import agreement, top1
from edgevit.pipeline.artefacts import build_pair, compare_with_onnx
from edgevit.pipeline.candidate import Candidate, score
from edgevit.pipeline.graphs import Form, make_probe
from edgevit.pipeline.models import Saved
from edgevit.pipeline.precision import GraphFiles
from edgevit.pipeline.sets import Sets
from edgevit.pipeline.stages import Stages
from edgevit.plan import Plan, plan_sha256
from edgevit.report.model import TuneFacts

_SIDE = "untuned"


def score_untuned(
    stages: Stages,
    facts: TuneFacts,
    untuned: Saved,
    beside: tuple[Candidate, Form],
    judged_by: tuple[Plan, Sets],
) -> TuneFacts:
    """Add to the facts of a training what the model was worth before it.

    It is built and run as a candidate was, in the same runtime and precision, so that the two differ in their
    weights and in nothing else.

    Args:
        stages: runs the stages.
        facts: what the training did.
        untuned: the slim model before it.
        beside: a candidate of the trained model, and the form of its graph.
        judged_by: the plan that both follow, and the images, those of the evaluation among them.

    Raises:
        ExportError, ParityError: a file is not what it should be.
    """
    (candidate, form), (plan, sets) = beside, judged_by
    evaluation = sets.evaluation
    assert evaluation is not None
    probe = make_probe(evaluation, untuned.loaded.model.arch)
    files = GraphFiles(stages, {_SIDE: untuned}, plan_sha256(plan), probe, sets.calibration)
    graphs = files.of(form, candidate.precision)
    with build_pair(stages, (candidate.target, candidate.precision), graphs) as artefacts:
        compare_with_onnx(artefacts, _SIDE, graphs.by_side[_SIDE], probe)
        logits = score(artefacts, _SIDE, evaluation)
        label = artefacts.label
    return facts.model_copy(
        update={
            "measured_on": label,
            "top1_before": top1(logits, evaluation.labels) if evaluation.labels is not None else None,
            "agreement_before": agreement(candidate.logits["dense"], logits),
        }
    )
