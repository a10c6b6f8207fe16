"""What a recipe file says: one model, what to cut from it, and where the result has to run.

The sections and names are the contract with users (docs/recipes.md). Paths are relative to the recipe file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from edgevit.budget import BudgetSection
from edgevit.errors import EdgevitError
from edgevit.methods import Count, Method, MethodTable, PerBlock
from edgevit.plan import Recover
from edgevit.recipe_conflicts import recipe_conflicts
from edgevit.schema import FolderName, OptionValue, Problem, Strict, load_toml, problems_text
from edgevit.shipped import find_shipped
from edgevit.target import DEFAULT_TARGET, Opset, Precision, load_target
from edgevit.training import TrainingKeys

Prefer = Literal["fastest", "all"]


class ModelSection(Strict):
    """The dense model."""

    name: str = Field(min_length=1)
    """A timm model name, or the directory of a model that edgevit saved."""
    weights: str | None = Field(default=None, min_length=1)
    """Weights file, .safetensors or .pth; without it and without `pretrained` the weights are random."""
    pretrained: bool = False
    """Let timm fetch its own weights."""
    options: dict[str, OptionValue] = Field(default_factory=dict)
    """Options of timm's create_model, such as img_size or num_classes."""


class CalibrationSection(Strict):
    """Images from which the closed form and trainings learn; only what learns from labels reads any."""

    set: str = Field(min_length=1)
    """Name of a shipped image set, or the path of one's own, ending in .toml."""
    images: int = Field(default=256, ge=1)
    """Images drawn from the set, >= 1."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw, >= 0."""


class EvaluationSection(Strict):
    """Images on which dense and slim are compared; without labels only their agreement is reported."""

    set: str = Field(min_length=1)
    """Name of a shipped image set, or the path of one's own, ending in .toml."""
    images: int | None = Field(default=None, ge=1)
    """Images drawn from the set, >= 1; default: all."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw, >= 0."""


class PlanSection(Strict):
    """What remains, by hand: one number for all blocks, or a list with one per block; absent: all."""

    heads: PerBlock | None = None
    """Attention heads that remain in a block, >= 1."""
    qk_dim: PerBlock | None = None
    """Query/key dims that remain in each head, >= 1."""
    vo_dim: PerBlock | None = None
    """Value/output dims that remain in each head, >= 1."""
    hidden: PerBlock | None = None
    """Hidden neurons that remain in the MLP of a block, >= 1."""
    tokens: PerBlock | None = None
    """Tokens that leave a block, class tokens included, >= 1."""


def _one_or_several(value: object) -> Literal["one", "several"]:
    return "one" if isinstance(value, Method | Mapping) else "several"


PruneSection = Annotated[
    Annotated[MethodTable, Tag("one")] | Annotated[tuple[MethodTable, ...], Tag("several")],
    Discriminator(_one_or_several),
]


class SlimSection(Strict):
    """How the parts that are cut are made up for."""

    recover: Recover | None = None
    """Weights from the closed form, or plain cutting; default: closed-form where [calibration] is given."""
    dead_tokens: bool = True
    """Leave out what the last block computes for tokens that the head does not read; the output stays."""


class TuneSection(TrainingKeys):
    """Training of the slim model after slimming, by the dense one's answers or by labels; absent: none."""

    logits: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Weight of the dense model's answers in the loss, >= 0."""
    temperature: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    """Divides both models' logits, > 0; above 1, the less likely classes count more."""
    hidden_states: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    """Weight of the error of the hidden states beside that of the logits, >= 0."""
    labels: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the cross-entropy with the calibration set's labels, >= 0; 0: labels are not read."""
    validation: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the images held out to choose the best epoch on, 0..0.5; 0: the last is the result."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the moving average of weights that becomes the result, 0..1; absent: there is none."""

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """Refuse a loss of nothing, and keys that nothing reads."""
        weights = [table.get(key, cls.model_fields[key].default) for key in _LOSSES]
        problems = []
        if not any(weights):
            text = "with logits, hidden_states and labels at 0 nothing is learnt. Raise one of them."
            problems.append(Problem("logits", text))
        if "smoothing" in table and not table.get("labels"):
            problems.append(
                Problem("smoothing", "only labels are smoothed. Take this key out, or add labels = 1.0.")
            )
        return problems


_LOSSES = ("logits", "hidden_states", "labels")


class ExportSection(Strict):
    """The shape of the ONNX file."""

    opset: Opset | None = None
    """ONNX opset, 13..23; default: the target's."""
    batch: Count | Literal["dynamic"] | None = None
    """Images per run, >= 1, or "dynamic"; default: the target's."""
    simplify: bool = False
    """Run onnxsim between two parity checks; needs the extra edgevit[simplify]."""


class Int8Section(Strict):
    """What int8 may cost against the same model in fp32; layers go back to float until that holds."""

    max_drop: float | None = Field(default=None, ge=0, le=100)
    """Points of top-1, 0..100, that fp32's probabilities on calibration images expect; default: the gate."""
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    """Share of calibration images with fp32's top-1, 0..1; default: the gate's."""


class TargetSection(Strict):
    """One device that the result is built for and measured on."""

    name: str = Field(min_length=1)
    """Name of a shipped target, or the path of one's own, ending in .toml."""
    precisions: tuple[Precision, ...] | None = Field(default=None, min_length=1)
    """Precisions that are built and compared; default: the target's."""
    prefer: Prefer = "fastest"
    """Choose the fastest trusted precision, or keep all of them."""


class Gates(Strict):
    """Limits that fail the build with an exit code of their own."""

    max_drop: float | None = Field(default=None, ge=0, le=100)
    """Top-1 that slim may lose against dense, in points, 0..100; needs labels."""
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    """Share of images on which slim gives dense's top-1, 0..1."""
    max_latency_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Median latency of slim in milliseconds, > 0."""
    min_speedup: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Measured speed-up of slim over dense, > 0."""


class Recipe(Strict):
    """A recipe; every section but [model] is optional."""

    how_to_make: ClassVar[str] = "Make one with `edgevit init MODEL > recipe.toml`."

    name: FolderName = ""
    """Name of the build directory; default: the recipe file's stem."""
    model: ModelSection
    """What is made smaller."""
    calibration: CalibrationSection | None = None
    """Images for the closed form, for methods, for trainings, and for the ranges of fp16 and int8."""
    evaluation: EvaluationSection | None = None
    """Images on which dense and slim are compared."""
    plan: PlanSection = PlanSection()
    """What remains, by hand."""
    prune: PruneSection = ()
    """What remains, by methods that decide in their order; one table, or several."""
    budget: BudgetSection | None = None
    """How much the slim model may cost, in place of [plan] and [prune]; edgevit decides what remains."""
    slim: SlimSection = SlimSection()
    """How the cut parts are made up for."""
    tune: TuneSection | None = None
    """Training of the slim model after slimming; absent: none."""
    export: ExportSection = ExportSection()
    """How the ONNX file is written."""
    int8: Int8Section = Int8Section()
    """What int8 may cost before layers go back to float."""
    target: tuple[TargetSection, ...] = Field(default=(TargetSection(name=DEFAULT_TARGET),), min_length=1)
    """Devices that the result is built for and measured on; default: openvino-cpu."""
    gates: Gates = Gates()
    """Limits that fail the build."""

    @property
    def recover(self) -> Recover:
        """Return what was asked for, else closed-form where there are calibration images, else none."""
        return self.slim.recover or ("closed-form" if self.calibration else "none")

    @property
    def methods(self) -> tuple[Method, ...]:
        """Return the methods that decide, in their order."""
        return self.prune if isinstance(self.prune, tuple) else (self.prune,)

    @property
    def fold_means(self) -> bool:
        """Whether what is plainly cut leaves its mean behind: a method may say so, where there are images."""
        return self.calibration is not None and any(options.leaves_mean for options in self.methods)

    @property
    def int8_limits(self) -> Int8Section:
        """Return what int8 may cost: what [int8] says, else the gate of the same name."""
        drop, agreement = self.int8.max_drop, self.int8.min_agreement
        return Int8Section(
            max_drop=self.gates.max_drop if drop is None else drop,
            min_agreement=self.gates.min_agreement if agreement is None else agreement,
        )

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """List what does not go together across sections."""
        return recipe_conflicts(table)


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and the file it came from."""

    recipe: Recipe
    """The content; its name is set."""
    path: Path
    """The recipe file, absolute."""
    sha256: str
    """Hash of the file's bytes, hexadecimal."""

    @property
    def folder(self) -> Path:
        """Return the folder to which the recipe's paths are relative."""
        return self.path.parent

    @property
    def weights(self) -> Path | None:
        """Return the weights file that the recipe names, which may not exist."""
        weights = self.recipe.model.weights
        return None if weights is None else self.folder / Path(weights).expanduser()


def find_recipe(name_or_path: str) -> Path:
    """Return the recipe file that `name_or_path` means: a file that exists, else a shipped recipe's name.

    Raises:
        RecipeError: it is neither.
    """
    path = Path(name_or_path).expanduser()
    return path if path.is_file() else find_shipped("recipes", name_or_path, Path())


def load_recipe(name_or_path: str) -> LoadedRecipe:
    """Load a recipe by path, or a shipped one by name; a file of that name wins.

    Raises:
        RecipeError: no such recipe, or its file has problems (all are listed).
    """
    path = find_recipe(name_or_path)
    recipe = load_toml(path, Recipe)
    named = recipe if recipe.name else recipe.model_copy(update={"name": path.stem})
    return LoadedRecipe(named, path.resolve(), hashlib.sha256(path.read_bytes()).hexdigest())


def check_targets(recipe: LoadedRecipe, names: Sequence[str]) -> None:
    """Make sure that every target of a build is there and says what a target may, before long imports.

    Args:
        recipe: the recipe.
        names: names or paths (relative to the working directory) in place of the recipe's targets.

    Raises:
        RecipeError: a target that does not exist or has problems.
    """
    own = [section.name for section in recipe.recipe.target]
    for name in names or own:
        load_target(name, recipe.folder if name in own else Path())


@contextmanager
def naming_recipe(path: Path) -> Iterator[None]:
    """Add the recipe file to errors in the block that name no more than its keys.

    What reads a recipe's values (a model, a plan, images) knows their keys but not the file: it says
    "plan.qk_dim: every block has 64 ...". The error that leaves the block says it as `load_recipe` would.

    Raises:
        EdgevitError: of the class that was raised inside.
    """
    try:
        yield
    except EdgevitError as error:
        text = with_recipe(path, str(error))
        if text == str(error):
            raise
        raise type(error)(text) from error


def with_recipe(path: Path, message: str) -> str:
    """Return `message` with the recipe file before it where it begins with a key, else as it is.

    Every line that begins with a dotted key of a recipe is a problem of its own.
    """
    problems: list[Problem] = []
    for line in message.splitlines():
        match = _KEYED_LINE.match(line)
        if match:
            problems.append(Problem(match["key"], match["text"]))
        elif problems:
            problems[-1] = Problem(problems[-1].key, f"{problems[-1].text}\n{line}")
        else:
            return message
    return problems_text(str(path), problems) if problems else message


_KEYED_LINE = re.compile(rf"(?P<key>(?:{'|'.join(Recipe.model_fields)})(?:\[\d+\])?(?:\.\w+)+): (?P<text>.*)")
