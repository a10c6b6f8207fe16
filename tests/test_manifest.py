from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from edgevit.integrate.manifest import ArtefactEntry, FileEntry, Manifest, manifest_text

HASH = "0" * 64


def manifest(*paths: str, versions: dict[str, str]) -> Manifest:
    return Manifest(
        name="toy",
        recipe_sha256=HASH,
        plan_sha256=HASH,
        versions=versions,
        artefacts=(ArtefactEntry(target="t", precision="fp32", model="slim", path="t/fp32/model.xml"),),
        files=tuple(FileEntry(path=path, bytes=1, sha256=HASH) for path in paths),
    )


def test_manifest_text_is_the_same_whatever_the_order() -> None:
    first = manifest("b", "a", versions={"torch": "2", "onnx": "1"})
    second = manifest("a", "b", versions={"onnx": "1", "torch": "2"})
    assert manifest_text(first) == manifest_text(second)
    assert [entry["path"] for entry in json.loads(manifest_text(first))["files"]] == ["a", "b"]


def test_manifest_text_starts_with_its_schema() -> None:
    assert next(iter(json.loads(manifest_text(manifest("a", versions={}))).items())) == ("schema", 1)


def test_manifest_hash_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="sha256"):
        FileEntry(path="a", bytes=1, sha256="abc")
