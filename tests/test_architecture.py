"""The arrows of docs/architecture.md: who may import whom is read from its table, who does from the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = CHECKOUT / "edgevit"

Rooms = dict[str, frozenset[str]]
"""From a room to the rooms it may import. The modules of one row share a room, named after the first."""


def _read_table() -> list[tuple[tuple[str, ...], str]]:
    """Return the table's rows: the modules of the first column, and the text of the last."""
    text = (CHECKOUT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|.*\| (.*?) \|$", text, re.M)
    return [(tuple(re.findall(r"`(\w+)(?:\.py|/)`", modules)), allowed) for modules, allowed in rows]


def _room_of_module() -> dict[str, str]:
    return {module: modules[0] for modules, _ in _read_table() for module in modules}


def _allowed() -> Rooms:
    room_of, rooms = _room_of_module(), Rooms()
    for modules, text in _read_table():
        names = {"all above": sorted(rooms), "nothing": []}.get(text, text.split(", "))
        direct = {room_of.get(name, name) for name in names}
        rooms[modules[0]] = frozenset(direct)
    order = TopologicalSorter(rooms).static_order()  # raises CycleError when an arrow points back
    reach = Rooms()
    for room in order:
        reach[room] = rooms[room].union(*(reach[below] for below in rooms[room]))
    return reach


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def _imported(path: Path) -> Iterator[str]:
    """Yield the first name below `edgevit` of every import in the file, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom(module="edgevit", names=names):
                yield from ("__init__" for _ in names)
            case ast.ImportFrom(module=str() as module) if module.startswith("edgevit."):
                yield module.split(".")[1]
            case ast.Import(names=names):
                found = (alias.name.split(".") for alias in names)
                yield from ((*parts, "__init__")[1] for parts in found if parts[0] == "edgevit")


def _may_import(room: str | None, other: str | None, allowed: Rooms) -> bool:
    return room is not None and (room == other or other in allowed[room])


def test_table_names_every_module() -> None:
    assert {module for module, _ in _modules()} - set(_room_of_module()) == set()


def test_table_of_rooms_points_one_way() -> None:
    assert all(room not in reach for room, reach in _allowed().items())


def test_imports_follow_the_table() -> None:
    room_of, allowed = _room_of_module(), _allowed()
    wrong = [
        f"{path.relative_to(CHECKOUT)} imports edgevit.{imported}"
        for module, path in _modules()
        for imported in _imported(path)
        if not _may_import(room_of.get(module), room_of.get(imported), allowed)
    ]
    assert wrong == []


def test_package_has_no_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "helpers", "common", "misc"}
    assert [path for _, path in _modules() if path.stem in drawers] == []
