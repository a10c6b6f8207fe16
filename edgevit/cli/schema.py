"""`edgevit schema`."""

from __future__ import annotations

from typing import Annotated

import typer

from edgevit.cli.guard import guarded
from edgevit.cli.output import print_json


@guarded
def schema(
    kind: Annotated[
        str | None, typer.Argument(help="recipe, target, set, report, sweep or manifest; default: all.")
    ] = None,
) -> None:
    """Print the JSON schema of recipes, targets, image sets, reports, sweeps and manifests."""
    from pydantic import BaseModel

    from edgevit.images import ImageSet
    from edgevit.integrate.manifest import Manifest
    from edgevit.recipe import Recipe
    from edgevit.report.model import Report
    from edgevit.report.sweep import Sweep
    from edgevit.target import Target

    kinds: dict[str, type[BaseModel]] = {
        "recipe": Recipe,
        "target": Target,
        "set": ImageSet,
        "report": Report,
        "sweep": Sweep,
        "manifest": Manifest,
    }
    if kind is not None and kind not in kinds:
        from edgevit.schema import did_you_mean

        raise typer.BadParameter(
            f"no kind {kind!r}.{did_you_mean(kind, kinds)} There are: {', '.join(kinds)}."
        )
    schemas = {name: model.model_json_schema() for name, model in kinds.items()}
    print_json(schemas if kind is None else schemas[kind])
