"""Options of the methods that decide what remains: one class a method, told apart by its key `method` (data).

A class also says what the rest of edgevit must know of its method, as class variables of `MethodOptions`.

A key named after a kind (`qk_dim`, `vo_dim`, `hidden`) is a count that remains, as in [plan]; the key that
ends in `_drop` beside it is the share that is removed, 0..1. Either is one number for all blocks or a list
with one per block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from edgevit.plan import Decided, NeuronScore, Redundancy
from edgevit.schema import Problem, Strict
from edgevit.training import TrainingKeys

Count = Annotated[int, Field(ge=1)]
PerBlock = Count | Annotated[tuple[Count, ...], Field(min_length=1)]
Drop = Annotated[float, Field(ge=0, lt=1)]
DropPerBlock = Drop | Annotated[tuple[Drop, ...], Field(min_length=1)]

_HIDDEN = {"hidden", "hidden_drop"}

Score = Literal["median", "l1", "l2"]
Coupling = Literal["pairs", "averaged", "q-v", "k-o", "q-o"]


class MethodOptions(Strict):
    """What the options of every method say."""

    decides: ClassVar[Mapping[str, Decided]]
    """From an option to the kind of cut that it decides."""
    budgets: ClassVar[frozenset[str]] = frozenset()
    """Options that decide all of those kinds at once."""
    needs_images: ClassVar[frozenset[str]] = frozenset()
    """Options for which it looks at calibration images, where they are given; "method" always is."""
    leaves_mean: ClassVar[bool] = False
    """Whether what it cuts leaves its mean in a bias where rows are plainly cut."""
    needs_labels: ClassVar[bool] = False
    """Whether it learns from labelled calibration images what may go."""

    @classmethod
    def decided_by(cls, option: str) -> list[Decided]:
        """Return the kinds of cut that an option decides; none where it is no such option."""
        if option in cls.budgets:
            return list(dict.fromkeys(cls.decides.values()))
        return [cls.decides[option]] if option in cls.decides else []

    @classmethod
    def looks_at_images(cls, given: Mapping[str, object]) -> bool:
        """Say whether it looks at calibration images with the options `given`."""
        return bool(cls.needs_images & given.keys())


class CoupledDims(MethodOptions):
    """QK and VO dims of each head, scored on the weights that belong together; needs no images."""

    decides: ClassVar[Mapping[str, Decided]] = {
        "qk_dim": "qk_dim",
        "qk_drop": "qk_dim",
        "vo_dim": "vo_dim",
        "vo_drop": "vo_dim",
    }

    method: Literal["coupled-dims"]
    """The method's name."""
    qk_dim: PerBlock | None = None
    """Query/key dims that remain in each head, >= 1."""
    qk_drop: DropPerBlock | None = None
    """Share of each head's query/key dims that is removed, 0..1; what remains is rounded down."""
    vo_dim: PerBlock | None = None
    """Value/output dims that remain in each head, >= 1."""
    vo_drop: DropPerBlock | None = None
    """Share of each head's value/output dims that is removed, 0..1; what remains is rounded down."""
    score: Score = "median"
    """What a dim is worth: its distance from the head's median dim, or its L1 or squared L2 norm."""
    coupling: Coupling = "pairs"
    """What is scored: [Q|K] and [V|O] side by side, each by itself and averaged, or one side alone."""
    sets: Literal["two", "one"] = "two"
    """Choose QK and VO dims by themselves, or the same dims for both by the mean of their scores."""
    keep_first: bool = True
    """Leave the first block as it is where one number stands for all blocks; a list says it itself."""
    align: Count = 1
    """Counts that come from a share are rounded up to a multiple of this, >= 1."""

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """Refuse a method that decides nothing, or one thing twice."""
        remedy = "Give qk_drop and vo_drop = 0.5, or counts as in [plan]."
        problems = _amount_problems(table, cls.decides, remedy)
        decided = {kind for option, kind in cls.decides.items() if option in table}
        if table.get("sets") == "one" and len(decided) == 1:
            text = '"one" chooses the same dims for QK and VO, but only one is cut. Give both, or say "two".'
            problems.append(Problem("sets", text))
        return problems


class TokenChannels(MethodOptions):
    """Hidden neurons, and channels that the MLP reads, by how active they are on images; needs no labels."""

    decides: ClassVar[Mapping[str, Decided]] = {
        "hidden": "hidden",
        "hidden_drop": "hidden",
        "inputs_drop": "mlp_inputs",
    }
    needs_images: ClassVar[frozenset[str]] = frozenset({"method"})
    leaves_mean: ClassVar[bool] = True

    method: Literal["token-channels"]
    """The method's name."""
    hidden: PerBlock | None = None
    """Hidden neurons that remain in the MLP of a block, >= 1."""
    hidden_drop: DropPerBlock | None = None
    """Share of a block's hidden neurons that is removed, 0..1; what remains is rounded down."""
    selection: Literal["static", "per-image"] = "static"
    """Cut the same neurons for all images, or let each image choose which neurons fc2 reads."""
    inputs_drop: DropPerBlock | None = None
    """Share of the residual stream's channels that fc1 does not read, 0..1; the stream keeps them."""
    score: NeuronScore = "contribution"
    """What a neuron is worth: its mean |activation| times the norm of its fc2 column, or that mean alone."""
    class_weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Weight of the class token against the mean of the others, > 0 (published: 2); absent: all alike."""
    keep_first: bool = True
    """Leave the first block as it is where one number stands for all blocks; a list says it itself."""
    align: Count = 1
    """Counts that come from a share are rounded up to a multiple of this, >= 1."""

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """Refuse a method that decides nothing, or one thing twice, and a choice that nothing is told of."""
        problems = _amount_problems(table, cls.decides, "Give hidden_drop = 0.5, or a count as in [plan].")
        if table.get("selection") == "per-image" and "inputs_drop" in table and not table.keys() & _HIDDEN:
            text = '"per-image" is of hidden neurons, and all remain. Give hidden_drop, or take this key out.'
            problems.append(Problem("selection", text))
        return problems

    @classmethod
    def looks_at_images(cls, given: Mapping[str, object]) -> bool:
        """Say whether it looks at calibration images: where each image chooses for itself, it need not."""
        return given.get("selection") != "per-image" or "inputs_drop" in given


class PatchSimilarity(MethodOptions):
    """Fewer patches: those that are most similar to others go; needs images only for a threshold."""

    decides: ClassVar[Mapping[str, Decided]] = dict.fromkeys(("tokens", "tokens_drop", "threshold"), "tokens")
    needs_images: ClassVar[frozenset[str]] = frozenset({"threshold"})

    method: Literal["patch-similarity"]
    """The method's name."""
    tokens: PerBlock | None = None
    """Tokens that remain, class tokens included, >= 1; a list has one number for each of `blocks`."""
    tokens_drop: DropPerBlock | None = None
    """Share of the patches that is removed in each place, 0..1; what remains is rounded down."""
    threshold: float | None = Field(default=None, ge=-1, lt=1)
    """Remove as many as are more redundant than this, -1..1, on 9 of 10 calibration images."""
    blocks: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """Blocks, counted from 0, behind whose attention patches go; absent: once, before the first block."""
    strategy: Literal["drop", "cells", "clusters", "merge"] = "drop"
    """Drop redundant patches; keep one of each cell; merge them into those that stay; or merge pairs."""
    score: Redundancy = "avg"
    """How redundant a patch is: mean similarity to all others, how many are similar, or its nearest five."""
    similar: float = Field(default=0.7, gt=-1, lt=1)
    """Cosine from which score "count" counts a patch as similar, -1..1."""
    cell: int = Field(default=2, ge=2)
    """Side of the square cells of strategy "cells", in patches, >= 2."""
    align: Count = 1
    """Counts from a share or threshold are rounded up to a multiple of this, class tokens included, >= 1."""

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """Refuse a method that decides nothing or one thing twice, and keys that nothing reads."""
        problems = _amount_problems(table, cls.decides, "Give tokens_drop = 0.25, or a count as in [plan].")
        strategy = table.get("strategy", "drop")
        if strategy == "merge" and "score" in table:
            text = '"merge" takes the most similar pairs and scores nothing. Take this key out.'
            problems.append(Problem("score", text))
        elif "similar" in table and table.get("score") != "count":
            problems.append(Problem("similar", 'only score = "count" reads this. Take this key out.'))
        if "cell" in table and strategy != "cells":
            problems.append(Problem("cell", 'only strategy = "cells" reads this. Take this key out.'))
        blocks = table.get("blocks")
        if isinstance(blocks, tuple) and list(blocks) != sorted(set(blocks)):
            text = f"expected block numbers that rise, got {list(blocks)}. Sort them."
            problems.append(Problem("blocks", text))
        return problems


class SearchSection(TrainingKeys):
    """The training by which a method learns what may go."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the images, >= 1."""
    batch: int = Field(default=64, ge=1)
    """Images of a step, >= 1."""


class EffiSelect(MethodOptions):
    """Heads and hidden neurons by gates that are learnt from labels, over all blocks at once."""

    decides: ClassVar[Mapping[str, Decided]] = {"heads_drop": "heads", "hidden_drop": "hidden"}
    budgets: ClassVar[frozenset[str]] = frozenset({"macs"})
    needs_labels: ClassVar[bool] = True

    method: Literal["effiselect"]
    """The method's name."""
    heads_drop: Drop | None = None
    """Share of all heads of the model that is removed, 0..1; every block keeps one."""
    hidden_drop: Drop | None = None
    """Share of all hidden neurons of the model that is removed, 0..1; every block keeps one, or `align`."""
    macs: float | None = Field(default=None, gt=0, lt=1)
    """Share of the dense model's MACs that the slim model may have, 0..1, in place of both shares."""
    align: Count = 1
    """Counts of neurons are rounded up to a multiple of this, >= 1."""
    weights: Literal["pretrained", "searched"] = "pretrained"
    """Slim the dense model; or what the search made of it, with the gates folded in."""
    train: Literal["all", "gates"] = "all"
    """What the search trains: weights and gates, or the gates alone, which takes fewer steps to settle."""
    gate_lr: float = Field(default=1e-2, gt=0, allow_inf_nan=False)
    """Highest learning rate of the gates, > 0."""
    heads_weight: float = Field(default=1e-2, ge=0, allow_inf_nan=False)
    """Weight of the sum of the heads' gates in the loss, >= 0."""
    hidden_weight: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    """Weight of the sum of the neurons' gates in the loss, >= 0."""
    search: SearchSection = SearchSection()
    """The training of the gates, on the labelled images of [calibration]."""

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """Refuse a method that decides nothing, or by shares and a budget at once."""
        if "macs" not in table:
            return _amount_problems(
                table, cls.decides, "Give heads_drop = 0.3 and hidden_drop = 0.5, or macs = 0.6."
            )
        return [
            Problem(option, "given beside macs. Keep one of the two.")
            for option in cls.decides
            if option in table
        ]


class IntraHead(MethodOptions):
    """QK and VO dims of each head and hidden neurons, by rows that sparse training drives to zero."""

    decides: ClassVar[Mapping[str, Decided]] = {
        "qk_drop": "qk_dim",
        "vo_drop": "vo_dim",
        "hidden_drop": "hidden",
    }
    budgets: ClassVar[frozenset[str]] = frozenset({"macs", "zeros"})
    needs_labels: ClassVar[bool] = True

    method: Literal["intra-head"]
    """The method's name."""
    macs: float | None = Field(default=None, gt=0, lt=1)
    """Share of the dense model's MACs that the slim model may have, 0..1, in place of shares."""
    zeros: Literal[True] | None = None
    """Cut only what the search made exactly zero, in place of a budget or shares; the output stays."""
    qk_drop: DropPerBlock | None = None
    """Share of each head's query/key dims that is removed, 0..1; what remains is rounded down."""
    vo_drop: DropPerBlock | None = None
    """Share of each head's value/output dims that is removed, 0..1; what remains is rounded down."""
    hidden_drop: DropPerBlock | None = None
    """Share of a block's hidden neurons that is removed, 0..1; what remains is rounded down."""
    embed_drop: Drop | None = None
    """Share of the residual stream's channels that is removed from the whole network, 0..1; absent: none."""
    align: Count = 8
    """Counts are rounded up to a multiple of this, >= 1."""
    weights: Literal["pretrained", "searched"] = "searched"
    """Slim the dense model; or what the search made of it, with the gates folded in."""
    gate_lr: float = Field(default=1e-2, gt=0, allow_inf_nan=False)
    """Highest learning rate of the gates, > 0."""
    l1: float = Field(default=0.3, ge=0, allow_inf_nan=False)
    """Strength of L1: what a gate that the loss does not hold falls by in a step, per learning rate, >= 0."""
    search: SearchSection = SearchSection()
    """The sparse training of the gates and all weights, on the labelled images of [calibration]."""

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """Refuse a method that decides nothing, or in several ways at once."""
        ways = [option for option in ("macs", "zeros") if option in table]
        shares = [option for option in cls.decides if option in table]
        if not ways and not shares:
            remedy = "Give macs = 0.6, or qk_drop, vo_drop and hidden_drop = 0.5, or zeros = true."
            return _amount_problems(table, cls.decides, remedy)
        both = (ways + shares)[1:] if ways else []
        problems = [Problem(option, f"given beside {ways[0]}. Keep one of the two.") for option in both]
        if table.get("weights") == "pretrained" and "zeros" in table:
            text = 'only the searched weights have zeros. Take "zeros" out, or this key.'
            problems.append(Problem("weights", text))
        return problems


LearningMethod = EffiSelect | IntraHead
"""The options of a method that learns from labels what may go: it has `search` and `weights`."""

Method = CoupledDims | TokenChannels | PatchSimilarity | EffiSelect | IntraHead
"""The options of one method."""
MethodTable = Annotated[Method, Field(discriminator="method")]
"""How a file gives them."""

METHODS: Mapping[str, type[Method]] = {
    name: options
    for options in get_args(Method)
    for name in get_args(options.model_fields["method"].annotation)
}
"""The options of each method, by its name."""


def need_images(methods: Sequence[Method]) -> bool:
    """Say whether one of the methods looks at calibration images."""
    return any(options.looks_at_images(options.model_dump(exclude_unset=True)) for options in methods)


def learning_methods(methods: Sequence[Method]) -> list[tuple[int, LearningMethod]]:
    """Return the methods that learn from labels, each with its place."""
    return [(place, options) for place, options in enumerate(methods) if isinstance(options, LearningMethod)]


def _amount_problems(
    table: Mapping[str, object], decides: Mapping[str, Decided], remedy: str
) -> list[Problem]:
    """Check that something is decided, and nothing by a count and a share at once."""
    given = {
        kind: [option for option, other in decides.items() if other == kind and option in table]
        for kind in decides.values()
    }
    if not any(given.values()):
        names = ", ".join(decides)
        return [Problem("method", f'"{table.get("method")}" is not told how much to cut ({names}). {remedy}')]
    return [
        Problem(both[1], f"given beside {both[0]}. Keep one of the two.")
        for both in given.values()
        if len(both) > 1
    ]
