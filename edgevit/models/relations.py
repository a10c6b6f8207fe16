"""The relationship matrix: which dims of which layers can only go together.

Read from an `Arch` alone, for every family. A node is one side of one layer. Two nodes are related where a
dim of one cannot go without those of the other; the connected components are the groups, and all nodes of a
group are cut by the same indices.

Index maps all have one form: the smaller node's dims come several times in a row in the larger one, so dim j
of a node of size n is dims j, j + n, j + 2n, ... of a node of size m * n. Four patches that are merged stand
side by side (1 to 4), a norm of queries is shared by all heads (1 to H), a rotary angle turns dims j and
j + K / 2 of every head. So dim x of any node of a group belongs to unit x modulo the group's size. An MLP
that reads only some channels of its stream counts as one that reads the others with zeros: which those are is
known to its model alone, how many stands at the node.

Reference: Zhang et al. 2025, intra-head pruning by inter-layer dimension relationship, Neural Networks 190,
107656.
Differs: rebuilt from the abstract and from what the networks compute; the paper's own matrix is not public.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from edgevit.models.arch import Arch, BlockDims

Side = Literal["in", "out", "through"]
"""Columns of a layer, its rows, or the dims of a layer that has but one kind of them (norms, angles)."""
RelationKind = Literal["mul", "producer-consumer", "add"]
"""A product of dims, a layer that reads another's dims, or outputs that are added."""
GroupKind = Literal["qk", "vo", "hidden", "stream", "tokenizer", "image", "classes"]


@dataclass(frozen=True, order=True)
class Node:
    """The dims of one side of one layer; `layer` is its name in a state dict."""

    layer: str
    side: Side
    size: int
    reads: int | None = None
    """How many of its dims are there, where an MLP reads only some of a stream's; None: all."""

    @property
    def name(self) -> str:
        """Return layer and side in one word."""
        return self.layer if self.side == "through" else f"{self.layer}.{self.side}"


@dataclass(frozen=True)
class Relation:
    """Two nodes whose dims go together, and why."""

    kind: RelationKind
    first: Node
    second: Node

    @property
    def copies(self) -> int:
        """Return how many dims of the larger node one dim of the smaller one is."""
        small, large = sorted((self.first.size, self.second.size))
        return large // small


@dataclass(frozen=True)
class Group:
    """Nodes that are cut together: unit j is every dim x of its nodes with x = j modulo `size`."""

    name: str
    kind: GroupKind
    size: int
    """Units: what can go by itself, where nothing else forbids it."""
    parts: int
    """Heads, each of which has as many units as the others and has to keep as many; 1: no such limit."""
    nodes: tuple[Node, ...]
    relations: tuple[Relation, ...]

    @property
    def producers(self) -> tuple[Node, ...]:
        """Return the nodes whose outputs are added; empty where nothing is."""
        added = {node for relation in self.relations if relation.kind == "add" for node in _ends(relation)}
        return tuple(node for node in self.nodes if node in added)


@dataclass(frozen=True)
class Relations:
    """The relationship matrix of a model, sparse and symmetric: a relation stands for both of its cells."""

    nodes: tuple[Node, ...]
    """Its rows, in the order of the layers."""
    relations: tuple[Relation, ...]
    """Its cells that are not empty."""
    groups: tuple[Group, ...]
    """Its connected components."""

    def group_of(self, name: str) -> Group:
        """Return the group of that name, such as "blocks.0.qk".

        Raises:
            ValueError: there is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        names = ", ".join(group.name for group in self.groups)
        raise ValueError(f"group {name!r}: expected one of {names}")


def read_relations(arch: Arch) -> Relations:
    """Read the relationship matrix of a model from its dims."""
    drawing = _Drawing()
    stream = _stem(drawing, arch)
    for index, block in enumerate(arch.blocks):
        stream = _block(drawing, arch, block, f"blocks.{index}.", stream)
    _head(drawing, arch, stream)
    heads = {f"blocks.{index}.": block.heads for index, block in enumerate(arch.blocks)}
    nodes, relations = tuple(drawing.nodes), tuple(drawing.relations)
    groups = tuple(_groups(nodes, relations, heads))
    return Relations(nodes, relations, groups)


class _Drawing:
    """Nodes and relations in the order in which they are met."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.relations: list[Relation] = []

    def node(self, layer: str, side: Side, size: int) -> Node:
        node = Node(layer, side, size)
        self.nodes.append(node)
        return node

    def relate(self, kind: RelationKind, first: Node, second: Node) -> None:
        self.relations.append(Relation(kind, first, second))

    def reader(self, source: Node, layer: str, reads: int | None = None) -> Node:
        """Add a layer's columns that read a node, or `reads` of its dims."""
        node = Node(layer, "in", source.size, reads)
        self.nodes.append(node)
        self.relate("producer-consumer", source, node)
        return node

    def norm(self, source: Node, layer: str, size: int | None = None) -> Node:
        """Add a layer that takes a node's dims and gives the same ones; `size` where it has other ones."""
        node = self.node(layer, "through", size or source.size)
        self.relate("producer-consumer", source, node)
        return node

    def add(self, stream: Node, layer: str) -> Node:
        """Add a layer whose output is added to the stream."""
        node = self.node(layer, "out", stream.size)
        self.relate("add", stream, node)
        return node


def _stem(drawing: _Drawing, arch: Arch) -> Node:
    """Draw what makes tokens; return what the stream is last made of."""
    names = ["patch_embed"]
    widths = [arch.image[0], arch.embed]
    if arch.tokenizer is not None:
        widths[1:1] = arch.tokenizer.inner
        names = [f"patch_embed.convs.{index}" for index in range(len(widths) - 1)]
    stream = drawing.node(names[0], "in", widths[0])
    for index, (name, (_, width)) in enumerate(zip(names, pairwise(widths), strict=True)):
        if index:
            drawing.reader(stream, name)
        stream = drawing.node(name, "out", width)
    if arch.position:
        stream = drawing.add(stream, "position")
    if arch.prefix:
        stream = drawing.add(stream, "prefix")
    return drawing.norm(stream, "norm_pre") if arch.pre_norm else stream


def _block(drawing: _Drawing, arch: Arch, dims: BlockDims, name: str, stream: Node) -> Node:
    if dims.downsampled_from is not None:
        merged = drawing.norm(stream, f"{name}downsample.norm", 4 * dims.downsampled_from)
        drawing.reader(merged, f"{name}downsample.reduction")
        stream = drawing.node(f"{name}downsample.reduction", "out", dims.embed)
    normed = drawing.norm(stream, f"{name}norm1")
    values = _attention(drawing, arch, dims, f"{name}attn.", normed)
    drawing.reader(values, f"{name}attn.proj")
    stream = drawing.add(stream, f"{name}attn.proj")
    normed = drawing.norm(stream, f"{name}norm2")
    if arch.norm2_on_stream:
        stream = normed
    drawing.reader(normed, f"{name}mlp.fc1", dims.mlp_inputs)
    neurons = drawing.node(f"{name}mlp.fc1", "out", dims.hidden)
    if arch.gated:
        drawing.reader(normed, f"{name}mlp.gate", dims.mlp_inputs)
        gate = drawing.node(f"{name}mlp.gate", "out", dims.hidden)
        drawing.relate("mul", neurons, gate)
    drawing.reader(neurons, f"{name}mlp.fc2")
    return drawing.add(stream, f"{name}mlp.fc2")


def _attention(drawing: _Drawing, arch: Arch, dims: BlockDims, name: str, normed: Node) -> Node:
    """Draw queries, keys and values; return the values."""
    sides = []
    for part in ("q", "k"):
        drawing.reader(normed, f"{name}{part}")
        sides.append(drawing.node(f"{name}{part}", "out", dims.heads * dims.qk_dim))
        if arch.qk_norm:
            drawing.norm(sides[-1], f"{name}{part}_norm", dims.qk_dim)
    drawing.relate("mul", sides[0], sides[1])
    if arch.rotary:
        angles = drawing.norm(sides[0], f"{name}rotary", dims.qk_dim // 2)
        drawing.relate("producer-consumer", sides[1], angles)
    drawing.reader(normed, f"{name}v")
    return drawing.node(f"{name}v", "out", dims.heads * dims.vo_dim)


def _head(drawing: _Drawing, arch: Arch, stream: Node) -> None:
    if arch.norm != "none":
        stream = drawing.norm(stream, "norm")
    if arch.reads == "sequence":
        drawing.reader(stream, "sequence_pool")
    drawing.reader(stream, "head")
    classes = drawing.node("head", "out", arch.classes)
    if arch.reads == "class+distillation":
        drawing.reader(stream, "head_dist")
        drawing.add(classes, "head_dist")


def _ends(relation: Relation) -> tuple[Node, Node]:
    return relation.first, relation.second


def _groups(nodes: Sequence[Node], relations: Sequence[Relation], heads: dict[str, int]) -> Iterable[Group]:
    """Yield the connected components, in the order of their first nodes."""
    root = _components(nodes, relations)
    members: dict[Node, list[Node]] = {}
    for node in nodes:
        members.setdefault(root[node], []).append(node)
    streams = 0
    for first, inside in members.items():
        own = tuple(relation for relation in relations if root[relation.first] == first)
        kind, block = _kind(inside, own)
        name = f"{block}{kind}"
        if kind == "stream":
            name, streams = f"stream.{streams}", streams + 1
        elif kind == "tokenizer":
            name = inside[0].layer
        size = min(node.size for node in inside)
        whole = max(node.size for node in inside)
        parts = heads[block] if kind in ("qk", "vo") and size == whole else 1
        yield Group(name, kind, size, parts, tuple(inside), own)


def _components(nodes: Sequence[Node], relations: Sequence[Relation]) -> dict[Node, Node]:
    """Return for each node the first node of its component."""
    root = {node: node for node in nodes}
    for relation in relations:
        old, new = root[relation.second], root[relation.first]
        if old != new:
            root |= {node: new for node, of in root.items() if of == old}
    firsts: dict[Node, Node] = {}
    for node in nodes:
        firsts.setdefault(root[node], node)
    return {node: firsts[of] for node, of in root.items()}


def _kind(inside: Sequence[Node], relations: Sequence[Relation]) -> tuple[GroupKind, str]:
    """Tell what a group is, and of which block where it lies in one: "blocks.0." or nothing."""
    kinds: dict[str, GroupKind] = {"attn.q": "qk", "attn.v": "vo", "mlp.fc1": "hidden"}
    for node in inside:
        if node.layer == "head" and node.side == "out":
            return "classes", ""
        head, _, layer = node.layer.partition(".")
        number, _, layer = layer.partition(".")
        if head == "blocks" and node.side == "out" and layer in kinds:
            return kinds[layer], f"blocks.{number}."
    if any(relation.kind == "add" for relation in relations):
        return "stream", ""
    return ("image", "") if inside[0].side == "in" and len(inside) == 1 else ("tokenizer", "")
