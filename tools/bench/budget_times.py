"""What budgets.py times beside its recipes: uniform plans, widths of a DeiT-S, and the cuts of a DeiT-B."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import speed
from closed_form import open_bench
from record import Bound, Figure, Row
from subjects import (
    TOLD,
    Cut,
    artefact_logits,
    build_artefact,
    cut_model,
    decode_now,
    load_deit_tiny,
    open_set,
)

from edgevit.backends import get_backend
from edgevit.cost import model_cost
from edgevit.disk import sha256_file
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.precision import quantise
from edgevit.measure.accuracy import agreement, correct, paired_bootstrap, top1
from edgevit.measure.table import LatencyCost, LatencyTable
from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.models.arch import Arch
from edgevit.models.layers import SlimViT
from edgevit.models.load import ModelSource, load_model, load_saved
from edgevit.pipeline.graphs import Form, Graph
from edgevit.pipeline.latency import measure_table
from edgevit.pipeline.stages import Stages
from edgevit.plan import Counts, Kind, Plan
from edgevit.prune.allocate import allocate, choices_of
from edgevit.prune.curves import Curve, Sensitivity
from edgevit.prune.sensitivity import CutShares, measure_sensitivity
from edgevit.slim import SlimOptions
from edgevit.slim.stream import tensor_batches
from edgevit.store import Store
from edgevit.target import Precision, Target

WANTED_POINTS = Bound(low=2.0)
WANTED_TABLE_MINUTES = Bound(high=5.0)
WANTED_BASE_MINUTES = Bound(high=45.0)
WIDTHS_SPEEDUP = 1.5
CALIBRATION = 1000
_BASE, _BASE_IMAGES = "deit_base_patch16_224", 128
_NEURONS = 32  # between two uniform plans, with as many thirds of 8 dims


@dataclass(frozen=True)
class Promise:
    """A precision, and what share of the estimate is wanted in it."""

    precision: Precision
    wanted: float


PRECISIONS = {
    "fp32": Promise("fp32", 0.95),
    "bf16": Promise("bf16", 0.90),
    "int8": Promise("int8", 0.85),
}


def match_uniform(built: Path, bench: speed.Bench, target: Target, *, quick: bool) -> Row:
    """Find the widths that, the same in every block, take as long as a build's plan; compare the accuracy.

    Args:
        built: a finished build of a budget.
        bench: how pairs are timed.
        target: that both run on.
        quick: few images, and numbers that mean nothing.
    """
    judging = open_bench(target, 32 if quick else None, bench.folder)
    ours = load_saved(built).model
    artefact = build_artefact(ours, target, bench.folder / "ours")

    def timed(share: int) -> Figure:
        cut = cut_model(judging.dense, _uniform(share), SlimOptions("none"), None)
        other = build_artefact(cut, target, bench.folder / f"uniform{share}")
        found = speed.time_pair(bench, other, artefact, judging.dense.arch.image).speedup()
        TOLD.say(f"{_uniform(share).name}: {found} times as long as the plan")
        return found

    low, high = 6, 24
    ratios = {}
    while high - low > 1:
        middle = (low + high) // 2
        ratios[middle] = timed(middle)
        low, high = (middle, high) if ratios[middle].value < 1 else (low, middle)
    best = min(ratios, key=lambda share: abs(ratios[share].value - 1))
    images = open_set("imagenet_train1000", load_deit_tiny().preprocess, 64 if quick else CALIBRATION)
    decode_now(images)
    slim = cut_model(judging.dense, _uniform(best), SlimOptions("closed-form"), images)
    uniform = artefact_logits(slim, target, judging.images, bench.folder / "slim")
    logits = artefact_logits(ours, target, judging.images, bench.folder / "again")
    right = correct(logits, judging.labels), correct(uniform, judging.labels)
    interval = paired_bootstrap(*right, seed=0)
    points = 100 * float(right[0].mean() - right[1].mean())
    return Row(
        f"against macs = 0.54: {_uniform(best).name} in every block",
        {
            "GMACs": Figure(model_cost(slim.arch).total.macs / 1e9, ".3f"),
            "top-1 %": Figure(100 * top1(uniform, judging.labels), ".2f"),
            "agreement": Figure(agreement(judging.dense_logits, uniform), ".3f"),
            "time over the plan's": ratios[best],
            "points below the plan": Figure(points, ".2f", (interval.low, interval.high), WANTED_POINTS),
        },
    )


def _uniform(share: int) -> Cut:
    """Return the cut that leaves `share` of 24 parts of every width, dims in steps of 8."""
    dims, hidden = max(8, 8 * round(share / 3)), _NEURONS * share
    counts = Counts(qk_dim=dims, vo_dim=dims, hidden=hidden)
    return Cut(f"QK {dims}, VO {dims}, hidden {hidden}", counts, dead_tokens=True)


def keep_promise(bench: speed.Bench, promise: Promise, keep: Path) -> Row:
    """Plan widths of DeiT-S where all MACs are worth the same, and compare its speed-up with its MACs.

    Args:
        bench: how the pair is timed.
        promise: the precision, and what is wanted.
        keep: folder of the latency tables.
    """
    dense, target, precision = speed.load_dense(speed.SMALL), bench.target, promise.precision
    graphs = {"dense": _graph(dense.arch, bench, precision, "dense")}
    form = Form(target.opset, target.batch, simplify=False)
    with Store.open(keep, "promise") as store:
        stages = Stages(store, TOLD)
        graph = Graph(graphs["dense"], sha256_file(graphs["dense"]), dense.arch)
        table = measure_table(stages, (target, precision), form, graph)
        minutes = [facts.seconds / 60 for facts in stages.facts if not facts.reused]
    plan = _widths(dense, table, target)
    slim = slim_arch(dense.arch, plan)
    graphs["slim"] = _graph(slim, bench, precision, "slim")
    backend = get_backend(target.runtime)
    built = {
        side: backend.build(graph, target, precision, bench.folder / f"{side}-built")
        for side, graph in graphs.items()
    }
    pair = speed.time_pair(bench, built["dense"], built["slim"], dense.arch.image, (precision, precision))
    estimated = model_cost(dense.arch).total.macs / model_cost(slim).total.macs
    planned = table.total_ms(dense.arch) / table.total_ms(slim)
    worst = max(abs(check.predicted_ms / check.measured_ms - 1) for check in table.checks)
    cells: dict[str, Figure | str] = {
        "estimated": Figure(estimated, ".3f"),
        "planned": Figure(planned, ".3f"),
        "measured": pair.speedup(),
        "measured / estimated": pair.promise(estimated, Bound(low=promise.wanted)),
        **pair.times(),
        "table: worst whole model, %": Figure(100 * worst, ".1f"),
        "QK, VO, hidden": "; ".join(
            f"{block.qk_dim} {block.vo_dim} {block.hidden}" for block in (plan.blocks[0], plan.blocks[-1])
        ),
    }
    if minutes:
        cells["table, minutes"] = Figure(sum(minutes), ".1f", None, WANTED_TABLE_MINUTES)
    return Row(f"DeiT-S, widths, {precision}: {bench.title}", cells)


def time_sensitivity(*, quick: bool) -> Row:
    """Measure what the cuts of a DeiT-B cost, on as many images as a build of so large a model takes."""
    dense = load_model(ModelSource(_BASE, options={"img_size": 64} if quick else {}))
    images = open_set("imagenet_train1000", dense.preprocess, 8 if quick else _BASE_IMAGES)
    decode_now(images)
    begin = time.perf_counter()
    model = dense.model
    found = measure_sensitivity(model, lambda: tensor_batches(images, model.device), CutShares(), None, TOLD)
    minutes = (time.perf_counter() - begin) / 60
    cells: dict[str, Figure | str] = {
        "cuts": Figure(sum(len(curve.counts) for block in found.blocks for curve in block), ".0f"),
        "sensitivity, minutes": Figure(minutes, ".1f", None, WANTED_BASE_MINUTES),
    }
    return Row(f"cuts of DeiT-B, random weights, {found.images} images", cells)


def _graph(arch: Arch, bench: speed.Bench, precision: Precision, name: str) -> Path:
    """Export a model of random weights, in int8 quantised by noise: times depend on neither."""
    folder = bench.folder / name
    folder.mkdir()
    model = SlimViT(arch).eval().requires_grad_(False)
    path = folder / "fp32.onnx"
    export_onnx(model, path, ExportOptions(bench.target.opset, bench.target.batch))
    if precision != "int8":
        return path
    noise = np.random.default_rng(0).standard_normal((2, 1, *arch.image)).astype(np.float32)
    quantise(path, list(noise), folder / "int8.onnx", smooth=False)
    return folder / "int8.onnx"


def _widths(dense: SlimViT, table: LatencyTable, target: Target) -> Plan:
    """Solve for the widths of a speed-up, where KL is the square of what goes, times the MACs it is of."""
    arch, anatomy = dense.arch, read_anatomy(dense.arch)
    kinds: tuple[Kind, ...] = ("qk_dim", "vo_dim", "hidden")
    curves = []
    for block in anatomy.blocks:
        macs = {
            "qk_dim": block.heads * block.qk_dim * (2 * arch.embed + block.tokens),
            "vo_dim": block.heads * block.vo_dim * (2 * arch.embed + block.tokens),
            "hidden": 2 * block.hidden * arch.embed,
        }
        curves.append(tuple(_square(kind, int(getattr(block, kind)), macs[kind] / 1e9) for kind in kinds))
    prefers = {kind: int(getattr(target.prefers, kind)) for kind in kinds}
    sensitivity = Sensitivity(tuple(curves), 0)
    choices = choices_of(anatomy, sensitivity, prefers, dead_tokens=False)
    costs = LatencyCost(table, arch, dead_tokens=False)
    return allocate(sensitivity, choices, costs, costs.total(arch) / WIDTHS_SPEEDUP).plan


def _square(kind: Kind, most: int, worth: float) -> Curve:
    """Return a curve that is the square of the share that goes, times `worth`."""
    return Curve(kind, most, (most * 3 // 4, most // 2), (worth / 16, worth / 4))
