from __future__ import annotations

import dataclasses

from toy_vits import ARCH, TOKENS, toy_arch, toy_model, toy_plan

from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.plan import BlockAnatomy, Counts, keep_all


def test_anatomy_lists_what_each_block_has() -> None:
    anatomy = read_anatomy(ARCH)
    assert anatomy.blocks == (BlockAnatomy(heads=3, qk_dim=8, vo_dim=8, hidden=40, tokens=TOKENS),) * 3
    assert (anatomy.embed, anatomy.prefix, anatomy.read_tokens, anatomy.refused) == (24, 1, 1, {})


def test_anatomy_of_a_mean_pooled_head_reads_all_tokens() -> None:
    assert read_anatomy(toy_arch("mean")).read_tokens is None


def test_anatomy_of_qk_norm_refuses_qk_dims_alone() -> None:
    refused = read_anatomy(dataclasses.replace(ARCH, qk_norm=True)).refused
    assert list(refused) == ["qk_dim"]
    assert "qk-norm" in refused["qk_dim"]


def test_slim_arch_of_all_kept_is_the_dense_arch() -> None:
    assert slim_arch(ARCH, keep_all(read_anatomy(ARCH))) == ARCH


def test_slim_arch_hands_tokens_from_block_to_block() -> None:
    plan = toy_plan(toy_model(), Counts(heads=[3, 2, 1], tokens=[12, 12, 10]))
    blocks = slim_arch(ARCH, plan).blocks
    assert [(b.tokens_in, b.tokens_out, b.queries, b.merged) for b in blocks] == [
        (17, 12, 17, 5),
        (12, 12, 12, 0),
        (12, 10, 12, 2),
    ]
    assert [b.heads for b in blocks] == [3, 2, 1]


def test_slim_arch_with_dead_tokens_computes_what_the_head_reads() -> None:
    plan = toy_plan(toy_model(), Counts(tokens=[12, 12, 12]), dead_tokens=True)
    last = slim_arch(ARCH, plan).blocks[-1]
    assert (last.tokens_in, last.tokens_out, last.queries, last.merged) == (12, 1, 1, 0)


def test_slim_arch_keeps_the_scale_of_the_dense_model() -> None:
    assert slim_arch(ARCH, toy_plan(toy_model(), Counts(qk_dim=2))).scale == 8**-0.5


def test_dead_tokens_of_an_earlier_slimming_can_be_kept_again() -> None:
    model = toy_model()
    arch = slim_arch(ARCH, toy_plan(model, Counts(tokens=[17, 12, 12]), dead_tokens=True))
    assert [b.tokens for b in read_anatomy(arch).blocks] == [17, 12, 12]
    again = slim_arch(arch, keep_all(read_anatomy(arch)))
    assert again.blocks[-1].tokens_out == 12
