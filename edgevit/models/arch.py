"""A model's dims as data: everything needed to rebuild it without timm, pickle or the recipe.

Legend used in this package: B batch, N tokens (with prefix), P prefix tokens, D embed width, H heads,
K query/key dims per head, V value/output dims per head, F hidden neurons of the MLP.
After pruning D != H*K, so no dim is ever computed from another.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from edgevit.errors import WeightsError
from edgevit.plan import Choice, PerImage, choice_from_json, per_image_from_json

ARCH_SCHEMA = 2

Activation = Literal["gelu", "gelu-tanh", "quick-gelu", "relu", "silu"]
Reads = Literal["class", "class+distillation", "mean", "mean+prefix", "sequence"]
"""What the head reads; "sequence" is a mean of all tokens by a softmax over them (CCT)."""
NormPlace = Literal["before-pool", "after-pool", "none"]


@dataclass(frozen=True)
class Pool:
    """A pooling; sizes in pixels, the same both ways."""

    kernel: int
    stride: int
    padding: int


POOL = Pool(3, 2, 1)
"""The max-pooling behind each convolution of a tokenizer."""


@dataclass(frozen=True)
class Tokenizer:
    """Convolutions that make tokens (CCT), all of one form; each is followed by ReLU and `POOL`."""

    inner: tuple[int, ...]  # channels between the convolutions; the last puts out the embed width
    kernel: int
    stride: int
    padding: int

    def sizes(self, image: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Return height and width behind each convolution, before its pooling; behind all of them last."""
        sizes = []
        for _ in range(len(self.inner) + 1):
            image = _shrunk(image, self)
            sizes.append(image)
            image = _shrunk(image, POOL)
        return (*sizes, image)

    def grid(self, image: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of the tokens of an image."""
        return self.sizes(image)[-1]


def _shrunk(image: tuple[int, int], layer: Tokenizer | Pool) -> tuple[int, int]:
    height, width = ((size + 2 * layer.padding - layer.kernel) // layer.stride + 1 for size in image)
    return height, width


@dataclass(frozen=True)
class Window:
    """How the tokens of a block stand on a grid, and the windows inside which they attend; heights first."""

    size: tuple[int, int]
    shift: tuple[int, int]  # 0, 0: the windows stand where the grid begins
    grid: tuple[int, int]  # a multiple of `size`

    @property
    def area(self) -> int:
        """Return the number of tokens of one window."""
        return self.size[0] * self.size[1]

    @property
    def count(self) -> int:
        """Return the number of windows."""
        return self.grid[0] * self.grid[1] // self.area


@dataclass(frozen=True)
class BlockDims:
    """Dims of one transformer block.

    `tokens_out < queries` means that tokens are merged, or some chosen to stay, after the attention.
    `queries` is the number of leading tokens for which the block computes anything (all of `tokens_in` unless
    the others are dead).
    """

    heads: int
    qk_dim: int
    vo_dim: int
    hidden: int
    tokens_in: int
    tokens_out: int
    queries: int
    embed: int  # width of the residual stream
    window: Window | None = None  # None: every token attends to every other
    downsampled_from: int | None = None
    """Width in front of the block where 2 x 2 tokens are merged into one of its `tokens_in` first."""
    choice: Choice | None = None  # of the tokens that stay, where fewer leave; None: pairs are merged
    full: int | None = None
    """Width by which norms divide where channels of the stream were cut (`narrow.py`); None: none were."""
    downsampled_full: int | None = None
    """The same in front of the block where tokens are merged first."""
    per_image: PerImage | None = None  # which of the `hidden` neurons fc2 reads; None: all
    mlp_inputs: int | None = None  # channels of the stream that the MLP reads; None: all `embed`

    @property
    def hidden_used(self) -> int:
        """Return the number of hidden neurons that fc2 reads for each image."""
        return self.hidden if self.per_image is None else self.per_image.used

    @property
    def mlp_width(self) -> int:
        """Return the number of channels that the MLP reads."""
        return self.embed if self.mlp_inputs is None else self.mlp_inputs

    @property
    def attended(self) -> int:
        """Return the number of tokens that each token attends to."""
        return self.tokens_in if self.window is None else self.window.area

    @property
    def merged(self) -> int:
        """Return the number of tokens that are merged into others in this block, or dropped."""
        return self.queries - self.tokens_out


@dataclass(frozen=True)
class Arch:
    """Dims and forms of a Vision Transformer of any family; LayerScale is folded into the projections.

    What a family has that others lack is a field here or in `BlockDims`, whose default is a plain ViT's.
    """

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
    position: bool = True  # whether each patch's position is added to its token
    tokenizer: Tokenizer | None = None  # what makes tokens instead of patches; `patch` is then their distance
    rotary: bool = False  # whether queries and keys are turned by their token's place (RoPE)
    gated: bool = False  # whether a second layer, without activation, multiplies the hidden neurons (SwiGLU)
    norm2_on_stream: bool = False  # whether norm2 changes the residual stream, not only what the MLP reads
    choice: Choice | None = None
    """Of the patches that enter the first block, where those are fewer than `patches`; None: pairs merge."""

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
        return math.prod(self.grid)

    @property
    def grid(self) -> tuple[int, int]:
        """Return rows and columns of the patches."""
        if self.tokenizer is not None:
            return self.tokenizer.grid(self.image[1:])
        return self.image[1] // self.patch[0], self.image[2] // self.patch[1]

    @property
    def tokens(self) -> int:
        """Return the number of tokens that the embedding makes, prefix tokens included."""
        return self.prefix + self.patches

    @property
    def merged(self) -> int:
        """Return the number of patches that are merged into others before the first block, or dropped."""
        return self.tokens - self.blocks[0].tokens_in

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
        blocks = tuple(_block_from_json(block) for block in fields.pop("blocks"))
        tokenizer = _tokenizer_from_json(fields["tokenizer"])
        choice = choice_from_json(fields["choice"])
        arch = Arch(**{**fields, "blocks": blocks, "tokenizer": tokenizer, "choice": choice})
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsError(
            f"{where}: the arch is incomplete or has unknown keys: {error}. Build the model again."
        ) from error
    return dataclasses.replace(arch, image=_three(arch.image), patch=(arch.patch[0], arch.patch[1]))


def _block_from_json(data: dict[str, Any]) -> BlockDims:
    block = BlockDims(**data)
    per_image = per_image_from_json(data.get("per_image"))
    block = dataclasses.replace(block, choice=choice_from_json(data.get("choice")), per_image=per_image)
    if block.window is None:
        return block
    window = Window(**{key: (value[0], value[1]) for key, value in data["window"].items()})
    return dataclasses.replace(block, window=window)


def _tokenizer_from_json(data: dict[str, Any] | None) -> Tokenizer | None:
    return None if data is None else Tokenizer(**{**data, "inner": tuple(data["inner"])})


def _three(values: tuple[int, int, int]) -> tuple[int, int, int]:
    channels, height, width = values
    return (channels, height, width)
