"""The families of models that edgevit slims, each with the file that turns its timm form into ours."""

from __future__ import annotations

from collections.abc import Callable

from timm.models import eva, swin_transformer, vision_transformer
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edgevit.errors import UnsupportedModelError
from edgevit.models.cct import CCT
from edgevit.models.eva import from_eva
from edgevit.models.from_cct import from_cct
from edgevit.models.layers import SlimViT
from edgevit.models.swin import from_swin
from edgevit.models.vit import from_vit

Renaming = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]


def published_renaming(model: nn.Module) -> Renaming:
    """Return timm's renaming of published checkpoints for a model's family."""
    match model:
        case SwinTransformer():
            renaming: Renaming = swin_transformer.checkpoint_filter_fn
        case Eva():
            renaming = eva.checkpoint_filter_fn
        case CCT():
            return lambda found, model: found
        case _:
            renaming = vision_transformer.checkpoint_filter_fn
    return renaming


def from_timm(model: nn.Module, name: str) -> SlimViT:
    """Convert a timm model into a dense `SlimViT` with equal outputs (to fp32 rounding).

    Args:
        model: what `timm.create_model` returned, with a classifier.
        name: what the user called it; used in messages.

    Raises:
        UnsupportedModelError: of no family that edgevit knows, or of a form of it that it does not; each is
            listed.
    """
    match model:
        case VisionTransformer():
            return from_vit(model, name)
        case SwinTransformer():
            return from_swin(model, name)
        case Eva():
            return from_eva(model, name)
        case CCT():
            return from_cct(model, name)
        case SwinTransformerV2():
            raise UnsupportedModelError(
                f"model {name}: Swin V2 compares queries and keys by their cosine and makes its position"
                " biases with a network of their own: neither has a slim form here. Take a Swin of the first"
                " version (swin_tiny_patch4_window7_224 and its kin)."
            )
    raise UnsupportedModelError(
        f"model {name}: expected a Vision Transformer (timm's VisionTransformer) or a Swin Transformer, got "
        f"{type(model).__name__}. edgevit slims ViT, DeiT, DINOv2 and v3, Swin and CCT models; see "
        "`edgevit inspect --help`."
    )
