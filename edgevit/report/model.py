"""What a build found out, as the data of report.json.

Units: times in milliseconds (stage times in seconds), sizes in bytes, top-1 and agreement as fractions 0..1,
`points` as percentage points, intervals [low, high] at 95 %. A file that a newer edgevit of the same schema
wrote may have more keys; they are ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from edgevit.budget import Key, Unit
from edgevit.errors import OutputError
from edgevit.plan import Recover

SCHEMA = 1
FILE_NAME = "report.json"


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"an interval [low, high], not {list(interval)}")
    return interval


def _sorted_keys(facts: dict[str, JsonValue]) -> dict[str, JsonValue]:
    return dict(sorted(facts.items()))


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Milliseconds = Annotated[float, Field(ge=0.0)]
Interval = Annotated[tuple[float, float], AfterValidator(_ordered)]
Facts = Annotated[dict[str, JsonValue], AfterValidator(_sorted_keys)]
"""Names and values that depend on the device or runtime; shown as they are, in the order of their names."""


class Part(BaseModel):
    """A frozen part of the report: every key has its type, and numbers are finite."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class PlanBlock(Part):
    """What remains of one block."""

    heads: Count
    qk_dim: Count
    vo_dim: Count
    hidden: Count
    tokens: Count
    """Tokens that leave the block."""
    hidden_used: Count | None = None
    """Hidden neurons that fc2 reads for each image, which chooses them; None: all."""
    mlp_inputs: Count | None = None
    """Channels of the residual stream that fc1 reads; None: all."""


class ReductionFacts(Part):
    """A place in which tokens become fewer."""

    place: str
    """The block behind whose attention it is, or "input"."""
    strategy: Literal["merge", "drop", "cells", "clusters"]
    before: Count
    after: Count
    """Tokens of an image, class tokens included."""


class PlanFacts(Part):
    """What remains of the model."""

    blocks: tuple[PlanBlock, ...]
    reductions: tuple[ReductionFacts, ...] = ()
    """Where tokens become fewer, and how; dead tokens are not among them."""
    dead_tokens: bool
    """Tokens that nothing reads are dropped in the last block."""
    methods: tuple[str, ...] = ()
    """Methods that decided, in their order; none where the whole plan is by hand."""


class ModelSize(Part):
    """Cost of one image, in multiply-accumulates, and the count of weights."""

    macs: Count
    params: Count


class ModelSizes(Part):
    """Dense beside slim."""

    dense: ModelSize
    slim: ModelSize


class BlockSide(PlanBlock):
    """Dims and cost of one block of one model."""

    macs: Count
    params: Count


class BlockFacts(Part):
    """One block, dense beside slim."""

    name: str
    dense: BlockSide
    slim: BlockSide


class SourceFacts(Part):
    """Where the dense model came from."""

    name: str
    weights: str
    """File name, "pretrained" or "random"."""
    weights_sha256: str | None
    image: tuple[int, int, int]
    """Channels, height, width."""
    classes: Count


class SetFacts(Part):
    """Images that were read for calibration or evaluation."""

    set: str
    images: Count
    sha256: str
    """Hash of the contents of the images, in their order."""
    labelled: bool
    skipped: tuple[str, ...]
    """Corrupt images that the set allowed to skip."""
    seen: Fraction | None = None
    """Of the evaluation images: share that is also calibrated on or learnt from. None for other sets."""


class Latency(Part):
    """Times of one artefact in milliseconds."""

    median: Milliseconds
    interval: Interval
    """Of the median, at 95 %."""
    p90: Milliseconds
    p99: Milliseconds
    mad: Milliseconds
    """Median absolute deviation from the median."""
    first: Milliseconds | None = None
    """The first run after loading, which is no sample."""
    samples: tuple[Milliseconds, ...]
    """Every timed run, in the order in which it was taken."""


class ArtefactFacts(Part):
    """A file that the device loads, and what was measured on it."""

    artefact: str
    """Path below the build directory."""
    sha256: str
    bytes: Count
    top1: Fraction | None
    """None where the evaluation set has no labels, or there is none."""
    latency_ms: Latency


class SlimFacts(ArtefactFacts):
    """The slim artefact."""

    agreement: Fraction | None
    """Share of images with the dense model's top-1; None without an evaluation set."""


class Drop(Part):
    """Top-1 of dense minus that of slim, in percentage points, with its paired bootstrap interval."""

    points: float
    interval: Interval


class AgainstFp32(Part):
    """What another precision costs: its artefacts against the dense one in fp32, on the same device."""

    dense_agreement: Fraction
    """Share of images with that one's top-1, of dense."""
    dense_drop: Drop | None
    agreement: Fraction
    """The same of slim."""
    drop: Drop | None
    """Top-1 of dense in fp32 minus that of slim in this precision."""


class Speedup(Part):
    """Dense latency over slim latency, beside what the MACs let hope for."""

    measured: Annotated[float, Field(gt=0.0)]
    interval: Interval
    estimated: Annotated[float, Field(gt=0.0)]
    promise: Annotated[float, Field(gt=0.0)]
    """The share of the estimate that was measured: measured / estimated."""

    @model_validator(mode="after")
    def _check_promise(self) -> Self:
        ratio = self.measured / self.estimated
        if not math.isclose(self.promise, ratio, rel_tol=1e-3):
            raise ValueError(f"promise: expected measured / estimated = {ratio:.4f}, got {self.promise}")
        return self


class Result(Part):
    """What was measured for one target and precision."""

    target: str
    precision: str
    on_board: bool = False
    """Measured by a build kit, which compares outputs on stored images and knows no accuracy."""
    device: Facts
    protocol: Facts = {}
    """How the times were taken: warm-up, bursts, threads, conditions before and after."""
    chosen: bool
    refused: str | None
    """Why this candidate is not offered, although it runs."""
    dense: ArtefactFacts
    slim: SlimFacts
    drop: Drop | None
    fp32: AgainstFp32 | None = None
    """None for fp32 itself, where fp32 is no candidate, and without an evaluation set."""
    speedup: Speedup
    parity: Facts
    verdict: Literal["trusted", "untrusted"]
    why: str

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        if self.chosen and self.refused is not None:
            raise ValueError("chosen: expected false for a candidate that was refused")
        return self


class NotBuilt(Part):
    """A candidate of which there is no artefact."""

    target: str
    precision: str
    why: str


class PreflightFacts(Part):
    """What TensorRT's own parser said of a graph, before anything was built or sent to a board."""

    target: str
    precision: str
    side: Literal["dense", "slim"]
    outcome: Literal["accepted", "refused", "died", "unavailable"]
    parser: str | None
    """Module and version of the parser; None where none could be asked."""
    why: str


class KitFacts(Part):
    """A build kit, for a board that builds its own engines."""

    target: str
    precisions: tuple[str, ...]
    folder: str
    """Below the build directory."""
    prefer: Literal["fastest", "all"] = "fastest"
    """Of the recipe: which of the board's candidates are chosen."""
    gates: dict[str, float] = {}
    """Limits of the recipe, by name, which hold for what the board measures."""


class Int8Loss(Part):
    """What int8 costs against the same model in fp32, on the calibration images that gave the ranges."""

    expected_drop: float
    """Points of top-1 that fp32's own probabilities expect to be lost; needs no labels."""
    agreement: Fraction
    kl: float
    """Mean KL(fp32 || int8) in nats."""


class Int8Layer(Part):
    """One layer of an int8 graph, by itself: all others are in float."""

    name: str
    block: str | None
    """None for what is before and behind the blocks."""
    macs: Count
    sqnr_db: float
    """Signal over quantisation noise at its output, decibels."""
    kl: float
    """What it alone changes in the answers: mean KL(fp32 || this layer in int8), nats."""
    returned: Count | None = None
    """Place among the layers that went back to float, from 1; None: it is computed in int8."""


class Int8Facts(Part):
    """One model's graph in int8: which layers cost what, and which went back to float."""

    side: str
    """"dense" or "slim"."""
    graph: str
    """The form of the graph, as its folder is called where a build has several."""
    smooth_quant: bool
    images: Count
    """That ranges and losses were taken from."""
    max_drop: float | None
    """The limits that decided; None limits nothing."""
    min_agreement: float | None
    before: Int8Loss
    """With every layer in int8."""
    after: Int8Loss
    layers: tuple[Int8Layer, ...]
    """As they would go back to float: most KL for their MACs first."""


class StageFacts(Part):
    """What one stage of the pipeline cost."""

    name: str
    seconds: Annotated[float, Field(ge=0.0)]
    reused: bool
    """The output was there already."""
    peak_rss_bytes: Count
    """Most memory that the process had held by the end of the stage."""


class TrainingFacts(Part):
    """What a training was."""

    epochs: Count
    seconds: Annotated[float, Field(ge=0.0)]
    loss_first: float
    """Mean loss of the first epoch."""
    loss_last: float
    """Mean loss of the last epoch."""
    precision: str
    """What matrix products were computed in."""
    seed: Count
    images: Count
    processes: Count = 1
    """How many shared each batch."""
    measured_on: str | None = None
    """The candidate on which the model before training was evaluated, too; None without evaluation images."""
    top1_before: Fraction | None = None
    """Of the slim model before training, on that candidate; None without labels."""
    agreement_before: Fraction | None = None
    """The same model's share of images with the dense model's top-1."""


class SearchFacts(TrainingFacts):
    """The training by which a method learnt what may go."""

    method: str


class TuneFacts(TrainingFacts):
    """The training after slimming."""

    labelled: bool = False
    """Labels took part."""
    validation: tuple[float, ...] = ()
    """Score of each epoch on images that were held out: top-1 with labels, else minus the loss."""
    best_epoch: Count | None = None
    """The epoch, from 1, that scored best and is the result; null where the last one is."""


class BudgetBlock(Part):
    """What the solver predicted of one block."""

    cost: Annotated[float, Field(ge=0.0)]
    """In the unit of the budget."""
    dense: Annotated[float, Field(ge=0.0)] | None = None
    """The dense model's block in the same unit; its time is the latency table's. Null in older reports."""
    measured: float | None = None
    """Milliseconds of the block alone, where the budget is one of time."""
    kl: Annotated[float, Field(ge=0.0)]
    """Sum over the block's cuts, each measured alone."""


class TimedWhole(Part):
    """A model that was timed whole for a latency table, beside what a table without it predicts."""

    name: str
    measured: Annotated[float, Field(gt=0.0)]
    predicted: Milliseconds

    @property
    def error(self) -> float:
        """Return how far the prediction is above the measurement, as a share of it."""
        return self.predicted / self.measured - 1.0


class TableFacts(Part):
    """What a latency table was fitted to, and how far off it is."""

    parts: Count
    """Rows of blocks that were timed."""
    worst_part: Annotated[float, Field(ge=0.0)]
    """Largest error of a part, as a share of its time."""
    drift: float
    """How much slower all of them ran in the second half of the timing, as a share."""
    whole: Annotated[tuple[TimedWhole, ...], Field(min_length=1)]


class BudgetFacts(Part):
    """A budget, and what was predicted beside what came out. KL is KL(dense || slim), nats."""

    unit: Unit
    key: Key | None = None
    """Of the recipe; null in reports that did not say."""
    asked: float | str
    """As the recipe has it: a share of dense, a number as text, a speed-up or milliseconds."""
    limit: Annotated[float, Field(gt=0.0)]
    dense: Annotated[float, Field(gt=0.0)]
    """In milliseconds: as it ran when the latency table was measured."""
    predicted: Annotated[float, Field(gt=0.0)]
    counted: Annotated[float, Field(gt=0.0)] | None
    """Of the slim model that was made; in milliseconds its measured median, null where it was not built."""
    dense_measured: Annotated[float, Field(gt=0.0)] | None = None
    """The dense model's median beside it."""
    measured_on: str = ""
    """Target and precision of a budget of time."""
    table: TableFacts | None = None
    """What a budget of time was planned by."""
    predicted_kl: Annotated[float, Field(ge=0.0)]
    """Sum over all cuts, each measured alone: later blocks repair part of it."""
    measured_kl: Annotated[float, Field(ge=0.0)]
    """Of the slim model before any training."""
    judged: Literal["evaluation", "calibration"] = "calibration"
    """Which images that was measured on. To those of calibration it was fitted: on others it is more."""
    judged_images: Count | None = None
    """How many; null in reports that did not say."""
    images: Count
    """Of the calibration set, by which cuts were measured: a third gave the KL, the closed form learnt from
    the others."""
    blocks: tuple[BudgetBlock, ...]
    decisions: tuple[str, ...]
    """The large ones, a sentence each."""


class Report(Part):
    """Everything that report.json says."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True, validate_by_alias=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    recipe_sha256: str
    versions: Facts
    warnings: tuple[str, ...] = ()
    """What a reader must know before trusting the numbers, for example that the weights are random."""
    source: SourceFacts
    recover: Recover
    plan: PlanFacts
    models: ModelSizes
    blocks: tuple[BlockFacts, ...]
    calibration: SetFacts | None = None
    evaluation: SetFacts | None = None
    budget: BudgetFacts | None = None
    """None where the recipe has none."""
    searches: tuple[SearchFacts, ...] = ()
    """Of the methods that learn what may go."""
    tune: TuneFacts | None = None
    """None where the recipe asks for no training."""
    results: tuple[Result, ...]
    not_built: tuple[NotBuilt, ...] = ()
    int8: tuple[Int8Facts, ...] = ()
    """Of each graph in int8."""
    preflights: tuple[PreflightFacts, ...] = ()
    """Of targets with TensorRT."""
    kits: tuple[KitFacts, ...] = ()
    machine: Facts = {}
    """The host that ran the build."""
    stages: tuple[StageFacts, ...] = ()

    @model_validator(mode="after")
    def _check_blocks(self) -> Self:
        if len(self.blocks) != len(self.plan.blocks):
            raise ValueError(
                f"blocks: expected {len(self.plan.blocks)} as in the plan, got {len(self.blocks)}"
            )
        return self


def unmeasured(kits: Sequence[KitFacts], results: Sequence[Result]) -> tuple[str, ...]:
    """Return the targets of which there is a kit and no result: no gate was judged for them."""
    measured = {result.target for result in results}
    return tuple(kit.target for kit in kits if kit.target not in measured)


def to_json(report: Part) -> str:
    """Write a report as JSON text: keys in the order of the schema, lists of plain values in one line."""
    text = json.dumps(report.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    # Strings hold no raw line breaks in JSON, so this only meets the layout of lists without inner brackets.
    return re.sub(r"\[\n[^\[\]{}\n]*(?:\n[^\[\]{}\n]*)*\n *\]", _in_one_line, text) + "\n"


def load_report(folder: Path) -> Report:
    """Read the report of a build directory.

    Raises:
        OutputError: there is no report, or edgevit of another schema wrote it, or it was damaged.
    """
    path = folder / FILE_NAME
    try:
        table = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise OutputError(
            f"{path}: expected the report of a finished build, found no such file. "
            "Give the build directory, or run `edgevit build` to its end."
        ) from error
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read as JSON ({error}). {_REBUILD}") from error
    schema = table.get("schema") if isinstance(table, dict) else None
    if schema != SCHEMA:
        raise OutputError(f"{path}: expected a report of schema {SCHEMA}, got {schema!r}. {_REBUILD}")
    try:
        return Report.model_validate_json(json.dumps(table), extra="ignore")
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'report'}: {e['msg']}" for e in error.errors()]
        raise OutputError(f"{path}: damaged: {'; '.join(problems[:5])}. {_REBUILD}") from error


_REBUILD = "Write it anew with `edgevit build RECIPE`; finished stages are not repeated."


def _in_one_line(match: re.Match[str]) -> str:
    return re.sub(r"\n *", " ", match[0]).replace("[ ", "[", 1)[:-2] + "]"
