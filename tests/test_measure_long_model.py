from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise

import pytest
from toy_vits import toy_arch

from edgevit.errors import UnsupportedModelError
from edgevit.measure.long_model import make_long_model, make_whole_models
from edgevit.models.arch import Arch, BlockDims

DENSE = BlockDims(
    heads=6, qk_dim=64, vo_dim=64, hidden=1536, tokens_in=197, tokens_out=197, queries=197, embed=384
)
DEIT_S = dataclasses.replace(toy_arch(), image=(3, 224, 224), patch=(16, 16), blocks=(DENSE,) * 12)


@pytest.mark.parametrize("dense", [DEIT_S, toy_arch(), toy_arch("mean", prefix=0)], ids=["s", "toy", "mean"])
def test_long_model_is_a_row_of_blocks_that_fit_together(dense: Arch) -> None:
    blocks = make_long_model(dense).arch.blocks
    assert all(a.tokens_out == b.tokens_in for a, b in pairwise(blocks))
    for block in blocks[:-1]:
        assert block.merged <= (block.tokens_in - dense.prefix + 1) // 2


def test_every_block_is_in_as_many_parts() -> None:
    long = make_long_model(DEIT_S)
    count = Counter(index for part in long.parts.values() for index in part)
    last = len(long.arch.blocks) - 1
    assert set(count) == set(range(last + 1))
    assert {count[index] for index in range(2, last)} == {2}
    assert [len(part) for part in long.parts.values()] == [1, 1] + [2] * last


def test_long_model_of_deit_s_has_few_blocks() -> None:
    assert len(make_long_model(DEIT_S).arch.blocks) == 31


def test_long_model_varies_every_kind_of_dim() -> None:
    blocks = make_long_model(DEIT_S).arch.blocks
    for kind in ("heads", "qk_dim", "vo_dim", "hidden", "tokens_in"):
        assert len({getattr(block, kind) for block in blocks}) >= 2, kind
    assert sum(block.merged > 0 for block in blocks[:-1]) == 4


def test_long_model_keeps_to_steps_that_kernels_like() -> None:
    blocks = make_long_model(DEIT_S).arch.blocks
    assert {block.qk_dim % 8 for block in blocks} == {0}
    assert {block.hidden % 32 for block in blocks} == {0}


def test_last_part_computes_only_what_the_head_reads() -> None:
    long = make_long_model(DEIT_S)
    assert (long.arch.blocks[-1].queries, long.arch.blocks[-1].tokens_out) == (1, 1)
    assert "read" not in make_long_model(toy_arch("mean", prefix=0)).parts


def test_long_model_of_a_rotary_model_leaves_tokens_and_has_whole_pairs() -> None:
    blocks = make_long_model(dataclasses.replace(DEIT_S, rotary=True)).arch.blocks
    assert {block.qk_dim % 2 for block in blocks} == {0}
    assert {block.tokens_in for block in blocks} == {197}
    assert len({block.vo_dim for block in blocks}) == 5


def test_model_whose_blocks_differ_is_refused() -> None:
    blocks = (DENSE, dataclasses.replace(DENSE, hidden=768))
    with pytest.raises(UnsupportedModelError, match=r"budget: .* Give the budget as macs or params"):
        make_long_model(dataclasses.replace(DEIT_S, blocks=blocks))


def test_whole_models_are_as_deep_as_the_dense_one_and_merge_in_one_block_or_more() -> None:
    found = make_whole_models(DEIT_S)
    merges = {name: sum(block.merged > 0 for block in arch.blocks) for name, arch in found.items()}
    assert list(merges.values()) == [0, 1, 1, 2, 1, 6]
    assert {len(arch.blocks) for arch in found.values()} == {12}
    assert {arch.blocks[-1].queries for arch in found.values()} == {1}
    assert found["merged once to 60 %"].blocks[4].tokens_out == 118
    assert found["merged twice to 50 %"].blocks[-1].tokens_in == 98
    falling = [block.tokens_out for block in found["merged step by step to 40 %"].blocks[2:10]]
    assert falling == [197, 177, 158, 138, 118, 98, 79, 79]
    assert found["merged once to 70 %, narrower"].blocks[0].hidden == 1152


@pytest.mark.parametrize(("depth", "count"), [(1, 1), (2, 6), (3, 6)])
def test_whole_models_of_few_blocks_merge_before_the_last(depth: int, count: int) -> None:
    found = make_whole_models(toy_arch(depth=depth))
    assert len(found) == count
    assert all(arch.blocks[-1].merged == 0 for arch in found.values())


def test_whole_models_of_a_rotary_model_merge_nothing() -> None:
    (arch,) = make_whole_models(dataclasses.replace(DEIT_S, rotary=True)).values()
    assert {(block.qk_dim, block.vo_dim, block.tokens_in) for block in arch.blocks} == {(32, 32, 197)}
