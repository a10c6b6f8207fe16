"""What `edgevit inspect --groups` shows of a relationship matrix: as data, as a table, as a picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgevit.disk import atomic_write
from edgevit.models.relations import Group, GroupKind, Node, Relations

_WHAT: dict[GroupKind, str] = {
    "qk": "a zero row of q or of k",
    "vo": "a zero row of v or a zero column of proj",
    "hidden": "a zero row of fc1 (or gate) or a zero column of fc2",
    "stream": "zeros in everything that is added; the norms go on dividing by the full width",
    "tokenizer": "a zero filter, or one that nothing reads",
    "image": "never: these are the image's channels",
    "classes": "never: these are the classes",
}
"""What it takes for a unit of a group to be cut without a change of the outputs."""

_PARTLY = ("(12 of 48): the MLP reads only some channels of the stream, the others as if they were zero.",)
_CELL_PX = 7
_LARGEST_PX = 1600


def groups_to_json(name: str, found: Relations) -> dict[str, Any]:
    """Return groups and relations as JSON data."""
    return {
        "name": name,
        "groups": [_group_to_json(group) for group in found.groups],
        "relations": [
            {
                "kind": relation.kind,
                "first": relation.first.name,
                "second": relation.second.name,
                "copies": relation.copies,
            }
            for relation in found.relations
        ],
    }


def _group_to_json(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "kind": group.kind,
        "size": group.size,
        "parts": group.parts,
        "nodes": [
            {
                "name": node.name,
                "size": node.size,
                "copies": node.size // group.size,
                "reads": node.size if node.reads is None else node.reads,
            }
            for node in group.nodes
        ],
        "lossless": _WHAT[group.kind],
    }


def render_groups(name: str, found: Relations, console: Console) -> None:
    """Print the groups as a table; neighbouring blocks whose groups are alike share their rows."""
    counts = f"{len(found.nodes)} nodes, {len(found.relations)} relations, {len(found.groups)} groups"
    console.print(Text.assemble((name, "bold"), f"  {counts}"), soft_wrap=True)
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("group", no_wrap=True)
    table.add_column("units", justify="right", no_wrap=True)
    table.add_column("related by", no_wrap=True)
    table.add_column("nodes", overflow="fold")
    for label, group in _rows(found):
        kinds = dict.fromkeys(relation.kind for relation in group.relations)
        units = str(group.size) if group.parts == 1 else f"{group.parts} x {group.size // group.parts}"
        table.add_row(label, units, "\n".join(kinds) or "-", ", ".join(_members(group)))
    console.print(table)
    lines = [
        "A node is one side of a layer. A unit is what can only go together: a dim of each node of the group",
        '(four where it says "x 4"). 3 x 64: each of 3 heads has 64, and all heads of a block keep as many.',
        *(_PARTLY if any(node.reads is not None for node in found.nodes) else ()),
        "What it takes to cut a unit without a change of the outputs:",
    ]
    lines += [f"  {kind}: {_WHAT[kind]}" for kind in dict.fromkeys(group.kind for group in found.groups)]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _rows(found: Relations) -> Iterator[tuple[str, Group]]:
    """Yield a label for each run of blocks that are alike, and the groups of the first of them."""
    outside = [group for group in found.groups if not group.name.startswith("blocks.")]
    inside = [group for group in found.groups if group.name.startswith("blocks.")]
    by_block = [(number, list(groups)) for number, groups in itertools.groupby(inside, key=_number)]
    for group in outside:
        yield group.name, group
    for _, run in itertools.groupby(by_block, key=lambda block: [_form(group) for group in block[1]]):
        alike = list(run)
        first, last = alike[0][0], alike[-1][0]
        where = f"blocks.{first}" if first == last else f"blocks.{first}-{last}"
        for group in alike[0][1]:
            yield f"{where}.{group.kind}", group


def _number(group: Group) -> str:
    return group.name.split(".")[1]


def _form(group: Group) -> tuple[object, ...]:
    return group.kind, group.size, group.parts, tuple(_members(group))


def _members(group: Group) -> list[str]:
    """Name the nodes: inside one block without its name, of several blocks once for all of them."""
    several = group.kind == "stream"
    names = []
    for node in group.nodes:
        copies = node.size // group.size
        head, _, rest = node.name.partition(".")
        inner = rest.partition(".")[2]
        name = (f"blocks.*.{inner}" if several else inner) if head == "blocks" else node.name
        names.append(f"{name}{_some(node)}" if copies == 1 else f"{name} x {copies}")
    return list(dict.fromkeys(names))


def _some(node: Node) -> str:
    """Say of how many dims a node reads only some, where it does."""
    return "" if node.reads is None else f" ({node.reads} of {node.size})"


def write_groups_html(name: str, found: Relations, path: Path) -> None:
    """Write the matrix as one HTML file that needs no network: a cell for each related pair of nodes.

    Raises:
        OutputError: the file cannot be written.
        DiskFullError: no space left.
    """
    import altair as alt

    labels = {node: f"{node.name}{_some(node)}" for node in found.nodes}
    group_of = {node: group for group in found.groups for node in group.nodes}
    rows = [
        {
            "node": labels[first],
            "related to": labels[second],
            "kind": relation.kind,
            "copies": relation.copies,
            "group": group_of[first].name,
            "units": group_of[first].size,
        }
        for relation in found.relations
        for first, second in ((relation.first, relation.second), (relation.second, relation.first))
    ]
    side = min(_CELL_PX * len(labels), _LARGEST_PX)
    axis = alt.Axis(labelFontSize=6, labelOverlap=True, title=None)
    order: list[Any] = list(labels.values())
    title = f"{name}: what can only be cut together"
    chart = (
        alt.Chart(alt.Data(values=rows), width=side, height=side, title=title)
        .mark_rect()
        .encode(
            x=alt.X("related to:N", sort=order, scale=alt.Scale(domain=order), axis=axis),
            y=alt.Y("node:N", sort=order, scale=alt.Scale(domain=order), axis=axis),
            color=alt.Color("kind:N", title="related by"),
            tooltip=[f"{field}:N" for field in ("node", "related to", "kind", "copies", "group", "units")],
        )
    )
    atomic_write(path, chart.to_html(inline=True).encode())
