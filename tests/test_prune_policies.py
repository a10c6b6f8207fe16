from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from toy_streams import MODELS, some_channels, with_zero_channels
from toy_swins import toy_swin
from toy_vits import ARCH, noise_images, toy_model, toy_plan

from edgevit.models.layers import SlimViT
from edgevit.models.relations import Group, Node, read_relations
from edgevit.plan import Counts, Kept
from edgevit.prune.policies import aligned_count, deletable_units, zero_dims
from edgevit.slim.channels import cut_channels
from edgevit.slim.select import slim_by_selection

GATED = dataclasses.replace(ARCH, gated=True, activation="silu")


def _zeros(node: Node, *dims: int) -> dict[Node, Tensor]:
    mask = torch.zeros(node.size, dtype=torch.bool)
    mask[list(dims)] = True
    return {node: mask}


def _units(group: Group, zeros: dict[Node, Tensor]) -> list[int]:
    units: list[int] = deletable_units(group, zeros).nonzero().flatten().tolist()
    return units


def test_product_needs_a_zero_on_either_side() -> None:
    group = read_relations(ARCH).group_of("blocks.0.qk")
    q, k = group.nodes
    assert _units(group, _zeros(q, 3, 9) | _zeros(k, 9, 20)) == [3, 9, 20]


def test_producer_or_consumer_is_enough() -> None:
    group = read_relations(ARCH).group_of("blocks.0.vo")
    v, proj = group.nodes
    assert _units(group, _zeros(v, 1) | _zeros(proj, 2)) == [1, 2]


def test_addition_needs_zeros_in_all_that_is_added() -> None:
    group = read_relations(ARCH).group_of("stream.0")
    zeros = {node: mask for p in group.producers for node, mask in _zeros(p, 4, 7).items()}
    assert _units(group, zeros) == [4, 7]
    zeros[group.producers[-1]][7] = False
    assert _units(group, zeros) == [4]
    del zeros[group.producers[0]]
    assert _units(group, zeros) == []


def test_unit_of_several_dims_needs_zeros_in_all_of_them() -> None:
    group = read_relations(dataclasses.replace(ARCH, qk_norm=True)).group_of("blocks.0.qk")
    q = group.nodes[0]
    assert _units(group, _zeros(q, 2, 10, 18, 3)) == [2]


@pytest.mark.parametrize("name", ["image", "classes"])
def test_image_and_classes_are_never_cut(name: str) -> None:
    group = read_relations(ARCH).group_of(name)
    assert _units(group, _zeros(group.nodes[0], 0)) == []


def _silence(model: SlimViT, group: Group, place: int) -> list[int]:
    """Make rows or columns of one node of a group zero, the same number in each head; return the units."""
    node = group.nodes[place]
    width = group.size // group.parts
    dims = [head * width + dim for head in range(group.parts) for dim in ((1, 4) if head % 2 else (0, 6))]
    layer = model.get_submodule(node.layer)
    if node.side == "in":
        layer.weight[:, dims] = 0  # type: ignore[index]
    else:
        layer.weight[dims] = 0  # type: ignore[index]
        if layer.bias is not None:
            layer.bias[dims] = 0  # type: ignore[index]
    return sorted(dims)


@pytest.mark.parametrize("dense", [toy_model(), toy_swin(), toy_model(GATED)], ids=["ViT", "Swin", "gated"])
@pytest.mark.parametrize("part", ["qk", "vo", "hidden"])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_model_without_deletable_units_gives_the_same(dense: SlimViT, part: str, place: int) -> None:
    """Every bias is random; the softmax scale stays that of the dense model."""
    masked = slim_by_selection(dense, toy_plan(dense, Counts()))
    relations = read_relations(dense.arch)
    plan = toy_plan(dense, Counts())
    blocks = []
    for index, block in enumerate(plan.blocks):
        group = relations.group_of(f"blocks.{index}.{part}")
        with torch.no_grad():
            expected = _silence(masked, group, place)
        gone = deletable_units(group, zero_dims(masked, group))
        assert gone.nonzero().flatten().tolist() == expected
        kept = tuple(tuple(row.nonzero().flatten().tolist()) for row in ~gone.view(group.parts, -1))
        match part:
            case "qk":
                block = dataclasses.replace(block, qk_dim=len(kept[0]), kept=Kept(qk=kept))
            case "vo":
                block = dataclasses.replace(block, vo_dim=len(kept[0]), kept=Kept(vo=kept))
            case _:
                block = dataclasses.replace(block, hidden=len(kept[0]), kept=Kept(hidden=kept[0]))
        blocks.append(block)
    slim = slim_by_selection(masked, dataclasses.replace(plan, blocks=tuple(blocks)))
    image = noise_images(3, dense.arch)
    torch.testing.assert_close(slim(image), masked(image), rtol=1e-5, atol=1e-5)
    assert (masked(image) - dense(image)).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_channels_that_are_zero_everywhere_are_found_and_cut_exactly(name: str) -> None:
    dense = MODELS[name]()
    masked = with_zero_channels(dense, some_channels(dense))
    groups = [group for group in read_relations(dense.arch).groups if group.kind == "stream"]
    kept = tuple(
        tuple((~deletable_units(group, zero_dims(masked, group))).nonzero().flatten().tolist())
        for group in groups
    )
    assert kept == some_channels(dense)
    image = noise_images(2, dense.arch)
    torch.testing.assert_close(cut_channels(masked, kept)(image), masked(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("align", "expected"), [(1, 3), (2, 4), (4, 4), (5, 5), (8, 6)])
def test_aligned_count_is_the_fullest_heads_rounded_up(align: int, expected: int) -> None:
    live = torch.tensor([[1, 0, 0, 0, 0, 1], [1, 1, 0, 1, 0, 0]], dtype=torch.bool)
    assert aligned_count(live, align) == expected


def test_aligned_count_leaves_one() -> None:
    assert aligned_count(torch.zeros(3, 8, dtype=torch.bool), 1) == 1
