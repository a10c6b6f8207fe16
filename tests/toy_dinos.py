"""Toy DINOv3 models: timm's, seeded, and the slim form of one."""

from __future__ import annotations

from functools import partial

from timm.layers import LayerNorm
from timm.models.eva import Eva
from toy_vits import fill

from edgevit.models.eva import from_eva
from edgevit.models.layers import SlimViT

dino = partial(
    Eva,
    img_size=32,
    patch_size=8,
    embed_dim=24,
    depth=3,
    num_heads=3,
    num_classes=5,
    global_pool="token",
    dynamic_img_size=True,
    qkv_bias=False,
    init_values=1e-5,
    rope_type="dinov3",
    rope_temperature=100,
    rope_rotate_half=True,
    use_rot_pos_emb=True,
    use_abs_pos_emb=False,
    num_reg_tokens=4,
    use_fc_norm=False,
    norm_layer=partial(LayerNorm, eps=1e-5),
)
"""A class token, 4 registers and 4 x 4 patches; D 24, H 3, K 8, F 96."""


def toy_dino(seed: int = 0) -> SlimViT:
    """Return the slim form of a seeded DINOv3 whose every parameter is random and not zero."""
    return from_eva(fill(dino(swiglu_mlp=True), seed), "toy").requires_grad_(False)
