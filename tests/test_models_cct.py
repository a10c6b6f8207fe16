from __future__ import annotations

import timm
import torch
from torch.nn import functional
from toy_ccts import ONE_CONV, TWO_CONVS, toy_cct

from edgevit.models.cct import CCT


def test_published_sizes_have_their_params() -> None:
    """The paper's tables say 0.48 M, 3.76 M and 22.36 M: they cut the last digit off."""
    with torch.device("meta"):
        counts = {
            name: sum(parameter.numel() for parameter in timm.create_model(name).parameters())
            for name in ("cct_4_3x2", "cct_7_3x1", "cct_14_7x2")
        }
    assert counts == {"cct_4_3x2": 482_123, "cct_7_3x1": 3_760_139, "cct_14_7x2": 22_367_273}


def test_parameters_have_the_published_names() -> None:
    names = set(toy_cct(TWO_CONVS, 32).state_dict())
    assert {
        "tokenizer.conv_layers.0.0.weight",
        "tokenizer.conv_layers.1.0.weight",
        "classifier.positional_emb",
        "classifier.attention_pool.weight",
        "classifier.attention_pool.bias",
        "classifier.blocks.0.pre_norm.weight",
        "classifier.blocks.0.self_attn.qkv.weight",
        "classifier.blocks.0.self_attn.proj.bias",
        "classifier.blocks.0.norm1.bias",
        "classifier.blocks.1.linear1.weight",
        "classifier.blocks.1.linear2.bias",
        "classifier.norm.weight",
        "classifier.fc.bias",
    } <= names
    assert "classifier.blocks.0.self_attn.qkv.bias" not in names


def test_cct_is_the_published_forward_written_down_once_more() -> None:
    model = toy_cct()
    w = model.state_dict()
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    conv = functional.conv2d(image, w["tokenizer.conv_layers.0.0.weight"], stride=1, padding=1)
    x = functional.max_pool2d(conv.relu(), 3, 2, 1).flatten(2).mT + w["classifier.positional_emb"]
    for index in range(ONE_CONV.depth):
        p = f"classifier.blocks.{index}."
        y = functional.layer_norm(x, (24,), w[p + "pre_norm.weight"], w[p + "pre_norm.bias"])
        q, k, v = (
            (y @ part.mT).unflatten(-1, (3, 8)).transpose(1, 2)
            for part in w[p + "self_attn.qkv.weight"].chunk(3)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + functional.linear(mixed, w[p + "self_attn.proj.weight"], w[p + "self_attn.proj.bias"])
        x = functional.layer_norm(x, (24,), w[p + "norm1.weight"], w[p + "norm1.bias"])
        hidden = functional.gelu(functional.linear(x, w[p + "linear1.weight"], w[p + "linear1.bias"]))
        x = x + functional.linear(hidden, w[p + "linear2.weight"], w[p + "linear2.bias"])
    x = functional.layer_norm(x, (24,), w["classifier.norm.weight"], w["classifier.norm.bias"])
    scores = functional.linear(x, w["classifier.attention_pool.weight"], w["classifier.attention_pool.bias"])
    pooled = (scores.softmax(dim=1).mT @ x).squeeze(1)
    expected = functional.linear(pooled, w["classifier.fc.weight"], w["classifier.fc.bias"])
    torch.testing.assert_close(model(image), expected, rtol=1e-5, atol=1e-5)


def test_new_cct_has_weights_to_train_from() -> None:
    model = CCT(ONE_CONV, 8, num_classes=5)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert 0.01 < float(model.classifier.blocks[0].linear1.weight.detach().std()) < 0.03
    assert (model.classifier.blocks[0].linear1.bias == 0).all()
