from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from toy_ccts import toy_slim_cct
from toy_swins import toy_swin
from toy_vits import noise_images, toy_arch, toy_model

from edgevit.models.arch import Arch
from edgevit.models.layers import SlimBlock, SlimViT
from edgevit.models.windows import window_order
from edgevit.progress import silent
from edgevit.slim.token_weights import BlockWeights, token_weights


def _arch() -> Arch:
    return toy_arch("class+distillation", 2, depth=2)


def _weigh(model: SlimViT, images: Tensor) -> list[BlockWeights]:
    return token_weights(model, len(images), iter(images.split(16)), silent).weights


def _pair_bias(block: SlimBlock) -> Tensor:
    """Return what windows mean as a bias between all tokens of the grid, [H, N, N]."""
    window, attention = block.dims.window, block.attn
    if window is None or attention.position_bias is None or attention.windows is None:
        return torch.zeros(())
    bias = torch.full((attention.heads, block.dims.tokens_in, block.dims.tokens_in), -1e9)
    strangers = attention.windows.mask
    for index, places in enumerate(window_order(window).view(window.count, window.area)):
        mask = torch.zeros(()) if strangers is None else strangers[index]
        bias[:, places.unsqueeze(1), places] = attention.position_bias + mask
    return bias


def _logits(model: SlimViT, image: Tensor, bumps: list[dict[str, Tensor]]) -> Tensor:
    """Run the model with something added at each place."""
    x = model.embed(image)
    for block, bump in zip(model.blocks, bumps, strict=True):
        x = block.downsample(x)
        y = block.norm1(x)
        scores = block.attn.queries(y) @ block.attn.keys(y).mT + _pair_bias(block) + bump["scores"]
        mixed = (scores.softmax(dim=-1) @ block.attn.values(y)).transpose(1, 2).flatten(2)
        x = x + block.attn.proj(mixed) + bump["attention"]
        if model.arch.norm2_on_stream:
            x = block.norm2(x)
            x = x + block.mlp(x) + bump["mlp"]
        else:
            x = x + block.mlp(block.norm2(x)) + bump["mlp"]
    return model.classify(x, None)


def _squared_gradients(model: SlimViT, images: Tensor) -> list[dict[str, Tensor]]:
    """Return, per block, the squared gradients of log p of the drawn label, one image at a time."""
    draw = torch.multinomial(model(images).softmax(-1), 1, generator=torch.Generator().manual_seed(0))
    dims = [(block.tokens_in, block.embed, block.heads) for block in model.arch.blocks]
    rows: list[list[dict[str, Tensor]]] = []
    for image, label in zip(images, draw.flatten(), strict=True):
        bumps = [
            {
                "attention": torch.zeros(1, n, d, requires_grad=True),
                "mlp": torch.zeros(1, n, d, requires_grad=True),
                "scores": torch.zeros(1, h, n, n, requires_grad=True),
            }
            for n, d, h in dims
        ]
        _logits(model, image[None], bumps).log_softmax(-1)[0, label].backward()
        rows.append([{key: _grad(value) for key, value in bump.items()} for bump in bumps])
    return [
        {key: torch.cat([row[index][key] for row in rows]) for key in rows[0][index]}
        for index in range(len(model.blocks))
    ]


def _grad(value: Tensor) -> Tensor:
    assert value.grad is not None
    return value.grad.square()


def _half_uniform(values: Tensor, mean: Tensor) -> Tensor:
    return 0.5 + 0.5 * values / mean


MODELS = {"ViT": toy_model(_arch()), "Swin": toy_swin(), "CCT": toy_slim_cct()}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_weights_equal_a_direct_gradient_image_by_image(model: SlimViT) -> None:
    images = noise_images(6, model.arch)
    found, expected = _weigh(model, images), _squared_gradients(model, images)
    for block, squares in zip(found, expected, strict=True):
        attention, mlp = squares["attention"].sum(-1), squares["mlp"].sum(-1)
        queries, keys = squares["scores"].sum(-1), squares["scores"].sum(-2)
        close = torch.testing.assert_close
        close(block.attention, _half_uniform(attention, attention.mean()), rtol=1e-4, atol=1e-5)
        close(block.mlp, _half_uniform(mlp, mlp.mean()), rtol=1e-4, atol=1e-5)
        means = queries.mean(dim=(0, 2), keepdim=True)
        close(block.queries, _half_uniform(queries, means), rtol=1e-4, atol=1e-5)
        means = keys.mean(dim=(0, 2), keepdim=True)
        close(block.keys, _half_uniform(keys, means), rtol=1e-4, atol=1e-5)


def test_weights_have_mean_one_and_leave_no_token_out() -> None:
    for block in _weigh(toy_model(_arch()), noise_images(20)):
        assert block.attention.shape == block.mlp.shape == (20, 18)
        assert block.queries.shape == block.keys.shape == (20, 3, 18)
        for values in (block.attention, block.mlp):
            torch.testing.assert_close(values.mean(), torch.tensor(1.0))
        for values in (block.queries, block.keys):
            torch.testing.assert_close(values.mean(dim=(0, 2)), torch.ones(3))
        assert min(float(values.min()) for values in block) >= 0.5


def test_weights_of_dead_tokens_are_the_uniform_half() -> None:
    """Behind the last attention only the tokens that the head reads can move the answer."""
    last = _weigh(toy_model(_arch()), noise_images(6))[-1]
    assert torch.equal(last.mlp[:, 2:], torch.full((6, 16), 0.5))
    assert (last.mlp[:, :2] > 0.5).all()


def test_weights_are_the_same_every_time() -> None:
    model, images = toy_model(_arch()), noise_images(20)
    for first, second in zip(_weigh(model, images), _weigh(model, images), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_weights_of_a_head_that_ignores_its_input_are_finite() -> None:
    model = toy_model(_arch())
    for head in (model.head, model.head_dist):
        assert head is not None
        head.weight.zero_()
    for block in _weigh(model, noise_images(4)):
        assert all(values.isfinite().all() for values in block)


def test_weights_of_a_mean_pooled_model_reach_all_tokens() -> None:
    model = toy_model(dataclasses.replace(toy_arch("mean", depth=2), norm="after-pool"))
    assert (_weigh(model, noise_images(6))[-1].mlp[:, 1:] > 0.5).all()


def test_weighing_tells_how_far_it_is() -> None:
    calls: list[tuple[str, int, int]] = []
    images = noise_images(20)
    token_weights(toy_model(_arch()), 20, iter(images.split(16)), lambda *call: calls.append(call))
    assert [(done, total) for _, done, total in calls] == [(16, 20), (20, 20)]


def _streams_behind_branches(model: SlimViT, images: Tensor) -> list[Tensor]:
    x, streams = model.embed(images), []
    for block in model.blocks:
        x = block.downsample(x)
        y = block.attn.split(block.norm1(x))
        x = x + block.attn.proj(block.attn.join(block.attn.mix(y, block.attn.keys(y), y.shape[1], None)))
        streams.append(x)
        x = block.stream(x)
        x = x + block.mlp(block.mlp_input(x))
        streams.append(x)
    return streams


@torch.no_grad()
@pytest.mark.parametrize(
    "model", [toy_model(_arch()), toy_swin(), toy_slim_cct()], ids=["vit", "swin", "cct"]
)
def test_weighing_keeps_the_stream_behind_each_branch_of_every_image(
    model: SlimViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevit.slim.token_weights._LEAST_WIDTH", 1)
    images = noise_images(20, model.arch)
    found = token_weights(model, 20, iter(images.split(16)), silent).streams
    assert found is not None
    for kept, wanted in zip(found, _streams_behind_branches(model, images), strict=True):
        torch.testing.assert_close(kept.float(), wanted, rtol=1e-3, atol=1e-3)


def test_streams_that_float16_cannot_hold_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevit.slim.token_weights._LEAST_WIDTH", 1)
    model = toy_model(_arch())
    model.blocks[0].mlp.fc2.bias[0] = 1e6
    images = noise_images(4)
    assert token_weights(model, 4, iter(images.split(4)), silent).streams is None


def test_streams_that_take_too_much_memory_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevit.slim.token_weights._LEAST_WIDTH", 1)
    monkeypatch.setattr("edgevit.slim.token_weights._KEPT_BYTES", 1000)
    images = noise_images(4)
    assert token_weights(toy_model(_arch()), 4, iter(images.split(4)), silent).streams is None


def test_streams_of_a_narrow_model_are_not_kept() -> None:
    images = noise_images(4)
    assert token_weights(toy_model(_arch()), 4, iter(images.split(4)), silent).streams is None
