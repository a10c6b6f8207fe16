"""What remains of a model, per block: pure data, written to plan.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from edgevit.errors import PlanError

Kind = Literal["heads", "qk_dim", "vo_dim", "hidden", "tokens"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Decided = Kind | Literal["mlp_inputs"]
"""What a method can decide; the channels that an MLP reads are no count that a recipe gives by hand."""

Recover = Literal["none", "closed-form"]
"""How what a plan cuts is made up for."""

Strategy = Literal["drop", "cells", "clusters"]
"""What becomes of patches: the redundant ones go; each cell of the grid keeps one; one stands for several."""
Redundancy = Literal["avg", "count", "knn"]
"""How redundant a patch is: mean similarity to the others, how many are similar, or mean of the nearest."""

NeuronScore = Literal["contribution", "magnitude"]
"""What a neuron is worth: its mean |activation| times the norm of its fc2 column, or that mean alone."""

Indices = tuple[int, ...]


@dataclass(frozen=True)
class Kept:
    """Indices that a method chose, sorted; None where only the count is decided."""

    heads: Indices | None = None
    qk: tuple[Indices, ...] | None = None  # one set per kept head
    vo: tuple[Indices, ...] | None = None  # one set per kept head
    hidden: Indices | None = None
    inputs: Indices | None = None  # channels that the MLP reads


@dataclass(frozen=True)
class PerImage:
    """Hidden neurons that each image chooses for itself: fc1 computes all, fc2 reads `used` of them."""

    used: int
    score: NeuronScore = "contribution"
    class_weight: float | None = None  # of the class token against the mean of the others; None: all alike


@dataclass(frozen=True)
class Choice:
    """By what the patches that stay are chosen, and what becomes of the others; not how many.

    Where tokens become fewer without a choice, pairs of similar ones are merged.
    """

    strategy: Strategy
    score: Redundancy = "avg"
    similar: float = 0.7  # cosine from which "count" counts a patch
    cell: int = 2  # side of the square cells, in patches


@dataclass(frozen=True)
class InputPlan:
    """Keep count of the tokens that enter the first block, class tokens included."""

    tokens: int
    choice: Choice | None = None  # None: pairs are merged


@dataclass(frozen=True)
class BlockPlan:
    """Keep counts of one block; `tokens` is the count that leaves it."""

    heads: int
    qk_dim: int
    vo_dim: int
    hidden: int
    tokens: int
    kept: Kept = Kept()
    choice: Choice | None = None  # of the tokens, where fewer leave than enter; None: pairs are merged
    per_image: PerImage | None = None  # None: fc2 reads all hidden neurons
    mlp_inputs: int | None = None  # channels of the residual stream that the MLP reads; None: all


@dataclass(frozen=True)
class Plan:
    """Keep counts of all blocks, and whether tokens that nothing reads are dropped in the last one."""

    blocks: tuple[BlockPlan, ...]
    dead_tokens: bool = False
    input: InputPlan | None = None  # None: as many tokens enter the first block as the model has there
    channels: tuple[Indices, ...] | None = None
    """Channels of the residual stream that stay, one set for each stage; None: all of them."""


@dataclass(frozen=True)
class BlockAnatomy:
    """What one dense block has."""

    heads: int
    qk_dim: int
    vo_dim: int
    hidden: int
    tokens: int
    choice: Choice | None = None  # by which this block already lets fewer tokens leave
    per_image: PerImage | None = None  # where fc2 already reads only some of the neurons
    mlp_inputs: int | None = None  # channels that the MLP reads where it already does not read all


@dataclass(frozen=True)
class Anatomy:
    """What can be cut in a model, read from it.

    `refused` gives, for each kind of cut that this model cannot take, the reason; `together`, for each kind
    whose parts only go several at a time, how many.
    """

    blocks: tuple[BlockAnatomy, ...]
    embed: int
    prefix: int
    read_tokens: int | None  # leading tokens that the head reads; None: all
    refused: dict[Kind, str]
    together: dict[Kind, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Counts:
    """Keep counts as a recipe gives them: one value for all blocks, one per block, or None for all of it."""

    heads: int | Sequence[int] | None = None
    qk_dim: int | Sequence[int] | None = None
    vo_dim: int | Sequence[int] | None = None
    hidden: int | Sequence[int] | None = None
    tokens: int | Sequence[int] | None = None


def keep_all(anatomy: Anatomy) -> Plan:
    """Return the plan that cuts nothing."""
    rows = (tuple(int(getattr(block, kind)) for kind in KINDS) for block in anatomy.blocks)
    return Plan(tuple(_block(full, row) for full, row in zip(anatomy.blocks, rows, strict=True)))


def _block(full: BlockAnatomy, counts: Sequence[int]) -> BlockPlan:
    """Return the plan of a block that keeps `counts` (in the order of `KINDS`) and chooses as it does now."""
    heads, qk_dim, vo_dim, hidden, tokens = counts
    plan = BlockPlan(heads, qk_dim, vo_dim, hidden, tokens, choice=full.choice)
    return replace(plan, per_image=full.per_image, mlp_inputs=full.mlp_inputs)


def plan_from_counts(anatomy: Anatomy, counts: Counts, *, dead_tokens: bool = False) -> Plan:
    """Turn keep counts into a plan.

    Raises:
        PlanError: every count that this model cannot take, each with block, expected and got.
    """
    problems: list[str] = []
    columns = {kind: _column(anatomy, kind, getattr(counts, kind), problems) for kind in KINDS}
    if dead_tokens and anatomy.read_tokens is None:
        problems.append(
            "slim.dead_tokens: this model's head reads every token, so none is dead. Set it to false."
        )
    if not problems and "tokens" not in anatomy.refused:
        problems += _token_problems(anatomy, columns["tokens"], dead_tokens=dead_tokens)
    if problems:
        raise PlanError("\n".join(problems))
    rows = zip(*(columns[kind] for kind in KINDS), strict=True)
    blocks = (_block(full, row) for full, row in zip(anatomy.blocks, rows, strict=True))
    return Plan(tuple(blocks), dead_tokens)


def _column(
    anatomy: Anatomy, kind: Kind, given: int | Sequence[int] | None, problems: list[str]
) -> list[int]:
    """Return one count per block; what is wrong goes to `problems`."""
    dense = [int(getattr(block, kind)) for block in anatomy.blocks]
    if given is None:
        return dense
    values = [given] * len(dense) if isinstance(given, int) else list(given)
    if len(values) != len(dense):
        problems.append(
            f"plan.{kind}: expected one number or {len(dense)} (one per block), got {len(values)} numbers."
        )
        return dense
    if kind == "tokens" and isinstance(given, int):
        values = [min(given, count) for count in dense]
        if given > max(dense):
            problems.append(
                f"plan.tokens: expected 1..{max(dense)}, got {given}. Give {max(dense)} to keep all."
            )
    if kind in anatomy.refused and values != dense:
        problems.append(f"plan.{kind}: {anatomy.refused[kind]}")
        return dense
    found = [
        wrong_count(value, most, anatomy.together.get(kind, 1))
        for value, most in zip(values, dense, strict=True)
    ]
    problems += _name_blocks(kind, found)
    return values


def wrong_count(value: int, most: int, together: int = 1) -> str | None:
    """Say what is wrong with a keep count of one block; None where nothing is.

    Args:
        value: how many are to be kept.
        most: how many there are.
        together: how many go at a time.
    """
    if not 1 <= value <= most:
        return f"has {most}; expected 1..{most}, got {value}. Give {most} to keep all."
    if value % together:
        near = _nearest_multiples(value, together, most)
        return (
            f"has parts that go {together} at a time; expected a multiple of that, got {value}. Give {near}."
        )
    return None


def _name_blocks(kind: Kind, found: Sequence[str | None]) -> list[str]:
    """Turn what is wrong in each block into messages: one for all where it is the same in all of several."""
    first = found[0]
    if first is not None and len(found) > 1 and len(set(found)) == 1:
        return [f"plan.{kind}: every block {first}"]
    return [f"plan.{kind}: blocks.{index} {text}" for index, text in enumerate(found) if text is not None]


def fewest_merged(tokens: int, prefix: int) -> int:
    """Return the fewest tokens that one block lets leave by merging pairs: half of its patches, rounded down.

    Args:
        tokens: how many enter, prefix tokens included.
        prefix: tokens in front of the patches, which are never merged.
    """
    return tokens - (tokens - prefix + 1) // 2


def _token_problems(anatomy: Anatomy, tokens: Sequence[int], *, dead_tokens: bool) -> list[str]:
    """Check that token counts fall, and that no block merges more than half of its patch tokens."""
    problems: list[str] = []
    before = anatomy.blocks[0].tokens
    for index, after in enumerate(tokens):
        least = fewest_merged(before, anatomy.prefix)
        if after > before:
            problems.append(
                f"plan.tokens: blocks.{index} gets {before} tokens and cannot let {after} leave. Give at most"
                f" {before}."
            )
        elif after < least:
            problems.append(
                f"plan.tokens: blocks.{index} gets {before} tokens; one block merges at most half of its "
                f"patch tokens, so {least}..{before} can leave, got {after}. Merge the rest in another block."
            )
        before = after
    last = len(tokens) - 1
    if dead_tokens and last > 0 and tokens[last] < tokens[last - 1]:
        problems.append(
            f"plan.tokens: blocks.{last} is the last; with slim.dead_tokens only the tokens that the head "
            f"reads leave it. Give it {tokens[last - 1]}, as many as enter."
        )
    return problems


def count_of(block: BlockPlan, kind: Kind) -> int:
    """Return a keep count; of hidden neurons those that fc2 reads."""
    if kind == "hidden" and block.per_image is not None:
        return block.per_image.used
    return int(getattr(block, kind))


def check_multiples(
    plan: Plan, dense: Plan, multiples: dict[Kind, int], target: str, decided: Collection[Kind] = ()
) -> None:
    """Check keep counts against what a target wants.

    A count that was not cut is always allowed.

    Args:
        plan: what remains.
        dense: what there was.
        multiples: of what each count has to be a multiple.
        target: its name.
        decided: kinds that a method decided, not the recipe's [plan].

    Raises:
        PlanError: every count that is not a multiple, with the nearest ones.
    """
    problems: list[str] = []
    for kind, multiple in multiples.items():
        found = [
            _off_multiple(count_of(block, kind), count_of(full, kind), multiple, target)
            for block, full in zip(plan.blocks, dense.blocks, strict=True)
        ]
        named = _name_blocks(kind, found)
        if kind in decided:
            advice = f"Give the method align = {multiple}, which rounds its shares up."
            named = [f"prune: {text.removeprefix('plan.')} {advice}" for text in named]
        problems += named
    if problems:
        raise PlanError("\n".join(problems))


def _off_multiple(count: int, most: int, multiple: int, target: str) -> str | None:
    if count == most or count % multiple == 0:
        return None
    return (
        f"keeps {count} of {most}, not a multiple of {multiple} (target {target}). "
        f"Use {_nearest_multiples(count, multiple, most)}, or lower the multiple in a target file of your own"
        " and lose speed."
    )


def _nearest_multiples(count: int, multiple: int, most: int) -> str:
    """Name the multiples around a count that is none, "32 or 40", none of them 0 or above `most`."""
    lower = count - count % multiple
    upper = min(lower + multiple, most)
    return f"{lower} or {upper}" if lower else str(upper)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Turn a plan into JSON data; indices and choices appear only where a method made them."""
    blocks = []
    for block in plan.blocks:
        data: dict[str, Any] = {kind: getattr(block, kind) for kind in KINDS}
        kept = {name: value for name, value in dataclasses.asdict(block.kept).items() if value is not None}
        choice = {} if block.choice is None else {"choice": dataclasses.asdict(block.choice)}
        per_image = {} if block.per_image is None else {"per_image": dataclasses.asdict(block.per_image)}
        inputs = {} if block.mlp_inputs is None else {"mlp_inputs": block.mlp_inputs}
        blocks.append(data | per_image | inputs | ({"kept": kept} if kept else {}) | choice)
    data = {"blocks": blocks, "dead_tokens": plan.dead_tokens}
    if plan.input is not None:
        data["input"] = dataclasses.asdict(plan.input)
    return data if plan.channels is None else data | {"channels": plan.channels}


def plan_from_json(data: dict[str, Any]) -> Plan:
    """Rebuild a plan from `plan_to_json` data."""
    blocks = tuple(_block_from_json(block) for block in data["blocks"])
    entering = data.get("input")
    if entering is not None:
        entering = InputPlan(int(entering["tokens"]), choice_from_json(entering["choice"]))
    return Plan(blocks, bool(data["dead_tokens"]), entering, _index_sets(data.get("channels")))


def choice_from_json(data: dict[str, Any] | None) -> Choice | None:
    """Rebuild a choice from its fields."""
    return None if data is None else Choice(**data)


def per_image_from_json(data: dict[str, Any] | None) -> PerImage | None:
    """Rebuild a choice of neurons from its fields."""
    return None if data is None else PerImage(**data)


def _block_from_json(data: dict[str, Any]) -> BlockPlan:
    kept = data.get("kept", {})
    indices = Kept(
        heads=_indices(kept.get("heads")),
        qk=_index_sets(kept.get("qk")),
        vo=_index_sets(kept.get("vo")),
        hidden=_indices(kept.get("hidden")),
        inputs=_indices(kept.get("inputs")),
    )
    heads, qk_dim, vo_dim, hidden, tokens = (int(data[kind]) for kind in KINDS)
    return BlockPlan(
        heads,
        qk_dim,
        vo_dim,
        hidden,
        tokens,
        indices,
        choice_from_json(data.get("choice")),
        per_image_from_json(data.get("per_image")),
        data.get("mlp_inputs"),
    )


def _indices(values: list[int] | None) -> Indices | None:
    return None if values is None else tuple(values)


def _index_sets(values: list[list[int]] | None) -> tuple[Indices, ...] | None:
    return None if values is None else tuple(tuple(group) for group in values)


def plan_text(plan: Plan) -> str:
    """Return the canonical text of a plan, as plan.json holds it."""
    return json.dumps(plan_to_json(plan), indent=1) + "\n"


def plan_sha256(plan: Plan) -> str:
    """Return the hash that names a plan."""
    return hashlib.sha256(plan_text(plan).encode()).hexdigest()
