"""What a recipe file says: one model, what to cut from it, and where the result has to run.

The sections and names are the contract with users (docs/recipes.md). Paths are relative to the recipe file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from edgevit.schema import FolderName, Problem, Strict, load_toml, section
from edgevit.shipped import find_shipped
from edgevit.target import DEFAULT_TARGET, Opset, Precision, repeated_precisions

Count = Annotated[int, Field(ge=1)]
PerBlock = Count | Annotated[tuple[Count, ...], Field(min_length=1)]
Scalar = str | int | float | bool
OptionValue = Scalar | tuple[Scalar, ...]
Recover = Literal["none", "closed-form"]

_BY_HAND = "not in this version, which knows only plans by hand. Write the counts that remain into [plan]."
# timm.create_model takes these as well, but edgevit loads the weights, safely, by its own keys.
_NOT_OPTIONS = {"pretrained": "model.pretrained", "checkpoint_path": "model.weights"}


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
    """Unlabelled images from which the closed form learns what the cut parts were worth."""

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


class SlimSection(Strict):
    """How the parts that are cut are made up for."""

    recover: Recover | None = None
    """Weights from the closed form, or plain cutting; default: closed-form where [calibration] is given."""
    dead_tokens: bool = True
    """Leave out what the last blocks compute for tokens that nothing reads; the output stays the same."""


class ExportSection(Strict):
    """The shape of the ONNX file."""

    opset: Opset | None = None
    """ONNX opset, 17..23; default: the target's."""
    batch: Count | Literal["dynamic"] | None = None
    """Images per run, >= 1, or "dynamic"; default: the target's."""
    simplify: bool = False
    """Run onnxsim between two parity checks; needs the extra edgevit[simplify]."""


class TargetSection(Strict):
    """One device that the result is built for and measured on."""

    name: str = Field(min_length=1)
    """Name of a shipped target, or the path of one's own, ending in .toml."""
    precisions: tuple[Precision, ...] | None = Field(default=None, min_length=1)
    """Precisions that are built and compared; default: the target's."""
    prefer: Literal["fastest", "all"] = "fastest"
    """Choose the fastest trusted precision, or keep all of them."""


class GatesSection(Strict):
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

    unknown_key_notes: ClassVar[Mapping[str, str]] = dict.fromkeys(("prune", "budget", "tune"), _BY_HAND)

    name: FolderName = ""
    """Name of the build directory; default: the recipe file's stem."""
    model: ModelSection
    """What is made smaller."""
    calibration: CalibrationSection | None = None
    """Unlabelled images for the closed form."""
    evaluation: EvaluationSection | None = None
    """Images on which dense and slim are compared."""
    plan: PlanSection = PlanSection()
    """What remains, by hand."""
    slim: SlimSection = SlimSection()
    """How the cut parts are made up for."""
    export: ExportSection = ExportSection()
    """How the ONNX file is written."""
    target: tuple[TargetSection, ...] = Field(default=(TargetSection(name=DEFAULT_TARGET),), min_length=1)
    """Devices that the result is built for and measured on; default: openvino-cpu."""
    gates: GatesSection = GatesSection()
    """Limits that fail the build."""

    @property
    def recover(self) -> Recover:
        """Return what was asked for, else closed-form where there are calibration images, else none."""
        return self.slim.recover or ("closed-form" if self.calibration else "none")

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """List what does not go together across sections."""
        return [
            *_model_conflicts(section(table, "model")),
            *_plan_conflicts(section(table, "plan")),
            *_missing_sections(table),
            *_target_conflicts(table.get("target")),
        ]


def _model_conflicts(model: Mapping[str, object]) -> list[Problem]:
    problems = [
        Problem(f"model.options.{key}", f"not an option; use {instead}")
        for key, instead in _NOT_OPTIONS.items()
        if key in section(model, "options")
    ]
    if "weights" in model and model.get("pretrained") is True:
        problems.append(Problem("model.weights", "given beside pretrained = true. Keep one of the two."))
    return problems


def _plan_conflicts(plan: Mapping[str, object]) -> list[Problem]:
    lengths = {key: len(value) for key, value in plan.items() if isinstance(value, tuple) and value}
    if len(set(lengths.values())) < 2:
        return []
    found = ", ".join(f"{key} {length}" for key, length in lengths.items())
    return [Problem("plan", f"expected lists of one length, an entry per block; got {found} entries")]


def _missing_sections(table: Mapping[str, object]) -> list[Problem]:
    problems = []
    if section(table, "slim").get("recover") == "closed-form" and "calibration" not in table:
        text = 'missing; slim.recover = "closed-form" needs images. Add [calibration], or say "none".'
        problems.append(Problem("calibration", text))
    gates = [key for key in ("max_drop", "min_agreement") if key in section(table, "gates")]
    if gates and "evaluation" not in table:
        text = f"missing; gates.{' and gates.'.join(gates)} cannot be checked without images to compare on"
        problems.append(Problem("evaluation", text))
    return problems


def _target_conflicts(targets: object) -> list[Problem]:
    tables = [t for t in targets if isinstance(t, Mapping)] if isinstance(targets, tuple) else []
    problems = []
    for index, table in enumerate(tables):
        problems += repeated_precisions(f"target[{index}].precisions", table.get("precisions"))
        if table.get("name") in [earlier.get("name") for earlier in tables[:index]]:
            text = f'"{table.get("name")}" is there twice. Put its precisions into one [[target]].'
            problems.append(Problem(f"target[{index}].name", text))
    return problems


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
