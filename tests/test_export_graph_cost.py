from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from toy_graphs import ARCH, ARCHS, FORMS, exported, random_model

from edgevit.cost import model_cost
from edgevit.errors import ExportError
from edgevit.export.graph_cost import check_macs, graph_cost
from edgevit.models.arch import Arch


def torch_macs(arch: Arch) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        random_model(arch)(torch.zeros(1, *arch.image))
    return int(counter.get_total_flops()) // 2  # it counts a multiply-accumulate as two


@pytest.mark.parametrize("name", FORMS)
def test_three_counts_of_macs_are_one_number(tmp_path: Path, name: str) -> None:
    promised = model_cost(ARCHS[name])
    counted = graph_cost(exported(tmp_path, ARCHS[name]))
    assert promised.total.macs == counted.macs == torch_macs(ARCHS[name])
    assert counted.block_macs(len(promised.blocks)) == tuple(block.macs for block in promised.blocks)


@pytest.mark.parametrize("name", FORMS)
def test_params_of_the_file_are_the_params_of_the_model(tmp_path: Path, name: str) -> None:
    counted = graph_cost(exported(tmp_path, ARCHS[name]))
    assert counted.params == model_cost(ARCHS[name]).total.params


@pytest.mark.parametrize("batch", [pytest.param(3, marks=pytest.mark.slow), None])
def test_graph_cost_is_that_of_one_image_at_any_batch(tmp_path: Path, batch: int | None) -> None:
    arch = ARCHS["merged"]
    counted = graph_cost(exported(tmp_path, arch, batch=batch, opset=17))
    assert counted.macs == model_cost(arch).total.macs
    assert counted.softmax == 2 * (17 * 17 + 12 * 12 + 1 * 9)


def test_graph_cost_is_the_same_in_every_opset_and_simplified(tmp_path: Path) -> None:
    arch, plan = ARCHS["merged"], {"plan": "abc"}
    files: list[dict[str, Any]] = [{}, {"opset": 17}, {"simplify": True, "metadata": plan}]
    counts = [graph_cost(exported(tmp_path, arch, **options)) for options in files]
    assert {(count.macs, count.params) for count in counts} == {(counts[0].macs, counts[0].params)}


def test_check_macs_names_the_first_block_that_differs_with_both_numbers(tmp_path: Path) -> None:
    path = exported(tmp_path, ARCH)
    check_macs(path, ARCH)
    fewer = replace(ARCH, blocks=(ARCH.blocks[0], replace(ARCH.blocks[1], hidden=15)))
    promised, found = (f"{model_cost(arch).blocks[1].macs:,}" for arch in (fewer, ARCH))
    with pytest.raises(ExportError, match=rf"blocks\.1: expected {promised} MACs .* got {found}\."):
        check_macs(path, fewer)


def test_check_macs_sees_what_differs_outside_the_blocks(tmp_path: Path) -> None:
    more = replace(ARCH, classes=ARCH.classes + 1)
    promised, found = (f"{model_cost(arch).total.macs:,}" for arch in (more, ARCH))
    with pytest.raises(ExportError, match=f"the whole graph: expected {promised} MACs .* got {found}"):
        check_macs(exported(tmp_path, ARCH), more)


def test_check_macs_finds_the_blocks_of_a_simplified_file_with_a_dynamic_batch(tmp_path: Path) -> None:
    arch = ARCHS["merged"]
    check_macs(exported(tmp_path, arch, batch=None, simplify=True, metadata={"plan": "abc"}), arch)


def test_graph_cost_counts_elementwise_elements_apart(tmp_path: Path) -> None:
    fewer = replace(ARCH, blocks=tuple(replace(block, hidden=15) for block in ARCH.blocks))
    full, cut = (graph_cost(exported(tmp_path, arch)) for arch in (ARCH, fewer))
    assert full.elementwise - cut.elementwise == 2 * 17 * 6  # bias and the five operators of gelu
    assert full.softmax == cut.softmax == 2 * 2 * 17 * 17


def test_graph_cost_of_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\xff\xff\xffno protobuf")
    with pytest.raises(ExportError, match=r"broken\.onnx: cannot be read as ONNX"):
        graph_cost(path)


def test_graph_cost_of_shapes_that_depend_on_values_is_refused(tmp_path: Path) -> None:
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 4])
    found = onnx.helper.make_tensor_value_info("found", onnx.TensorProto.INT64, None)
    node = onnx.helper.make_node("NonZero", ["image"], ["found"], name="nonzero")
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "values", [image], [found]))
    path = tmp_path / "values.onnx"
    onnx.save(proto, path)
    with pytest.raises(ExportError, match=r"1 tensors have no fixed shape, the first is 'found'"):
        graph_cost(path)
