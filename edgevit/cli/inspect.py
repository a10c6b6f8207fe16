"""`edgevit inspect` and `edgevit init`: what a model has, and a recipe to start from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edgevit.cli.guard import guarded
from edgevit.cli.output import Json, print_json

if TYPE_CHECKING:
    from edgevit.models.arch import Arch
    from edgevit.schema import OptionValue

_NumClasses = Annotated[
    int | None,
    typer.Option(
        "--num-classes", metavar="N", min=1, help="Classes of the head; names without a head need it."
    ),
]
_ImgSize = Annotated[
    str | None,
    typer.Option("--img-size", metavar="N|HxW", help="Pixels of an image; default: the name's own."),
]


@guarded
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL|DIR", help="A timm name, or what edgevit saved.")],
    num_classes: _NumClasses = None,
    img_size: _ImgSize = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="Make sure that these weights are of MODEL."
        ),
    ] = None,
    groups: Annotated[
        bool, typer.Option("--groups", help="Show instead which dims of which layers only go together.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --groups: also draw the matrix into FILE.")
    ] = None,
    json: Json = False,
) -> None:
    """Show heads, dims, tokens, MACs, params and bytes block by block, and what can be cut."""
    from edgevit.inspection import inspect_model, render

    if html is not None and not groups:
        raise typer.BadParameter("--html draws the matrix of --groups: give that, too")
    found = inspect_model(model, weights, _options(num_classes, img_size))
    if groups:
        _show_groups(model, found.arch, html, json=json)
    elif json:
        print_json(found.to_json())
    else:
        render(found, Console())


def _show_groups(name: str, arch: Arch, html: Path | None, *, json: bool) -> None:
    from edgevit.models.relations import read_relations
    from edgevit.relation_view import groups_to_json, render_groups, write_groups_html

    relations = read_relations(arch)
    if html is not None:
        write_groups_html(name, relations, html)
    if json:
        print_json(groups_to_json(name, relations))
    else:
        render_groups(name, relations, Console())


@guarded
def init(
    model: Annotated[str, typer.Argument(metavar="MODEL|DIR", help="A timm name, or what edgevit saved.")],
    num_classes: _NumClasses = None,
    img_size: _ImgSize = None,
) -> None:
    """Print a commented recipe for MODEL to start from."""
    from edgevit.init_recipe import recipe_text
    from edgevit.inspection import inspect_model

    options = _options(num_classes, img_size)
    found = inspect_model(model, options=options)
    typer.echo(recipe_text(model, found.arch, found.anatomy, options), nl=False)


def _options(num_classes: int | None, img_size: str | None) -> dict[str, OptionValue]:
    """Return what was given, as `model.options` of a recipe has it."""
    size = None if img_size is None else _pixels(img_size)
    given: dict[str, OptionValue | None] = {"num_classes": num_classes, "img_size": size}
    return {name: value for name, value in given.items() if value is not None}


def _pixels(size: str) -> int | tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", size)
    if match is None:
        raise typer.BadParameter(
            f"--img-size: expected pixels, such as 224, or height x width, such as 224x288; got {size!r}"
        )
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))
