from __future__ import annotations

import dataclasses

import pytest
from toy_ccts import CCT_ARCH, TWO_CONVS, toy_cct
from toy_dinos import toy_dino
from toy_swins import SWIN
from toy_vits import ARCH, SOME_CHANNELS, toy_arch

from edgevit.models.arch import Arch
from edgevit.models.from_cct import from_cct
from edgevit.models.layers import SlimViT
from edgevit.models.relations import Node, Relation, Relations, read_relations

ARCHS: dict[str, Arch] = {
    "plain": ARCH,
    "distilled": toy_arch("class+distillation", 2),
    "gated": dataclasses.replace(ARCH, gated=True, activation="silu"),
    "qk-norm": dataclasses.replace(ARCH, qk_norm=True),
    "pre-norm": dataclasses.replace(ARCH, pre_norm=True),
    "swin": SWIN,
    "cct": CCT_ARCH,
    "two convolutions": from_cct(toy_cct(TWO_CONVS, 32), "toy").arch,
    "rotary": toy_dino().arch,
    "some channels": SOME_CHANNELS,
}


def _image(relation: Relation, dim: int) -> list[int]:
    """Return the dims of the second node that go with one of the first."""
    first, second = relation.first.size, relation.second.size
    return [dim % second] if second < first else list(range(dim, second, first))


def _dims_together(found: Relations) -> dict[tuple[str, int], set[tuple[str, int]]]:
    """Return for each single dim all that go with it, by following index maps dim by dim."""
    together = {(node.name, dim): {(node.name, dim)} for node in found.nodes for dim in range(node.size)}
    for relation in found.relations:
        for dim in range(relation.first.size):
            for image in _image(relation, dim):
                one = together[(relation.first.name, dim)]
                other = together[(relation.second.name, image)]
                if one is not other:
                    one |= other
                    for member in other:
                        together[member] = one
    return together


@pytest.mark.parametrize("name", ARCHS)
def test_groups_partition_all_nodes(name: str) -> None:
    found = read_relations(ARCHS[name])
    inside = [node for group in found.groups for node in group.nodes]
    assert sorted(inside) == sorted(found.nodes)
    assert len(set(found.nodes)) == len(found.nodes)
    assert len({group.name for group in found.groups}) == len(found.groups)
    assert sum(len(group.relations) for group in found.groups) == len(found.relations)


@pytest.mark.parametrize("name", ARCHS)
def test_units_of_a_group_are_what_its_index_maps_connect(name: str) -> None:
    found = read_relations(ARCHS[name])
    together = _dims_together(found)
    for group in found.groups:
        for unit in range(group.size):
            expected = {
                (node.name, dim) for node in group.nodes for dim in range(unit, node.size, group.size)
            }
            assert together[(group.nodes[0].name, unit)] == expected


@pytest.mark.parametrize("name", ARCHS)
def test_nodes_are_the_layers_of_the_model_with_their_sizes(name: str) -> None:
    model = SlimViT(ARCHS[name])
    found = read_relations(ARCHS[name])
    weights = {key.removesuffix(".weight"): value for key, value in model.state_dict().items()}
    for node in found.nodes:
        if node.layer.endswith("rotary"):
            assert 2 * node.size == weights[f"{node.layer}.cos"].shape[1]
        elif node.layer in ("position", "prefix"):
            assert node.size == weights[node.layer].shape[2]
        else:
            expected = node.size if node.reads is None else node.reads
            assert expected == weights[node.layer].shape[1 if node.side == "in" else 0]
    drawn = {node.layer for node in found.nodes}
    layers = {key for key, value in weights.items() if value.dim() > 1 and value.numel()}
    no_dims = ("position_bias", ".cos", ".sin")
    assert {key for key in layers if not key.endswith(no_dims)} <= drawn


def test_queries_and_keys_of_a_block_are_one_group_with_its_heads() -> None:
    group = read_relations(ARCH).group_of("blocks.0.qk")
    assert group.nodes == (Node("blocks.0.attn.q", "out", 24), Node("blocks.0.attn.k", "out", 24))
    assert [relation.kind for relation in group.relations] == ["mul"]
    assert (group.size, group.parts, group.producers) == (24, 3, ())


def test_values_and_projection_of_a_block_are_one_group() -> None:
    group = read_relations(ARCH).group_of("blocks.1.vo")
    assert [node.name for node in group.nodes] == ["blocks.1.attn.v.out", "blocks.1.attn.proj.in"]
    assert [relation.kind for relation in group.relations] == ["producer-consumer"]


def test_gate_and_value_rows_of_a_neuron_are_one_group() -> None:
    group = read_relations(ARCHS["gated"]).group_of("blocks.2.hidden")
    names = [node.name for node in group.nodes]
    assert names == ["blocks.2.mlp.fc1.out", "blocks.2.mlp.gate.out", "blocks.2.mlp.fc2.in"]
    assert {relation.kind for relation in group.relations} == {"mul", "producer-consumer"}


def test_norm_of_queries_ties_the_heads_together() -> None:
    group = read_relations(ARCHS["qk-norm"]).group_of("blocks.0.qk")
    assert (group.size, group.parts) == (8, 1)
    q_norm = next(relation for relation in group.relations if relation.second.layer.endswith("q_norm"))
    assert (q_norm.copies, q_norm.second.size) == (3, 8)


def test_rotary_angles_tie_pairs_of_dims_together() -> None:
    group = read_relations(ARCHS["rotary"]).group_of("blocks.0.qk")
    assert group.size == ARCHS["rotary"].blocks[0].qk_dim // 2


def test_stream_of_each_swin_stage_is_one_group_and_merging_maps_one_to_four() -> None:
    found = read_relations(SWIN)
    assert [group.size for group in found.groups if group.kind == "stream"] == [16, 32]
    names = [node.name for node in found.group_of("stream.0").nodes]
    assert "blocks.2.downsample.reduction.in" in names
    assert "blocks.2.downsample.reduction.out" not in names
    assert found.group_of("stream.1").nodes[0].name == "blocks.2.downsample.reduction.out"
    merging = next(r for r in found.relations if r.second.name == "blocks.2.downsample.norm")
    assert merging.copies == 4


def test_stream_of_a_vit_is_added_to_by_embedding_tokens_and_both_projections() -> None:
    group = read_relations(ARCHS["distilled"]).group_of("stream.0")
    names = [node.name for node in group.producers]
    assert names[:3] == ["patch_embed.out", "position.out", "prefix.out"]
    assert names[3:5] == ["blocks.0.attn.proj.out", "blocks.0.mlp.fc2.out"]
    assert {"head.in", "head_dist.in", "norm"} <= {node.name for node in group.nodes} - set(names)


def test_norm_on_the_stream_of_a_cct_is_one_of_its_producers() -> None:
    found = read_relations(CCT_ARCH)
    producers = [node.name for node in found.group_of("stream.0").producers]
    assert "blocks.1.norm2" in producers
    assert "blocks.1.norm1" not in producers
    assert "sequence_pool.in" in {node.name for node in found.group_of("stream.0").nodes}


def test_inner_channels_of_a_tokenizer_are_a_group() -> None:
    group = read_relations(ARCHS["two convolutions"]).group_of("patch_embed.convs.0")
    assert [node.name for node in group.nodes] == ["patch_embed.convs.0.out", "patch_embed.convs.1.in"]


def test_mlp_of_some_channels_says_how_many_it_reads() -> None:
    found = read_relations(SOME_CHANNELS)
    partly = [node.name for node in found.nodes if node.reads is not None]
    assert partly[:2] == ["blocks.0.mlp.fc1.in", "blocks.0.mlp.gate.in"]
    assert {node.reads for node in found.nodes} == {None, 16}
    assert found.group_of("stream.0").size == ARCH.embed


def test_group_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"group 'blocks\.9\.qk': expected one of image, .*blocks\.0\.qk"):
        read_relations(ARCH).group_of("blocks.9.qk")
