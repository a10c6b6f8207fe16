"""What one candidate's measurements say, beside what its MACs promised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from edgevit.cost import model_cost
from edgevit.images import Images
from edgevit.measure.accuracy import Logits, agreement, correct, mean_kl, paired_bootstrap, top1
from edgevit.pipeline.candidate import Candidate
from edgevit.pipeline.models import Archs
from edgevit.report.model import (
    AgainstFp32,
    ArtefactFacts,
    Drop,
    Latency,
    Result,
    SlimFacts,
    Speedup,
)
from edgevit.target import Precision

_SEED = 0


def make_results(
    candidates: Sequence[Candidate],
    archs: Archs,
    evaluation: Images | None,
    parity: Mapping[Precision, dict[str, float]],
) -> list[Result]:
    """Put each candidate of a target beside what its MACs promised, and beside the one in fp32.

    Args:
        candidates: what was measured.
        archs: dims of both models.
        evaluation: the images that `Candidate.logits` were computed for.
        parity: how far the links before the artefact differ, by name, for each precision.
    """
    reference = next((one for one in candidates if one.precision == "fp32"), None)
    results = []
    for one in candidates:
        made = _make_result(one, archs, evaluation, parity[one.precision])
        if reference is not None and one is not reference and one.logits:
            made = made.model_copy(update={"fp32": _against_fp32(one, reference, evaluation)})
        results.append(made)
    return results


def estimate_speedup(archs: Archs) -> float:
    """Return what the MACs let hope for: those of dense over those of slim."""
    return model_cost(archs.dense).total.macs / model_cost(archs.slim).total.macs


def _against_fp32(candidate: Candidate, reference: Candidate, evaluation: Images | None) -> AgainstFp32:
    dense = reference.logits["dense"]
    return AgainstFp32(
        dense_agreement=agreement(dense, candidate.logits["dense"]),
        dense_drop=_drop(dense, candidate.logits["dense"], evaluation),
        agreement=agreement(dense, candidate.logits["slim"]),
        drop=_drop(dense, candidate.logits["slim"], evaluation),
    )


def _make_result(
    candidate: Candidate, archs: Archs, evaluation: Images | None, parity: dict[str, float]
) -> Result:
    times, logits = candidate.times, candidate.logits
    estimated = estimate_speedup(archs)
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
        drop=_drop(logits["dense"], logits["slim"], evaluation) if logits else None,
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


def _drop(reference: Logits, candidate: Logits, evaluation: Images | None) -> Drop | None:
    if evaluation is None or evaluation.labels is None:
        return None
    dense, slim = (correct(logits, evaluation.labels) for logits in (reference, candidate))
    interval = paired_bootstrap(dense, slim, _SEED)
    points = 100 * (float(dense.mean()) - float(slim.mean()))
    return Drop(points=points, interval=(interval.low, interval.high))
