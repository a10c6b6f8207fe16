"""Prove from an exported file alone that its tensors have the dims that the plan promised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import onnx

from edgevit.errors import ExportError
from edgevit.export.read import read_onnx
from edgevit.models.arch import Arch, BlockDims

Dims = tuple[int, ...]


def promised_dims(arch: Arch) -> dict[str, Dims]:
    """Return the dims of every initialiser that the exported file of a model has, by name.

    Weights of matrix products stand as [in, out], those of the classifiers as [out, in].
    """
    embed = arch.embed
    dims: dict[str, Dims] = dict(_embedding_dims(arch))
    if arch.position:
        dims["position"] = (1, arch.patches, embed)
    if arch.prefix:
        dims["prefix"] = (1, arch.prefix, embed)
    if arch.pre_norm:
        dims |= _norm("norm_pre", embed)
    for index, block in enumerate(arch.blocks):
        dims |= {f"blocks.{index}.{name}": size for name, size in _block_dims(arch, block)}
    if arch.norm != "none" and arch.blocks[-1].full is None:
        dims |= _norm("norm", arch.features)
    if arch.reads == "sequence":
        dims["sequence_pool.weight"] = (arch.features, 1)
    for head in ("head", "head_dist") if arch.reads == "class+distillation" else ("head",):
        dims |= {f"{head}.weight": (arch.classes, arch.features), f"{head}.bias": (arch.classes,)}
    return dims


def _embedding_dims(arch: Arch) -> Iterator[tuple[str, Dims]]:
    channels = arch.image[0]
    if arch.tokenizer is None:
        yield "patch_embed.weight", (arch.embed, channels, *arch.patch)
        yield "patch_embed.bias", (arch.embed,)
        return
    kernel = (arch.tokenizer.kernel, arch.tokenizer.kernel)
    for index, (before, after) in enumerate(pairwise((channels, *arch.tokenizer.inner, arch.embed))):
        yield f"patch_embed.convs.{index}.weight", (after, before, *kernel)


def _block_dims(arch: Arch, block: BlockDims) -> Iterator[tuple[str, Dims]]:
    embed, qk, vo = block.embed, block.heads * block.qk_dim, block.heads * block.vo_dim
    if block.downsampled_from is not None:
        four = 4 * block.downsampled_from
        yield "downsample.reduction.weight", (four, embed)
        if block.downsampled_full is None:
            yield from _norm("downsample.norm", four).items()
        else:
            yield "downsample.reduction.bias", (embed,)
    if block.window is not None:
        yield "attn.position_bias", (block.heads, block.window.area, block.window.area)
    narrow = block.full is not None  # then norms that only a layer reads are in its weights
    for name, folded in (("norm1", narrow), ("norm2", narrow and not arch.norm2_on_stream)):
        if not folded:
            yield from _norm(name, embed).items()
    yield from {
        "attn.q.weight": (embed, qk),
        "attn.k.weight": (embed, qk),
        "attn.v.weight": (embed, vo),
    }.items()
    if arch.qkv_bias or narrow:
        yield "attn.q.bias", (qk,)
    if narrow or (arch.qkv_bias and arch.qk_norm):
        yield "attn.k.bias", (qk,)
    if arch.qk_norm:
        yield from (_norm("attn.q_norm", block.qk_dim) | _norm("attn.k_norm", block.qk_dim)).items()
    yield from {"attn.proj.weight": (vo, embed), "attn.proj.bias": (embed,)}.items()
    for layer in ("fc1", "gate") if arch.gated else ("fc1",):
        yield f"mlp.{layer}.weight", (block.mlp_width, block.hidden)
        yield f"mlp.{layer}.bias", (block.hidden,)
    yield from {"mlp.fc2.weight": (block.hidden, embed), "mlp.fc2.bias": (embed,)}.items()


def _norm(name: str, width: int) -> dict[str, Dims]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def check_dims(path: Path, arch: Arch) -> None:
    """Compare the initialisers of an exported file with the model's dims; nothing but the file is read.

    Raises:
        ExportError: lists every weight that is missing, not promised, of other dims or read by no node, and
            every product with a constant mask, each with its block, expected and got.
    """
    graph = read_onnx(path).graph
    problems = [*_wrong_dims(graph, arch), *_unread(graph), *_masks(graph, arch)]
    if problems:
        raise ExportError(
            f"{path}: the file has not the promised tensors:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
            + "\nExport it again; if it stays so, this is a fault of edgevit: report it with the recipe."
        )


def _wrong_dims(graph: onnx.GraphProto, arch: Arch) -> Iterator[str]:
    promised = promised_dims(arch)
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for name, dims in promised.items():
        if name not in found:
            yield f"{name}: expected {list(dims)}, got no such weight"
        elif found[name] != dims:
            yield f"{name}: expected {list(dims)}, got {list(found[name])}"
    for name in sorted(found.keys() - promised.keys()):
        yield f"{name}: expected no such weight, got {list(found[name])}"


def _unread(graph: onnx.GraphProto) -> Iterator[str]:
    read = {name for node in graph.node for name in node.input}
    for tensor in graph.initializer:
        if tensor.name not in read:
            yield f"{tensor.name}: expected a node that reads it, got none: dead {list(tensor.dims)}"


def _masks(graph: onnx.GraphProto, arch: Arch) -> Iterator[str]:
    """Yield products with fixed numbers, one a channel, token or head: a cut that only looks like one.

    Rotary angles are fixed numbers too, one for each token and QK dim. So are the weights of norms that stand
    in single operators, below opset 17 or because channels of their stream were cut; no other weight has one
    dim. What neurons are worth is one for each of them, and ranks where nothing but a TopK reads the product.
    """
    turning = arch.blocks if arch.rotary else ()
    angles = {(count, block.qk_dim) for block in turning for count in (block.tokens_in, block.queries)}
    norms = {
        name for name, dims in promised_dims(arch).items() if name.endswith(".weight") and len(dims) == 1
    }
    fixed = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if tensor.name not in norms}
    for node in graph.node:
        if node.op_type == "Constant":
            tensor = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
            fixed[node.output[0]] = tuple(tensor.dims) if tensor is not None else ()
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for node in graph.node:
        if readers.get(node.output[0]) == {"TopK"}:
            continue
        factors = [name for name in node.input if math.prod(fixed.get(name, ())) > 1]
        masks = [name for name in factors if fixed[name] not in angles]
        if node.op_type in ("Mul", "Where") and masks:
            dims = list(fixed[masks[0]])
            yield f"{node.name}: expected no product with a constant mask, got {masks[0]} of {dims}"
