"""Closed form of one attention: which heads stay, their QK and VO bases, and the refit of the projection.

Shapes: b images of a batch, N' slim tokens, H' kept heads, K/V dims per head, C embed width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from edgevit.models.downsample import Downsample
from edgevit.models.layers import SlimAttention
from edgevit.models.reduction import Reduction
from edgevit.models.rotary import dims_of_pairs
from edgevit.slim import closed_form
from edgevit.slim.moments import Moments
from edgevit.slim.site import Site
from edgevit.slim.write import write_angles, write_linear, write_position_bias


def fit_attention(site: Site) -> list[Reduction]:
    """Fit the cut attention and move both streams behind it, and behind the patch merging in front of it.

    Returns:
        What is merged or dropped in each batch of images; empty when all tokens stay.
    """
    _merge_patches(site)
    if not site.streams.drifted and _uncut(site):
        site.cut.attn.load_state_dict(site.full.attn.state_dict())
        return _step_equal(site)
    heads, out = _choose_heads(site)
    wide = _wide_attention(site, heads)
    mixed, reductions, moments = _run_wide(site, wide)
    maps = _fit_values(site, wide, moments, out).float()
    for part, u in zip(site.streams.slices(), mixed, strict=True):
        site.streams.add(part, site.cut.attn.proj(u @ maps.T))
    site.streams.drifted = True
    return reductions


def attention_errors(site: Site) -> tuple[Tensor, Tensor]:
    """Return what each rank of QK and of VO would lose on the slim stream, with nothing else cut.

    Returns:
        Squared errors of the logits [K + 1] and of the output [V + 1], by rank.
    """
    _merge_patches(site)
    attention, moments = site.full.attn, Moments()
    squares, covariances = _qk_moments(site, _all_heads(attention))
    for part in site.streams.slices():
        mixed = _mix(attention, _normed(site, part), site.streams.sizes_of(part))
        values = mixed.unflatten(-1, (attention.heads, -1)).flatten(0, 1).transpose(0, 1)  # [H, b * N', V]
        weights = site.token_weights(site.weights.attention, part)
        moments.add(values, weights.expand(attention.heads, -1))
    out = attention.proj.weight.double().unflatten(1, (attention.heads, -1)).transpose(0, 1)  # [H, C, V]
    errors = closed_form.qk_errors if attention.rotary is None else closed_form.pair_errors
    qk = errors(squares.square, covariances.covariance)
    return qk, closed_form.vo_errors(out, moments.covariance)


def _merge_patches(site: Site) -> None:
    if isinstance(site.full.downsample, Downsample):
        site.streams.downsample(site.full.downsample)


def _uncut(site: Site) -> bool:
    full, cut = site.full.attn, site.cut.attn
    return (full.heads, full.qk_dim, full.vo_dim) == (cut.heads, cut.qk_dim, cut.vo_dim)


def _normed(site: Site, part: slice) -> Tensor:
    y: Tensor = site.full.norm1(site.streams.slim[part])
    return y


def _mix(attention: SlimAttention, y: Tensor, sizes: Tensor | None) -> Tensor:
    """Return the heads' outputs side by side for all tokens, [b, N', H*V]."""
    y = attention.split(y)
    return attention.join(attention.mix(y, attention.keys(y), y.shape[1], sizes))


def _all_heads(attention: SlimAttention) -> Tensor:
    return torch.arange(attention.heads, device=attention.proj.weight.device)


def _choose_heads(site: Site) -> tuple[Tensor, Tensor]:
    """Choose the heads that stay.

    Returns:
        Their indices, int64 [H'], and their output columns, float64 [C, H'*V], refitted for what goes.
    """
    attention = site.full.attn
    out = attention.proj.weight.double()
    if site.cut.attn.heads == attention.heads:
        return _all_heads(attention), out
    moments = Moments()
    for part in site.streams.slices():
        mixed = _mix(attention, _normed(site, part), site.streams.sizes_of(part))
        moments.add(mixed.flatten(0, 1), site.token_weights(site.weights.attention, part))
    return closed_form.eliminate_heads(out, moments.covariance, attention.heads, site.cut.attn.heads)


def _wide_attention(site: Site, heads: Tensor) -> SlimAttention:
    """Return the kept heads with all value dims and their slim QK basis, also written into `cut`."""
    full, cut = site.full.attn, site.cut.attn
    dims = dataclasses.replace(site.cut.dims, vo_dim=full.vo_dim)
    wide = SlimAttention(dims, site.full.arch).to(heads.device)
    maps = _qk_maps(site, heads)
    for name, part in (("q", 0), ("k", 1)):
        source, target, slim = getattr(full, name), getattr(wide, name), getattr(cut, name)
        weight, bias = _head_rows(source.weight, full.heads, heads), None
        if source.bias is not None:
            bias = _head_rows(source.bias.unsqueeze(-1), full.heads, heads)
        if maps is not None:
            weight, bias = maps[part] @ weight, None if bias is None else maps[part] @ bias
        write_linear(target, weight.flatten(0, 1), None if bias is None else bias.flatten())
        slim.load_state_dict(target.state_dict())
    wide.q_norm, wide.k_norm, wide.rotary = cut.q_norm, cut.k_norm, cut.rotary
    write_linear(wide.v, _head_rows(full.v.weight, full.heads, heads).flatten(0, 1), None)
    for target in (wide, cut):
        write_position_bias(full, target, heads)
    return wide


def _head_rows(weight: Tensor, heads: int, kept: Tensor) -> Tensor:
    """Return the rows of the kept heads in float64: [H*K, C] -> [H', K, C]."""
    rows: Tensor = weight.detach().double().unflatten(0, (heads, -1))
    return rows[kept]


def _qk_maps(site: Site, heads: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return each kept head's maps from full to slim QK dims, [H', K', K]; None if QK is not cut.

    Where positions turn pairs of dims, whole pairs stay, and their angles are written here: another basis
    would mix what is turned by different angles.
    """
    full, cut = site.full.attn, site.cut.attn
    if cut.qk_dim == full.qk_dim:
        write_angles(full, cut, torch.arange(full.qk_dim, device=heads.device))
        return None
    squares, covariances = _qk_moments(site, heads)
    if full.rotary is None:
        return closed_form.reduce_qk(squares.square, covariances.covariance, cut.qk_dim)
    gone = closed_form.order_pairs(squares.square, covariances.covariance).order
    gone = gone[: (full.qk_dim - cut.qk_dim) // 2]
    pairs = closed_form.left_of(gone, full.qk_dim // 2, heads.device)
    dims = dims_of_pairs(pairs, full.qk_dim)
    write_angles(full, cut, dims)
    rows = torch.eye(full.qk_dim, dtype=torch.float64, device=dims.device)[dims].expand(len(heads), -1, -1)
    return rows, rows


def _qk_moments(site: Site, heads: Tensor) -> tuple[Moments, Moments]:
    """Return the moments of the queries (before their scale) and of the keys of `heads`."""
    full = site.full.attn
    squares, covariances = Moments(), Moments()
    for part in site.streams.slices():
        y = _normed(site, part)
        queries = full.queries(y)[:, heads] / full.scale
        keys = full.keys(y)[:, heads]
        row = site.head_weights(site.weights.queries, part, heads)
        column = site.head_weights(site.weights.keys, part, heads)
        squares.add(queries.transpose(0, 1).flatten(1, 2), row)
        covariances.add(keys.transpose(0, 1).flatten(1, 2), column)
    return squares, covariances


def _run_wide(site: Site, wide: SlimAttention) -> tuple[list[Tensor], list[Reduction], Moments]:
    """Run the wide attention over all images and move the dense stream.

    Returns:
        What the wide attention gives before its projection, one [b, N', H'*V] a batch; what is merged or
        dropped; and the moments of the first with what the projection should make of it.
    """
    full, moments = site.full.attn, Moments()
    mixed: list[Tensor] = []
    reductions: list[Reduction] = []
    for part in site.streams.slices():
        y = _normed(site, part)
        sizes = site.streams.sizes_of(part)
        if site.cut.dims.merged:
            reductions.append(site.cut.reduction(wide.keys(y)))
        u = _mix(wide, y, sizes)
        whole = u if _same_attention(site) else _mix(full, y, sizes)
        site.streams.move_dense(part, 2 * site.index, _branch(site))
        target = site.target(full.proj(whole), part)
        weights = site.token_weights(site.weights.attention, part)
        moments.add(u.flatten(0, 1), weights, target.flatten(0, 1))
        mixed.append(u)
    return mixed, reductions, moments


def _same_attention(site: Site) -> bool:
    """Whether heads and QK dims are all there, so that the wide attention is the full one."""
    return site.cut.attn.heads == site.full.attn.heads and site.cut.attn.qk_dim == site.full.attn.qk_dim


def _fit_values(site: Site, wide: SlimAttention, moments: Moments, out: Tensor) -> Tensor:
    """Give the values their best basis and refit the projection behind them.

    Returns:
        The map from the wide to the slim attention output, float64 [H'*V', H'*V].
    """
    cut = site.cut.attn
    maps, start = _reduce_values(moments.covariance, out, cut.vo_dim, wide)
    weight = start
    if site.options.aim is not None:
        covariance = maps @ moments.covariance @ maps.T
        weight = closed_form.refit(covariance, moments.cross_covariance @ maps.T, start, site.options.pull)
    write_linear(cut.proj, weight, moments.target_mean - weight @ (maps @ moments.mean))
    write_linear(cut.v, maps @ wide.v.weight.double(), None)
    return maps


def _reduce_values(covariance: Tensor, out: Tensor, rank: int, wide: SlimAttention) -> tuple[Tensor, Tensor]:
    """Return the values' block-diagonal map [H'*V', H'*V] and the output columns [C, H'*V'] to go with it."""
    width = wide.vo_dim
    if rank == width:
        return torch.eye(out.shape[1], dtype=out.dtype, device=out.device), out
    maps, columns = [], []
    for head in range(wide.heads):
        part = slice(head * width, (head + 1) * width)
        turn, column = closed_form.reduce_vo(out[:, part], covariance[part, part], rank)
        maps.append(turn)
        columns.append(column)
    return torch.block_diag(*maps), torch.cat(columns, dim=1)


def _branch(site: Site) -> Callable[[Tensor], Tensor]:
    """Return what the full attention adds to a dense stream, [b, N, D] -> [b, N, D]."""
    attention = site.full.attn

    def branch(stream: Tensor) -> Tensor:
        added: Tensor = attention.proj(_mix(attention, site.full.norm1(stream), None))
        return added

    return branch


def _step_equal(site: Site) -> list[Reduction]:
    """Move both streams, which are still equal, behind an attention that was not cut."""
    reductions = []
    for part in site.streams.slices():
        if site.cut.dims.merged:
            reductions.append(site.cut.reduction(site.full.attn.keys(_normed(site, part))))
    site.streams.move_both(_branch(site))
    return reductions
