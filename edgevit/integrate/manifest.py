"""manifest.json: every file of a build with its hash; the same bytes for the same inputs and versions."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field

from edgevit.schema import Strict

MANIFEST_FILE = "manifest.json"
SCHEMA = 1

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileEntry(Strict):
    """One file below the build directory."""

    path: str = Field(min_length=1)
    """Relative to the build directory, with forward slashes."""
    bytes: int = Field(ge=0)
    sha256: Sha256


class ArtefactEntry(Strict):
    """What a runtime loads; files that belong to it (weights) lie beside it."""

    target: str
    precision: str
    model: Literal["dense", "slim"]
    path: str
    """The file to load, relative to the build directory."""


class Manifest(Strict):
    """Files of a build, and the hashes of what they were made of; times and choices are in report.json."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    recipe_sha256: Sha256
    plan_sha256: Sha256
    versions: dict[str, str]
    artefacts: tuple[ArtefactEntry, ...]
    not_measured: tuple[str, ...] = ()
    """Targets that got a build kit alone: nothing was measured for them, and no gate was judged."""
    files: tuple[FileEntry, ...]


def manifest_text(manifest: Manifest) -> str:
    """Write a manifest as canonical JSON text."""
    data = manifest.model_dump(mode="json", by_alias=True)
    data["versions"] = dict(sorted(manifest.versions.items()))
    data["artefacts"] = sorted(data["artefacts"], key=lambda entry: str(entry["path"]))
    data["files"] = sorted(data["files"], key=lambda entry: str(entry["path"]))
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"
