"""What the slim model answered before it was trained: scored like every other, on an artefact of its own."""

from __future__ import annotations

from edgevit.images import Images
from edgevit.measure.accuracy import agreement, top1
from edgevit.pipeline.artefacts import build_pair, compare_with_onnx
from edgevit.pipeline.candidate import Candidate, score
from edgevit.pipeline.graphs import Form
from edgevit.pipeline.precision import GraphFiles
from edgevit.pipeline.stages import Stages
from edgevit.report.model import TuneFacts

SIDE = "untuned"
"""How stages and messages call the model."""


def score_untuned(
    stages: Stages, facts: TuneFacts, files: GraphFiles, beside: tuple[Candidate, Form], evaluation: Images
) -> TuneFacts:
    """Add to the facts of a training what the model was worth before it.

    It is built and run as a candidate was, in the same runtime and precision, so that the two differ in their
    weights and in nothing else.

    Args:
        stages: runs the stages.
        facts: what the training did.
        files: graphs of the slim model before it, as `SIDE`.
        beside: a candidate of the trained model, and the form of its graph.
        evaluation: the images.

    Raises:
        ExportError, ParityError: a file is not what it should be.
    """
    candidate, form = beside
    graphs = files.of(form, candidate.precision)
    with build_pair(stages, (candidate.target, candidate.precision), graphs) as artefacts:
        compare_with_onnx(artefacts, SIDE, graphs.by_side[SIDE], files.probe)
        logits = score(artefacts, SIDE, evaluation)
        label = artefacts.label
    return facts.model_copy(
        update={
            "measured_on": label,
            "top1_before": top1(logits, evaluation.labels) if evaluation.labels is not None else None,
            "agreement_before": agreement(candidate.logits["dense"], logits),
        }
    )
