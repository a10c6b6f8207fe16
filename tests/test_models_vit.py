from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from timm.layers import ConvMlp, GELUTanh, GluMlp, QuickGELU, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import nn
from toy_vits import fill

from edgevit.errors import UnsupportedModelError
from edgevit.models.families import from_timm
from edgevit.models.layers import SlimViT

Make = Callable[[], nn.Module]

vit = partial(VisionTransformer, img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5)
distilled = partial(
    VisionTransformerDistilled, img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
)

FORMS: dict[str, Make] = {
    "plain": vit,
    "distilled": distilled,
    "LayerScale": partial(vit, init_values=1e-5),
    "deit3": partial(vit, init_values=1e-5, no_embed_class=True),
    "mean-pooled with fc_norm": partial(vit, global_pool="avg"),
    "mean-pooled with norm before": partial(vit, global_pool="avg", fc_norm=False),
    "mean-pooled without class token": partial(vit, global_pool="avg", class_token=False),
    "mean of prefix too": partial(vit, global_pool="avg", pool_include_prefix=True, reg_tokens=2),
    "class token with fc_norm": partial(vit, fc_norm=True),
    "no last norm": partial(vit, final_norm=False),
    "registers": partial(vit, reg_tokens=4),
    "registers without position": partial(vit, reg_tokens=4, no_embed_class=True),
    "no positions": partial(vit, pos_embed="none"),
    "CLIP": partial(vit, pre_norm=True, act_layer=QuickGELU, norm_layer=partial(nn.LayerNorm, eps=1e-5)),
    "qkv without bias": partial(vit, qkv_bias=False),
    "proj without bias": partial(vit, proj_bias=False),
    "qk_norm": partial(vit, qk_norm=True),
    "qk_norm without bias": partial(vit, qk_norm=True, qkv_bias=False),
    "one channel": partial(vit, in_chans=1),
    "wide image": partial(vit, img_size=(32, 48), patch_size=(8, 12)),
    "image no multiple of the patch": partial(vit, img_size=37),
    "DINOv2": partial(vit, init_values=1e-5, reg_tokens=4, no_embed_class=True, num_heads=2),
    "DINOv2 giant": partial(
        vit, init_values=1e-5, reg_tokens=4, mlp_ratio=2.66667 * 2, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU
    ),
    "GEGLU": partial(vit, mlp_layer=GluMlp, act_layer=nn.GELU),
    "SwiGLU in two layers": partial(vit, mlp_layer=SwiGLU, act_layer=nn.SiLU),
    "MAE": partial(
        vit, global_pool="avg", fc_norm=True, patch_size=8, norm_layer=partial(nn.LayerNorm, eps=1e-6)
    ),
    "narrow MLP": partial(vit, mlp_ratio=1.5),
    "ReLU": partial(vit, act_layer=nn.ReLU),
    "SiLU": partial(vit, act_layer=nn.SiLU),
    "tanh GELU": partial(vit, act_layer=GELUTanh),
    "torch's tanh GELU": partial(vit, act_layer=partial(nn.GELU, approximate="tanh")),
}


@pytest.mark.parametrize("form", FORMS)
def test_from_timm_gives_the_outputs_of_timm(form: str) -> None:
    model = fill(FORMS[form]())
    slim = from_timm(model, form)
    image = torch.randn(3, *slim.arch.image, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(slim(image), model(image), rtol=1e-5, atol=1e-5)


def test_from_timm_sees_a_changed_bias_of_each_part() -> None:
    """The toy weights are of a size at which a part that was forgotten would show."""
    model = fill(vit())
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = from_timm(model, "toy")(image)
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.bias"):
            parameter = parameter[48:]  # the values' part: queries' biases move the logits less
        change = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
        parameter += change
        assert (from_timm(model, "toy")(image) - before).abs().max() > 1e-3, name
        parameter -= change


def test_from_timm_folds_value_bias_and_drops_key_bias() -> None:
    model = fill(vit())
    slim = from_timm(model, "toy")
    attention, source = slim.blocks[0].attn, model.blocks[0].attn
    assert attention.v.bias is None
    assert attention.k.bias is None
    folded = source.proj.bias + source.proj.weight @ source.qkv.bias[48:]
    torch.testing.assert_close(attention.proj.bias, folded)


def test_from_timm_keeps_the_key_bias_in_front_of_a_norm() -> None:
    model = fill(vit(qk_norm=True))
    bias = from_timm(model, "toy").blocks[0].attn.k.bias
    torch.testing.assert_close(bias, model.blocks[0].attn.qkv.bias[24:48])


def test_from_timm_of_a_published_name_reads_its_dims() -> None:
    arch = from_timm(timm.create_model("deit_tiny_patch16_224"), "deit_tiny_patch16_224").arch
    assert (arch.embed, arch.tokens, len(arch.blocks), arch.read_tokens) == (192, 197, 12, 1)
    block = arch.blocks[0]
    assert (block.heads, block.qk_dim, block.vo_dim, block.hidden) == (3, 64, 64, 768)
    assert arch.scale == 64**-0.5


def test_from_timm_leaves_the_source_as_it_is() -> None:
    model = fill(vit(init_values=1e-5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fill(from_timm(model, "toy"), seed=9)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


REFUSED: dict[str, tuple[Make, str]] = {
    "another MLP": (
        partial(vit, mlp_layer=ConvMlp),
        "blocks.0 to blocks.1: Attention and ConvMlp where Attention and Mlp, GluMlp or SwiGLU are expected",
    ),
    "norm inside a gated MLP": (partial(vit, mlp_layer=SwiGLU, scale_mlp_norm=True), "scale_mlp_norm"),
    "map pooling": (partial(vit, global_pool="map", class_token=False), r"attention-pooling head"),
    "max pooling": (partial(vit, global_pool="max"), "global_pool = 'max'"),
    "no classifier": (partial(vit, num_classes=0), "no classifier .* num_classes in model.options"),
    "free image size": (partial(vit, dynamic_img_size=True), "an exported graph has one image size"),
    "patch dropout": (partial(vit, patch_drop_rate=0.5), "patch dropout"),
    "parallel blocks": (
        partial(vit, block_fn=ParallelScalingBlock),
        "blocks.1: block ParallelScalingBlock where timm's Block is expected",
    ),
    "RMS norm": (partial(vit, norm_layer=RmsNorm), "norm RmsNorm where LayerNorm is expected"),
    "norm in the embedding": (
        partial(vit, embed_norm_layer=nn.LayerNorm),
        "a norm in the patch embedding",
    ),
    "norm on the attention output": (partial(vit, scale_attn_norm=True), "scale_attn_norm"),
    "norm inside the MLP": (partial(vit, scale_mlp_norm=True), "scale_mlp_norm"),
    "unknown activation": (partial(vit, act_layer=nn.Tanh), "blocks.0 to blocks.1: activation Tanh"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_from_timm_refuses_an_unknown_form_with_the_reason(form: str) -> None:
    make, reason = REFUSED[form]
    with pytest.raises(UnsupportedModelError, match=reason):
        from_timm(make(), "toy")


def test_from_timm_names_all_unknown_forms_at_once() -> None:
    model = vit(num_classes=0, act_layer=nn.Tanh, scale_attn_norm=True)
    with pytest.raises(UnsupportedModelError, match=r"(?s)no classifier.*scale_attn_norm.*Tanh"):
        from_timm(model, "toy")


def test_from_timm_refuses_a_hybrid_embedding() -> None:
    model = timm.create_model("vit_tiny_r_s16_p8_224")
    with pytest.raises(UnsupportedModelError, match="patch embedding HybridEmbed"):
        from_timm(model, "vit_tiny_r_s16_p8_224")


def test_arch_of_a_converted_model_rebuilds_it() -> None:
    slim = from_timm(fill(vit(pre_norm=True, global_pool="avg")), "toy")
    again = SlimViT(dataclasses.replace(slim.arch)).eval()
    again.load_state_dict(slim.state_dict())
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(image), slim(image))
