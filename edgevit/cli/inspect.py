"""`edgevit inspect` and `edgevit init`: what a model has, and a recipe to start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edgevit.cli.guard import guarded
from edgevit.cli.output import Json, print_json

if TYPE_CHECKING:
    from edgevit.models.arch import Arch


@guarded
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL|DIR", help="A timm name, or what edgevit saved.")],
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
    found = inspect_model(model)
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
) -> None:
    """Print a commented recipe for MODEL to start from."""
    from edgevit.init_recipe import recipe_text
    from edgevit.inspection import inspect_model

    found = inspect_model(model)
    typer.echo(recipe_text(model, found.arch, found.anatomy), nl=False)
