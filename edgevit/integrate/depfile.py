"""A depfile as gcc writes them: Make, Ninja and CMake read from it when a build has to run again."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgevit.errors import OutputError


def depfile_text(product: str, inputs: Iterable[str]) -> str:
    r"""Write that `product` was made of `inputs`.

    Spaces, `#`, `:`, `$` and backslashes in front of them are escaped as gcc does. Each input also gets a
    rule without prerequisites, so that Make runs the build, and does not stop, when one has been removed.

    Raises:
        OutputError: a path has a line break, which no depfile can hold.
    """
    paths = sorted(set(inputs) - {product})
    for path in [product, *paths]:
        if "\n" in path or "\r" in path:
            raise OutputError(f"{path!r}: a depfile cannot hold a path with a line break. Rename it.")
    names = [_escaped(path) for path in paths]
    rule = " \\\n ".join([f"{_escaped(product)}:", *names])
    return rule + "\n" + "".join(f"\n{name}:\n" for name in names)


def _escaped(path: str) -> str:
    path = re.sub(r"(\\*)([ \t#:])", lambda match: match[1] * 2 + "\\" + match[2], path)
    return path.replace("$", "$$")
