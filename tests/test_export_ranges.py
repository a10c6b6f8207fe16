from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from toy_vits import single_images, toy_model

from edgevit.errors import ExportError
from edgevit.export.links import onnx_link
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.ranges import read_ranges


@pytest.mark.parametrize("batch", [1, 2, None])
def test_ranges_are_the_largest_values_over_all_images(tmp_path: Path, batch: int | None) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(toy_model(), path, ExportOptions(batch=batch))
    ranges = read_ranges(path, single_images(3))
    link = onnx_link(path)
    assert link.at is not None
    given = single_images(3)
    if batch == 2:
        pairs = np.concatenate(given)
        given = [pairs[[0, 1]], pairs[[2, 2]]]
    for name, run in (("logits", link.run), ("blocks.1", link.at("blocks.1"))):
        assert ranges[name] == pytest.approx(max(float(np.abs(run(one)).max()) for one in given), rel=1e-5)
    assert {name for node in onnx.load(path).graph.node for name in node.output} >= set(ranges)


def test_ranges_of_a_graph_with_infinities_name_the_first_node(tmp_path: Path) -> None:
    model = toy_model()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.bias[0] = torch.inf
    export_onnx(model, tmp_path / "model.onnx", ExportOptions(batch=1))
    with pytest.raises(ExportError, match=r"blocks\.1\.mlp\.fc1[^:]*: expected finite values"):
        read_ranges(tmp_path / "model.onnx", single_images(1))


def test_ranges_of_a_graph_with_nan_name_the_first_node(tmp_path: Path) -> None:
    model = toy_model()
    with torch.no_grad():
        model.blocks[2].norm1.weight[3] = torch.nan
    export_onnx(model, tmp_path / "model.onnx", ExportOptions(batch=1))
    with pytest.raises(ExportError, match=r": blocks\.2\.norm1: expected finite values"):
        read_ranges(tmp_path / "model.onnx", single_images(1))
