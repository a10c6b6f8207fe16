"""A model's dims as data: everything needed to rebuild it without timm, pickle or the recipe.

Legend used in this package: B batch, N tokens (with prefix), P prefix tokens, D embed width, H heads,
K query/key dims per head, V value/output dims per head, F hidden neurons of the MLP.
After pruning D != H*K, so no dim is ever computed from another.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

from edgevit.errors import WeightsError

ARCH_SCHEMA = 2

Activation = Literal["gelu", "gelu-tanh", "quick-gelu", "relu", "silu"]
Reads = Literal["class", "class+distillation", "mean", "mean+prefix"]
NormPlace = Literal["before-pool", "after-pool", "none"]


@dataclass(frozen=True)
class BlockDims:
    """Dims of one transformer block.

    `tokens_out < tokens_in` means that tokens are merged after the attention. `queries` is the number of
    leading tokens for which the block computes anything (all of `tokens_in` unless the others are dead).
    """

    heads: int
    qk_dim: int
    vo_dim: int
    hidden: int
    tokens_in: int
    tokens_out: int
    queries: int
    embed: int  # width of the residual stream

    @property
    def merged(self) -> int:
        """Return the number of tokens that are merged into others in this block."""
        return self.queries - self.tokens_out


@dataclass(frozen=True)
class Arch:
    """Dims and forms of a plain Vision Transformer; LayerScale is folded into the projections."""

    image: tuple[int, int, int]  # channels, height, width
    patch: tuple[int, int]
    classes: int
    prefix: int  # class, distillation and register tokens
    reads: Reads
    norm: NormPlace
    pre_norm: bool
    norm_eps: float
    activation: Activation
    qk_norm: bool
    qkv_bias: bool
    scale: float  # of the dense model's attention logits; frozen, never computed from qk_dim
    blocks: tuple[BlockDims, ...]

    @property
    def embed(self) -> int:
        """Return the width of the tokens that enter the first block."""
        return self.blocks[0].embed

    @property
    def features(self) -> int:
        """Return the width of the tokens that leave the last block."""
        return self.blocks[-1].embed

    @property
    def patches(self) -> int:
        """Return the number of patch tokens that the embedding makes."""
        return (self.image[1] // self.patch[0]) * (self.image[2] // self.patch[1])

    @property
    def tokens(self) -> int:
        """Return the number of tokens that enter the first block."""
        return self.prefix + self.patches

    @property
    def read_tokens(self) -> int | None:
        """Return how many leading tokens the head reads, or None when it reads all of them."""
        return {"class": 1, "class+distillation": 2}.get(self.reads)


def arch_to_json(arch: Arch) -> dict[str, Any]:
    """Turn an arch into plain JSON data with a schema number."""
    return {"schema": ARCH_SCHEMA, **dataclasses.asdict(arch)}


def arch_from_json(data: dict[str, Any], where: str) -> Arch:
    """Rebuild an arch from `arch_to_json` data.

    Raises:
        WeightsError: another schema, or keys that are missing or unknown; `where` names the file.
    """
    if data.get("schema") != ARCH_SCHEMA:
        found = json.dumps(data.get("schema"))
        raise WeightsError(
            f"{where}: expected an edgevit arch of schema {ARCH_SCHEMA}, got {found}. "
            "Build the model again with this version of edgevit."
        )
    fields = {key: value for key, value in data.items() if key != "schema"}
    try:
        blocks = tuple(BlockDims(**block) for block in fields.pop("blocks"))
        arch = Arch(**{**fields, "blocks": blocks})
    except (KeyError, TypeError) as error:
        raise WeightsError(f"{where}: the arch is incomplete or has unknown keys: {error}") from error
    return dataclasses.replace(arch, image=_three(arch.image), patch=(arch.patch[0], arch.patch[1]))


def _three(values: tuple[int, int, int]) -> tuple[int, int, int]:
    channels, height, width = values
    return (channels, height, width)
