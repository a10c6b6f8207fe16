"""A report as a real build would give it: hand-made, the same on every call."""

from __future__ import annotations

import random
import statistics

from edgevit.report.model import (
    ArtefactFacts,
    BlockFacts,
    BlockSide,
    BudgetBlock,
    BudgetFacts,
    Drop,
    Int8Facts,
    Int8Layer,
    Int8Loss,
    Latency,
    ModelSize,
    ModelSizes,
    NotBuilt,
    PlanBlock,
    PlanFacts,
    Report,
    Result,
    SetFacts,
    SlimFacts,
    SourceFacts,
    Speedup,
    StageFacts,
    TableFacts,
    TimedWhole,
)

_DEVICE = {
    "name": "Intel(R) Xeon(R) Platinum 8481C",
    "runtime": "openvino 2026.4.0",
    "threads": 2,
    "affinity": [0, 1],
    "governor": None,
}


def latency(median_ms: float, seed: int, count: int = 300) -> Latency:
    """Draw times around a median, with a slow tail as real ones have."""
    draw = random.Random(seed)
    samples = [median_ms * (0.97 + draw.lognormvariate(-3.6, 0.7)) for _ in range(count)]
    samples = [round(s * median_ms / statistics.median(samples), 4) for s in samples]
    cuts = statistics.quantiles(samples, n=100)
    median = statistics.median(samples)
    return Latency(
        median=median,
        interval=(round(median * 0.994, 4), round(median * 1.006, 4)),
        p90=cuts[89],
        p99=cuts[98],
        mad=statistics.median(abs(s - median) for s in samples),
        first=round(median * 3.1, 4),
        samples=tuple(samples),
    )


def result(precision: str, dense_ms: float, slim_ms: float, *, top1: float | None = 0.786) -> Result:
    """Make the result of one precision on openvino-cpu."""
    measured = dense_ms / slim_ms
    wide = {"fp32": 4, "bf16": 2, "int8": 1}[precision]
    return Result(
        target="openvino-cpu",
        precision=precision,
        device=_DEVICE,
        protocol={
            "runs_per_burst": 10,
            "timing": {"warmup_s": 1.0, "seconds": 10.0},
            "load_1min": [0.4, 0.6],
        },
        chosen=False,
        refused=None,
        dense=ArtefactFacts(
            artefact=f"openvino-cpu/dense.{precision}.xml",
            sha256="d" * 64,
            bytes=5_717_416 * wide + 180_000,
            top1=None if top1 is None else top1 + 0.006,
            latency_ms=latency(dense_ms, seed=1),
        ),
        slim=SlimFacts(
            artefact=f"openvino-cpu/slim.{precision}.xml",
            sha256="5" * 64,
            bytes=3_902_000 * wide + 180_000,
            top1=top1,
            latency_ms=latency(slim_ms, seed=2),
            agreement=0.943,
        ),
        drop=None if top1 is None else Drop(points=0.6, interval=(-0.2, 1.4)),
        speedup=Speedup(
            measured=measured,
            interval=(measured * 0.98, measured * 1.02),
            estimated=1.608,
            promise=measured / 1.608,
        ),
        parity={
            "slim_torch_onnx_max_abs": 3.1e-6,
            "slim_torch_onnx_allowed": 1e-4,
            "slim_torch_onnx_top1_agreement": 1.0,
            "slim_dense_mean_kl": 0.304,
        },
        verdict="trusted",
        why="300 samples each in 30 bursts; the 95 % interval of the speed-up is 4.0 % wide",
    )


def blocks() -> tuple[BlockFacts, ...]:
    """Make twelve blocks of DeiT-Tiny, the later ones cut more."""
    dense = BlockSide(heads=3, qk_dim=64, vo_dim=64, hidden=768, tokens=197, macs=102_200_000, params=444_864)
    made = []
    for index in range(12):
        hidden = 640 - 32 * (index // 2)
        slim = BlockSide(
            heads=3 if index < 8 else 2,
            qk_dim=48,
            vo_dim=48,
            hidden=hidden,
            tokens=197 if index < 11 else 1,
            macs=int(102_200_000 * (0.2 + 0.6 * hidden / 768) * (1.0 if index < 11 else 0.6)),
            params=int(444_864 * (0.2 + 0.6 * hidden / 768)),
        )
        made.append(BlockFacts(name=f"blocks.{index}", dense=dense, slim=slim))
    return tuple(made)


def report(name: str = "deit-tiny-orin", *, labelled: bool = True, slim_ms: float = 5.23) -> Report:
    """Make a report with a chosen, a trusted, an untrusted and refused, and a missing candidate."""
    fp32 = result("fp32", 7.42, slim_ms, top1=0.786 if labelled else None).model_copy(update={"chosen": True})
    bf16 = result("bf16", 7.60, slim_ms * 1.06, top1=0.784 if labelled else None)
    int8 = result("int8", 6.10, 6.34, top1=0.771 if labelled else None).model_copy(
        update={
            "refused": "slower than fp32 on this target: 6.34 ms against 5.23 ms",
            "verdict": "untrusted",
            "why": "the candidate's second half took +11.2% against its first, allowed 5.0%",
        }
    )
    facts = blocks()
    plan = [PlanBlock(**block.slim.model_dump(exclude={"macs", "params"})) for block in facts]
    return Report(
        name=name,
        recipe_sha256="3fa2" * 16,
        versions={"edgevit": "0.1.0", "torch": "2.15.0", "openvino": "2026.4.0", "onnx": "1.23.0"},
        warnings=("2 of 650 evaluation images were corrupt and skipped",),
        source=SourceFacts(
            name="deit_tiny_patch16_224",
            weights="deit_tiny.safetensors",
            weights_sha256="ab" * 32,
            image=(3, 224, 224),
            classes=1000,
        ),
        recover="closed-form",
        plan=PlanFacts(blocks=tuple(plan), dead_tokens=True, methods=("coupled-dims",)),
        models=ModelSizes(
            dense=ModelSize(macs=1_253_710_848, params=5_717_416),
            slim=ModelSize(macs=779_671_000, params=3_902_000),
        ),
        blocks=facts,
        calibration=SetFacts(set="my-line", images=256, sha256="c" * 64, labelled=False, skipped=()),
        evaluation=SetFacts(
            set="my-val", images=648, sha256="e" * 64, labelled=labelled, skipped=("0007.jpg", "0113.jpg")
        ),
        results=(fp32, bf16, int8),
        not_built=(
            NotBuilt(
                target="orin-nano", precision="fp16", why="no TensorRT here: pip install edgevit[tensorrt]"
            ),
        ),
        machine={
            "cpu": "Intel(R) Xeon(R) Platinum 8481C",
            "cores": 2,
            "kernel": "6.12",
            "flags": ["amx", "avx2"],
        },
        stages=tuple(
            StageFacts(name=stage, seconds=seconds, reused=reused, peak_rss_bytes=int(rss * 1e6))
            for stage, seconds, reused, rss in [
                ("load", 1.21, True, 610.0),
                ("plan", 0.02, True, 611.0),
                ("slim", 41.7, False, 1422.0),
                ("export", 6.9, False, 1424.0),
                ("build openvino-cpu", 4.4, False, 1502.0),
                ("measure openvino-cpu", 71.3, False, 1510.0),
            ]
        ),
    )


def time_budget() -> BudgetFacts:
    """Make a budget of 1.5x in fp32: 0.3 ms are in front of the blocks and behind them, 0.6 in each block.

    Timed alone, the slim blocks take 0.4 ms, the last one 0.3: 5.0 with the rest, where the whole took 5.23.
    """
    whole = (
        TimedWhole(name="half of all widths", measured=4.0, predicted=4.04),
        TimedWhole(name="merged once to 60 %", measured=5.0, predicted=4.8),
    )
    return BudgetFacts(
        unit="ms",
        key="speedup",
        asked=1.5,
        limit=5.0,
        dense=7.5,
        predicted=5.0,
        counted=5.23,
        dense_measured=7.42,
        measured_on="openvino-cpu fp32",
        table=TableFacts(parts=32, worst_part=0.023, drift=0.01, whole=whole),
        predicted_kl=0.05,
        measured_kl=0.03,
        images=128,
        blocks=tuple(BudgetBlock(cost=ms, dense=0.6, measured=ms, kl=0.004) for ms in [*[0.4] * 11, 0.3]),
        decisions=("All attention heads stay.",),
    )


def int8_facts(*, returned: bool = True) -> Int8Facts:
    """Make what is known of a graph in int8 with three layers, of which one or none went back to float."""
    before = Int8Loss(expected_drop=0.31, agreement=0.984, kl=0.0062)
    after = Int8Loss(expected_drop=0.08, agreement=0.992, kl=0.0041)
    return Int8Facts(
        side="slim",
        graph="opset18-batch1",
        smooth_quant=False,
        images=256,
        max_drop=0.1 if returned else None,
        min_agreement=None,
        before=before,
        after=after if returned else before,
        layers=(
            Int8Layer(
                name="blocks.0.mlp.fc2", block="blocks.0", macs=29_048_832, sqnr_db=26.7, kl=1.45e-3,
                returned=1 if returned else None,
            ),
            Int8Layer(name="patch_embed", block=None, macs=28_901_376, sqnr_db=32.0, kl=1.36e-3),
            Int8Layer(name="blocks.0.attn.k", block="blocks.0", macs=7_262_208, sqnr_db=32.1, kl=3.26e-5),
        ),
    )  # fmt: skip
