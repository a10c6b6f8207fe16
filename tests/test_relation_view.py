from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from toy_swins import SWIN
from toy_vits import ARCH, SOME_CHANNELS

from edgevit.errors import OutputError
from edgevit.models.relations import read_relations
from edgevit.relation_view import groups_to_json, render_groups, write_groups_html


def _text(width: int = 100) -> str:
    out = io.StringIO()
    render_groups("toy", read_relations(SWIN), Console(file=out, width=width))
    return out.getvalue()


def test_table_joins_blocks_that_are_alike() -> None:
    lines = _text().splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.startswith("blocks.")}
    assert [row for row in rows if row.endswith(".qk")] == ["blocks.0-1.qk", "blocks.2-3.qk"]
    assert rows["blocks.2-3.qk"][1:5] == ["4", "x", "8", "mul"]


def test_table_names_nodes_of_several_dims_a_unit() -> None:
    assert "blocks.*.downsample.norm x 4" in " ".join(_text(300).split())


def test_table_says_what_a_cut_without_loss_takes() -> None:
    assert "  qk: a zero row of q or of k" in _text()


def test_every_form_says_of_how_many_channels_an_mlp_reads_some(tmp_path: Path) -> None:
    found, out = read_relations(SOME_CHANNELS), io.StringIO()
    render_groups("toy", found, Console(file=out, width=300))
    assert "blocks.*.mlp.fc1.in (16 of 24)" in out.getvalue()
    assert "(12 of 48): the MLP reads only some channels" in out.getvalue()
    (stream,) = (group for group in groups_to_json("toy", found)["groups"] if group["kind"] == "stream")
    reads = {node["name"]: node["reads"] for node in stream["nodes"]}
    assert (reads["blocks.0.mlp.fc1.in"], reads["blocks.0.attn.q.in"]) == (16, 24)
    write_groups_html("toy", found, tmp_path / "groups.html")
    assert "blocks.2.mlp.fc1.in (16 of 24)" in (tmp_path / "groups.html").read_text()


def test_json_has_groups_with_nodes_and_relations() -> None:
    data = json.loads(json.dumps(groups_to_json("toy", read_relations(SWIN))))
    groups = {group["name"]: group for group in data["groups"]}
    assert groups["blocks.3.qk"]["parts"] == 4
    copies = {node["name"]: node["copies"] for node in groups["stream.0"]["nodes"]}
    assert copies["blocks.2.downsample.reduction.in"] == 4
    assert {"kind": "mul", "first": "blocks.0.attn.q.out", "second": "blocks.0.attn.k.out", "copies": 1} in (
        data["relations"]
    )


def test_html_holds_every_relation_and_needs_no_network(tmp_path: Path) -> None:
    path = tmp_path / "groups.html"
    found = read_relations(ARCH)
    write_groups_html("toy", found, path)
    text = path.read_text()
    assert "<script src=" not in text
    assert text.count('"kind": "mul"') == 2 * sum(relation.kind == "mul" for relation in found.relations)


def test_html_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"groups\.html"):
        write_groups_html("toy", read_relations(ARCH), tmp_path / "file" / "groups.html")
