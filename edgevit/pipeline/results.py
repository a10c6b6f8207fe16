"""What one candidate's measurements say, beside what its MACs promised."""

from __future__ import annotations

from pydantic import JsonValue

from edgevit.cost import model_cost
from edgevit.images import Images
from edgevit.measure.accuracy import Logits, agreement, correct, mean_kl, paired_bootstrap, top1
from edgevit.pipeline.candidate import Candidate
from edgevit.pipeline.models import Archs
from edgevit.report.model import ArtefactFacts, Drop, Latency, Result, SlimFacts, Speedup

_SEED = 0


def make_result(
    candidate: Candidate, archs: Archs, evaluation: Images | None, parity: dict[str, float]
) -> Result:
    """Put one candidate's measurements beside what its MACs promised.

    Args:
        candidate: what was measured.
        archs: dims of both models.
        evaluation: the images that `candidate.logits` were computed for.
        parity: how far the links before the artefact differ, by name.
    """
    times, logits = candidate.times, candidate.logits
    estimated = model_cost(archs.dense).total.macs / model_cost(archs.slim).total.macs
    labels = evaluation.labels if evaluation is not None else None
    tops = {side: top1(values, labels) if labels is not None else None for side, values in logits.items()}
    facts: dict[str, JsonValue] = {**parity, **candidate.parity}
    if logits:
        facts["slim_dense_mean_kl"] = mean_kl(logits["dense"], logits["slim"])
    dense = _artefact(candidate, "dense", tops.get("dense"), times.dense)
    slim = _artefact(candidate, "slim", tops.get("slim"), times.slim)
    return Result(
        target=candidate.target.name,
        precision=candidate.precision,
        device=times.device,
        protocol=times.protocol,
        chosen=False,
        refused=None,
        dense=dense,
        slim=SlimFacts(
            **slim.model_dump(),
            agreement=agreement(logits["dense"], logits["slim"]) if logits else None,
        ),
        drop=_drop(logits, evaluation),
        speedup=Speedup(
            measured=times.speedup,
            interval=times.interval,
            estimated=estimated,
            promise=times.speedup / estimated,
        ),
        parity=facts,
        verdict="trusted" if times.trusted else "untrusted",
        why=times.why,
    )


def _artefact(candidate: Candidate, side: str, share: float | None, latency: Latency) -> ArtefactFacts:
    artefact = candidate.artefacts[side]
    return ArtefactFacts(
        artefact=candidate.entry(side),
        sha256=artefact.sha256,
        bytes=artefact.bytes,
        top1=share,
        latency_ms=latency,
    )


def _drop(logits: dict[str, Logits], evaluation: Images | None) -> Drop | None:
    if evaluation is None or evaluation.labels is None:
        return None
    dense, slim = (correct(logits[side], evaluation.labels) for side in ("dense", "slim"))
    interval = paired_bootstrap(dense, slim, _SEED)
    points = 100 * (float(dense.mean()) - float(slim.mean()))
    return Drop(points=points, interval=(interval.low, interval.high))
