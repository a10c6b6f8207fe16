"""Closed form of one MLP: which neurons stay, and the refit of what they add to the residual stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgevit.slim import closed_form
from edgevit.slim.moments import Moments
from edgevit.slim.site import Site, write_linear, write_neurons


def fit_mlp(site: Site) -> None:
    """Fit the cut MLP and move both streams behind it."""
    full, cut, streams = site.full.mlp, site.cut.mlp, site.streams
    if site.full.arch.norm2_on_stream:
        streams.change(site.full.norm2)
    if not streams.drifted and full.fc1.out_features == cut.fc1.out_features:
        cut.load_state_dict(full.state_dict())
        streams.move_both(_branch(site))
        return
    _fit(site)
    streams.drifted = True
    for part in streams.slices():
        streams.add(part, cut(_normed(site, part)))


def _normed(site: Site, part: slice) -> Tensor:
    return site.full.mlp_input(site.streams.slim[part])


def _fit(site: Site) -> None:
    full, cut, aim = site.full.mlp, site.cut.mlp, site.options.aim
    moments = _neuron_moments(site)
    covariance, weight = moments.covariance, full.fc2.weight.double()
    kept = _choose_neurons(site, moments, weight)
    # What the full branch gives is linear in its neurons: its moments need no pass of their own.
    own_cross, own_mean = weight @ covariance[:, kept], full.fc2.bias.double() + weight @ moments.mean
    inner = covariance[kept][:, kept]
    new, mean = weight, own_mean
    if len(kept) < len(covariance):
        new = closed_form.refit(inner, own_cross, torch.zeros_like(own_cross), closed_form.RIDGE)
    if aim is not None:
        cross = aim * moments.cross_covariance[:, kept] + (1 - aim) * own_cross
        new = closed_form.refit(inner, cross, new, site.options.pull)
        mean = aim * moments.target_mean + (1 - aim) * own_mean
    write_neurons(full, cut, kept)
    write_linear(cut.fc2, new, mean - new @ moments.mean[kept])


def _neuron_moments(site: Site) -> Moments:
    """Return moments of the full neurons on the slim stream, with the drift as targets where it is wanted."""
    moments = Moments()
    for part in site.streams.slices():
        neurons = site.full.mlp.neurons(_normed(site, part))  # [b, N', F]
        site.streams.move_dense(part, 2 * site.index + 1, _branch(site))
        drift = None if site.options.aim is None else site.drift(part).flatten(0, 1)
        moments.add(neurons.flatten(0, 1), site.token_weights(site.weights.mlp, part), drift)
    return moments


def _choose_neurons(site: Site, moments: Moments, weight: Tensor) -> Tensor:
    """Return sorted indices of the neurons that stay, int64 [F']."""
    keep = site.cut.mlp.fc1.out_features
    if keep == weight.shape[1]:
        return torch.arange(keep)
    if site.options.greedy:
        return closed_form.eliminate_neurons(weight, moments.covariance, keep)
    scores: Tensor = moments.square.diagonal().sqrt() * weight.norm(dim=0)
    return scores.topk(keep).indices.sort().values


def _branch(site: Site) -> Callable[[Tensor], Tensor]:
    """Return what the full MLP adds to a dense stream, [b, N, D] -> [b, N, D]."""

    def branch(stream: Tensor) -> Tensor:
        added: Tensor = site.full.mlp(site.full.mlp_input(stream))
        return added

    return branch
