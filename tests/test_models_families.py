from __future__ import annotations

import pytest
import timm

from edgevit.errors import UnsupportedModelError
from edgevit.models.families import from_timm


def test_from_timm_refuses_a_convolutional_network_by_name() -> None:
    message = r"model resnet18: expected a Vision .* or a Swin Transformer, got ResNet\."
    with pytest.raises(UnsupportedModelError, match=message):
        from_timm(timm.create_model("resnet18"), "resnet18")


def test_from_timm_refuses_swin_v2_with_the_reason() -> None:
    model = timm.create_model(
        "swinv2_tiny_window8_256", img_size=32, window_size=4, embed_dim=16, depths=(1, 1), num_heads=(2, 4)
    )
    with pytest.raises(UnsupportedModelError, match="Swin V2 compares queries and keys by their cosine"):
        from_timm(model, "swinv2")
