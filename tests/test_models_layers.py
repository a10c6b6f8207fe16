from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_vits import ARCH, DIMS, TOKENS, fill, noise_images, toy_arch, toy_model

from edgevit.models.anatomy import slim_arch
from edgevit.models.arch import Activation, Arch, Reads
from edgevit.models.layers import (
    SlimAttention,
    SlimBlock,
    SlimViT,
    activate,
    mean_tokens,
)
from edgevit.plan import BlockPlan, Plan


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _dead(arch: Arch) -> Arch:
    """Return the arch whose last block works for the tokens that the head reads alone."""
    rows = (BlockPlan(b.heads, b.qk_dim, b.vo_dim, b.hidden, b.tokens_out) for b in arch.blocks)
    return slim_arch(arch, Plan(tuple(rows), dead_tokens=True))


def test_attention_agrees_with_torch_where_dims_are_equal() -> None:
    attention = fill(SlimAttention(DIMS, ARCH))
    y = _random(2, TOKENS, ARCH.embed)
    mixed = attention.mix(y, attention.keys(y), TOKENS, None)
    q, k, v = (
        layer(y).unflatten(-1, (3, 8)).transpose(1, 2) for layer in (attention.q, attention.k, attention.v)
    )
    expected = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)


def test_attention_with_cut_qk_keeps_the_dense_scale() -> None:
    cut = fill(SlimAttention(dataclasses.replace(DIMS, qk_dim=2), ARCH))
    y = _random(2, TOKENS, ARCH.embed)
    plain = cut.q(y).unflatten(-1, (3, 2)).transpose(1, 2)
    assert cut.scale == 8**-0.5
    torch.testing.assert_close(cut.queries(y), plain * 8**-0.5)


def test_attention_ignores_what_is_constant_over_keys() -> None:
    """Why a key bias can go: it adds one number to all logits of a query."""
    attention = fill(SlimAttention(DIMS, ARCH))
    y = _random(2, TOKENS, ARCH.embed)
    keys = attention.keys(y)
    shifted = keys + _random(1, 3, 1, 8, seed=1)
    torch.testing.assert_close(
        attention.mix(y, shifted, TOKENS, None),
        attention.mix(y, keys, TOKENS, None),
        rtol=1e-4,
        atol=1e-5,
    )


def test_attention_to_a_token_of_size_three_is_attention_to_three_equal_tokens() -> None:
    attention = fill(SlimAttention(DIMS, ARCH))
    y = _random(1, 4, ARCH.embed)
    repeated = torch.cat([y, y[:, 3:], y[:, 3:]], dim=1)
    sizes = torch.tensor([1.0, 1.0, 1.0, 3.0]).view(1, 4, 1)
    torch.testing.assert_close(
        attention.mix(y, attention.keys(y), 4, sizes),
        attention.mix(repeated, attention.keys(repeated), 4, None),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(("reads", "prefix"), [("class", 1), ("class", 5), ("class+distillation", 2)])
def test_model_without_dead_tokens_gives_the_outputs_of_the_whole(reads: Reads, prefix: int) -> None:
    whole = toy_model(toy_arch(reads, prefix))
    dead = SlimViT(_dead(whole.arch)).eval()
    dead.load_state_dict(whole.state_dict())
    assert dead.arch.blocks[-1].queries == whole.arch.read_tokens
    assert dead.arch.blocks[-1].merged == 0
    image = noise_images(3, whole.arch)
    torch.testing.assert_close(dead(image), whole(image), rtol=1e-5, atol=1e-5)


def test_block_that_merges_lets_its_tokens_out_leave() -> None:
    dims = dataclasses.replace(DIMS, tokens_out=TOKENS - 6)
    block = fill(SlimBlock(dims, ARCH))
    x, sizes = block(_random(2, TOKENS, ARCH.embed), None)
    assert dims.merged == 6
    assert x.shape == (2, TOKENS - 6, ARCH.embed)
    assert sizes is not None
    assert sizes.shape == (2, TOKENS - 6, 1)


def test_merging_of_equal_tokens_leaves_the_block_equal() -> None:
    """Pairs of equal tokens: one merge of half of them is exact, sizes included."""
    half = fill(SlimBlock(dataclasses.replace(DIMS, tokens_out=9), ARCH))
    after = fill(SlimBlock(dataclasses.replace(DIMS, tokens_in=9, tokens_out=9, queries=9), ARCH), seed=1)
    whole = fill(SlimBlock(DIMS, ARCH))
    whole_after = fill(SlimBlock(DIMS, ARCH), seed=1)
    patches = _random(2, 8, ARCH.embed).repeat_interleave(2, dim=1)
    x = torch.cat([_random(2, 1, ARCH.embed, seed=1), patches], dim=1)
    merged, sizes = after(*half(x, None))
    dense, _ = whole_after(*whole(x, None))
    assert sizes is not None
    torch.testing.assert_close(merged[:, 0], dense[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        mean_tokens(merged, sizes, 1), mean_tokens(dense, None, 1), rtol=1e-4, atol=1e-5
    )


def test_mean_tokens_without_sizes_is_the_plain_mean() -> None:
    x = _random(2, 5, 3)
    torch.testing.assert_close(mean_tokens(x, None, 1), x[:, 1:].mean(dim=1))
    torch.testing.assert_close(mean_tokens(x, torch.ones(2, 5, 1), 1), x[:, 1:].mean(dim=1))


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("gelu", nn.GELU()),
        ("gelu-tanh", nn.GELU(approximate="tanh")),
        ("relu", nn.ReLU()),
        ("silu", nn.SiLU()),
    ],
)
def test_activation_agrees_with_torch(name: Activation, module: nn.Module) -> None:
    x = _random(100)
    torch.testing.assert_close(activate(x, name), module(x))
