"""What a model is made of, block by block, and what can be cut: data, and as a terminal table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgevit.cost import Cost, ModelCost, model_cost
from edgevit.errors import RecipeError, WeightsError
from edgevit.models.anatomy import read_anatomy
from edgevit.models.arch import Arch, arch_from_json
from edgevit.ownership import marker_path
from edgevit.plan import KINDS, Anatomy
from edgevit.report import phrases
from edgevit.schema import OptionValue

_SAVED_BESIDE = ("preprocess", "labels", "random_weights")  # in arch.json, but no dims
_DIMS = ("heads", "qk", "vo", "hidden", "tokens")
_NO_DIMS = ("",) * len(_DIMS)


@dataclass(frozen=True)
class Inspection:
    """A model's dims, what they cost, and what can be cut."""

    name: str
    arch: Arch
    anatomy: Anatomy
    cost: ModelCost

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON data."""
        blocks = zip(self.arch.blocks, self.cost.blocks, strict=True)
        return {
            "name": self.name,
            "image": list(self.arch.image),
            "patch": list(self.arch.patch),
            "embed": self.arch.embed,
            "classes": self.arch.classes,
            "tokens": self.arch.tokens,
            "prefix": self.arch.prefix,
            "reads": self.arch.reads,
            "total": _cost_json(self.cost.total),
            "stem": _cost_json(self.cost.stem),
            "blocks": [asdict(dims) | _cost_json(cost) for dims, cost in blocks],
            "head": _cost_json(self.cost.head),
            "can_cut": [kind for kind in KINDS if kind not in self.anatomy.refused],
            "cannot_cut": dict(self.anatomy.refused),
            "dead_tokens": self.anatomy.read_tokens is not None,
        }


def _cost_json(cost: Cost) -> dict[str, Any]:
    return {"macs": cost.macs, "params": cost.params, "bytes": cost.bytes}


def inspect_model(
    name: str, weights: Path | None = None, options: Mapping[str, OptionValue] | None = None
) -> Inspection:
    """Read the dims of a model: a timm name, or a directory with an arch.json.

    Args:
        name: as in a recipe's [model].
        weights: a file that has to be of this model; the dims say whether it is.
        options: of timm's create_model.

    Raises:
        RecipeError: timm knows no such model or refuses its options, and there is no such directory; or
            weights or options are given for a directory, which has its own.
        UnsupportedModelError: no model of a family that edgevit knows.
        WeightsError: the directory holds something else, or is damaged; weights of another model.
    """
    if not Path(name).is_dir():
        arch = _timm_arch(name, weights, options or {})
    elif weights or options:
        given = ", ".join([*(["weights"] if weights else []), *(options or {})])
        raise RecipeError(
            f"{name}: expected a timm name beside {given}, got a directory, whose model has its own weights"
            f" and dims. Leave {given} out."
        )
    else:
        arch = _saved_arch(Path(name))
    return Inspection(name, arch, read_anatomy(arch), model_cost(arch))


def _saved_arch(folder: Path) -> Arch:
    path = folder / "arch.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = "found no arch.json in it"
        if marker_path(folder).is_file():
            found = "this build is not finished. `edgevit build` with its recipe goes on where it stopped"
        raise WeightsError(f"{folder}: expected a model or build that edgevit saved, {found}.") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}). Build it again.") from error
    return arch_from_json({key: value for key, value in data.items() if key not in _SAVED_BESIDE}, str(path))


def _timm_arch(name: str, weights: Path | None, options: Mapping[str, OptionValue]) -> Arch:
    from edgevit.models.load import ModelSource, load_model

    return load_model(ModelSource(name, weights, options=options)).model.arch


def render(found: Inspection, console: Console) -> None:
    """Print the blocks as a table, and in words what can be cut."""
    arch = found.arch
    image = " x ".join(map(str, arch.image))
    patch = " x ".join(map(str, arch.patch))
    facts = f"image {image}, patch {patch}, width {_widths(arch)}, {arch.classes} classes"
    console.print(Text.assemble((found.name, "bold"), f"  {facts}"), soft_wrap=True)
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("part", no_wrap=True)
    for header in (*_DIMS, "MACs", "params", "bytes"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_row("stem", *_NO_DIMS, *_cost_cells(found.cost.stem))
    for index, (block, cost) in enumerate(zip(arch.blocks, found.cost.blocks, strict=True)):
        used = block.per_image.used if block.per_image else None
        neurons = phrases.hidden(block.hidden, used, block.mlp_inputs)
        dims = (block.heads, block.qk_dim, block.vo_dim, neurons, block.tokens_out)
        table.add_row(f"blocks.{index}", *map(str, dims), *_cost_cells(cost))
    table.add_row("head", *_NO_DIMS, *_cost_cells(found.cost.head), end_section=True)
    table.add_row("total", *_NO_DIMS, *_cost_cells(found.cost.total), style="bold")
    console.print(table)
    for line in _words(found):
        console.print(Text(line), soft_wrap=True)


def _widths(arch: Arch) -> str:
    return ", ".join(str(width) for width in dict.fromkeys(block.embed for block in arch.blocks))


def _cost_cells(cost: Cost) -> tuple[str, str, str]:
    return phrases.count(cost.macs), phrases.count(cost.params), phrases.size(cost.bytes)


def _words(found: Inspection) -> list[str]:
    anatomy = found.anatomy
    kinds = [kind for kind in KINDS if kind not in anatomy.refused]
    lines = ["MACs are multiply-accumulates of one image; bytes are of float32 weights."]
    lines.append(f"Can be cut: {', '.join(kinds)}.")
    lines += [f"Cannot be cut: {kind}: {reason}" for kind, reason in anatomy.refused.items()]
    if anatomy.read_tokens is None:
        lines.append("No dead tokens: the head reads all of them.")
    else:
        lines.append(f"Dead tokens: of the last block the head reads only {anatomy.read_tokens}.")
    return lines
