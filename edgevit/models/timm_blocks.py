"""What blocks of timm's models have in common, read into slim blocks; forms that are unknown, in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from timm import layers
from timm.layers.attention import Attention
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from edgevit.errors import UnsupportedModelError
from edgevit.models.arch import Activation, Arch, NormPlace
from edgevit.models.cct import CctAttention
from edgevit.models.layers import SlimAttention, SlimBlock, SlimMlp, SlimViT

NO_CLASSIFIER = (
    "no classifier (num_classes = 0). Give it one in a recipe, by num_classes in model.options and weights"
    " that have it; `edgevit inspect` and `edgevit init` take --num-classes"
)
"""What a model without a head is told, as many published DINOv2 and v3 are."""

_Affine = nn.Linear | nn.LayerNorm | nn.Conv2d


def refuse_forms(name: str, family: str, problems: Sequence[str]) -> None:
    """Refuse a model that has what slim modules have no place for.

    Raises:
        UnsupportedModelError: there are problems; all are listed.
    """
    if problems:
        raise UnsupportedModelError(
            f"model {name} is a {family} of a form that edgevit cannot slim yet:\n"
            + "\n".join(f"  - {problem}" for problem in _once(problems))
            + "\nChoose a plain ViT, DeiT, DINOv2 or v3, Swin or CCT; `edgevit inspect MODEL` says of each"
            " whether it can be slimmed."
        )


def _once(problems: Sequence[str]) -> list[str]:
    """Say what is the same in several blocks once, with the first and the last of them."""
    blocks: dict[str, list[str]] = {}
    for problem in problems:
        found = re.fullmatch(r"(blocks\.\d+|layers\.\d+\.blocks\.\d+): (.*)", problem)
        blocks.setdefault(found[2] if found else problem, []).append(found[1] if found else "")
    places = {
        text: names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}" for text, names in blocks.items()
    }
    return [f"{place}: {text}" if place else text for text, place in places.items()]


def unknown_norms(norms: Iterable[nn.Module]) -> list[str]:
    """List the norms that are no LayerNorm, each kind once."""
    kinds = {type(norm): None for norm in norms if not isinstance(norm, nn.LayerNorm | nn.Identity)}
    return [f"norm {kind.__name__} where LayerNorm is expected" for kind in kinds]


MLPS = (layers.Mlp, layers.GluMlp, layers.SwiGLU)
"""The MLPs of timm that a slim one can be: plain, and gated in two layouts."""


def is_gated(mlp: nn.Module) -> bool:
    """Return whether one of `MLPS` multiplies its neurons by a gate."""
    return isinstance(mlp, layers.GluMlp | layers.SwiGLU)


def unknown_mlp_forms(mlp: layers.Mlp | layers.GluMlp | layers.SwiGLU) -> list[str]:
    """List what one of `MLPS` has that a slim one has not."""
    checks = [
        (not isinstance(mlp.norm, nn.Identity), "a norm inside the MLP (scale_mlp_norm)"),
        (not isinstance(mlp.fc2, nn.Linear), "an MLP of convolutions"),
        (activation_name(mlp.act) is None, f"activation {type(mlp.act).__name__}"),
    ]
    return [problem for found, problem in checks if found]


def unknown_block_forms(
    block: Block | EvaBlock,
    block_type: type[Block | EvaBlock],
    attention_type: type[Attention | EvaAttention],
) -> list[str]:
    """List what a block of a plain or an EVA Vision Transformer has that a slim one has not.

    Args:
        block: whatever stands among the model's blocks.
        block_type: what it has to be, no class derived from it.
        attention_type: the same of its attention.
    """
    if type(block) is not block_type:
        return [f"block {type(block).__name__} where timm's {block_type.__name__} is expected"]
    if type(block.attn) is not attention_type or type(block.mlp) not in MLPS:
        found = f"{type(block.attn).__name__} and {type(block.mlp).__name__}"
        return [f"{found} where {attention_type.__name__} and Mlp, GluMlp or SwiGLU are expected"]
    problems = []
    if not isinstance(block.attn.norm, nn.Identity):
        problems.append("a norm on the attention output (scale_attn_norm or scale_attn_inner)")
    if getattr(block.attn, "gate", None) is not None:
        problems.append("gated attention")
    norms = (block.norm1, block.norm2, block.attn.q_norm, block.attn.k_norm)
    return problems + unknown_norms(norms) + unknown_mlp_forms(block.mlp)


def activation_name(activation: nn.Module) -> Activation | None:
    """Return what a slim MLP calls an activation; None for one that it does not know."""
    match activation:
        case nn.GELU(approximate="tanh") | layers.GELUTanh():
            return "gelu-tanh"
        case nn.GELU() | layers.GELU():
            return "gelu"
        case layers.QuickGELU():
            return "quick-gelu"
        case nn.ReLU():
            return "relu"
        case nn.SiLU():
            return "silu"
    return None


def norm_place(model: VisionTransformer | Eva) -> NormPlace:
    """Return where the last norm stands."""
    if isinstance(model.norm, nn.LayerNorm):
        return "before-pool"
    return "after-pool" if isinstance(model.fc_norm, nn.LayerNorm) else "none"


def prefix_and_position(model: VisionTransformer | Eva, arch: Arch) -> tuple[Tensor, Tensor]:
    """Return prefix tokens with their positions added, [1, P, D], and patch positions, [1, N - P, D]."""
    tokens = [getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token")]
    prefix = (
        torch.cat([t for t in tokens if t is not None], dim=1)
        if arch.prefix
        else torch.zeros(1, 0, arch.embed)
    )
    if model.pos_embed is None:
        return prefix, torch.zeros(1, arch.patches, arch.embed)
    if model.no_embed_class:
        return prefix, model.pos_embed
    return prefix + model.pos_embed[:, : arch.prefix], model.pos_embed[:, arch.prefix :]


def copy_stem_and_head(source: VisionTransformer | Eva, target: SlimViT) -> None:
    """Copy patch embedding, prefix tokens, positions, the norms outside the blocks, and the classifiers."""
    assert isinstance(target.patch_embed, nn.Conv2d)
    copy_affine(source.patch_embed.proj, target.patch_embed)
    prefix, position = prefix_and_position(source, target.arch)
    target.prefix.copy_(prefix)
    if target.position is not None:  # windows and rotations know places by themselves
        target.position.copy_(position)
    if isinstance(target.norm_pre, nn.LayerNorm):
        copy_affine(source.norm_pre, target.norm_pre)
    if isinstance(target.norm, nn.LayerNorm):
        copy_affine(source.norm if target.arch.norm == "before-pool" else source.fc_norm, target.norm)
    copy_affine(source.head, target.head)
    if target.head_dist is not None:
        copy_affine(source.head_dist, target.head_dist)


def copy_block(
    source: Block | SwinTransformerBlock, target: SlimBlock, factors: tuple[Tensor, Tensor]
) -> None:
    """Copy the norms, attention and MLP of a timm block.

    Args:
        source: a block with norm1, attn (qkv, proj), norm2 and mlp (fc1, fc2).
        target: the slim block, of the same dims.
        factors: LayerScale of attention and MLP, [D] each; folded into their last layers.
    """
    copy_affine(source.norm1, target.norm1)
    copy_affine(source.norm2, target.norm2)
    copy_attention(source.attn, target.attn, factors[0])
    copy_mlp(source.mlp, target.mlp, factors[1])


def copy_mlp(source: layers.Mlp | layers.GluMlp | layers.SwiGLU, target: SlimMlp, factors: Tensor) -> None:
    """Copy an MLP; `factors` are folded into its last layer."""
    match source:
        case layers.GluMlp():
            assert target.gate is not None
            value, gate = (0, 1) if source.gate_last else (1, 0)
            bias = source.fc1.bias
            for part, layer in ((value, target.fc1), (gate, target.gate)):
                layer.weight.copy_(source.fc1.weight.chunk(2)[part])
                layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias.chunk(2)[part])
        case layers.SwiGLU():
            assert target.gate is not None
            copy_affine(source.fc1_x, target.fc1)
            copy_affine(source.fc1_g, target.gate)
        case _:
            copy_affine(source.fc1, target.fc1)
    copy_affine(source.fc2, target.fc2)
    target.fc2.weight.mul_(factors.unsqueeze(1))
    target.fc2.bias.mul_(factors)


def copy_attention(
    source: Attention | WindowAttention | CctAttention, target: SlimAttention, factors: Tensor
) -> None:
    """Copy an attention with fused qkv; value bias and `factors` are folded into the projection."""
    for part, weight in zip((target.q, target.k, target.v), source.qkv.weight.chunk(3), strict=True):
        part.weight.copy_(weight)
    out_bias = torch.zeros_like(target.proj.bias) if source.proj.bias is None else source.proj.bias.clone()
    if source.qkv.bias is not None:
        q_bias, k_bias, v_bias = source.qkv.bias.chunk(3)
        target.q.bias.copy_(q_bias)
        if target.k.bias is not None:
            target.k.bias.copy_(k_bias)
        out_bias += source.proj.weight @ v_bias
    if isinstance(source, Attention):
        for norm, ours in ((source.q_norm, target.q_norm), (source.k_norm, target.k_norm)):
            if isinstance(ours, nn.LayerNorm):
                copy_affine(norm, ours)
    target.proj.weight.copy_(source.proj.weight * factors.unsqueeze(1))
    target.proj.bias.copy_(out_bias * factors)


def copy_affine(source: _Affine, target: _Affine) -> None:
    """Copy weight and bias; a bias that the source lacks is zero."""
    target.weight.copy_(source.weight)
    if target.bias is not None:
        target.bias.copy_(torch.zeros_like(target.bias) if source.bias is None else source.bias)
