"""The public API is `edgevit.__all__`."""

from __future__ import annotations

import pytest

import edgevit


@pytest.mark.parametrize("name", edgevit.__all__)
def test_exports_every_name_resolves(name: str) -> None:
    assert getattr(edgevit, name) is not None


def test_exports_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'edgevit' has no attribute 'bulid'"):
        edgevit.bulid  # noqa: B018


def test_exports_dir_lists_the_lazy_names() -> None:
    assert set(edgevit.__all__) <= set(dir(edgevit))
