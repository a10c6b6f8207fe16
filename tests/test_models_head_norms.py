"""What a head is worth by its weights."""

from __future__ import annotations

import torch
from toy_vits import toy_model

from edgevit.models.head_norms import head_norms


def test_head_norms_are_products_of_norms() -> None:
    attention = toy_model().blocks[0].attn
    rows = [slice(8 * head, 8 * head + 8) for head in range(3)]
    expected = [attention.v.weight[part].norm() * attention.proj.weight[:, part].norm() for part in rows]
    torch.testing.assert_close(head_norms(attention), torch.stack(expected))
