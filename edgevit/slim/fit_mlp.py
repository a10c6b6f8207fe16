"""Closed form of one MLP: which neurons stay, and the refit of what they add to the residual stream."""

from __future__ import annotations

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
        for part in streams.slices():
            _move_dense(site, part)
        streams.follow_dense()
        return
    _fit(site)
    streams.drifted = True
    for part in streams.slices():
        streams.add(part, cut(_normed(site, part)))


def _normed(site: Site, part: slice) -> Tensor:
    return site.full.mlp_input(site.streams.slim[part])


def _fit(site: Site) -> None:
    full, cut = site.full.mlp, site.cut.mlp
    moments = _neuron_moments(site)
    covariance, weight = moments.covariance, full.fc2.weight.double()
    kept = _choose_neurons(site, moments, weight)
    inner = covariance[kept][:, kept]
    start = weight
    if len(kept) < len(covariance):
        whole = weight @ covariance[:, kept]  # Cov of the full output with the kept neurons
        start = closed_form.refit(inner, whole, torch.zeros_like(whole), closed_form.RIDGE)
    new = start
    if site.options.aim is not None:
        new = closed_form.refit(inner, moments.cross_covariance[:, kept], start, site.options.pull)
    write_neurons(full, cut, kept)
    write_linear(cut.fc2, new, moments.target_mean - new @ moments.mean[kept])


def _neuron_moments(site: Site) -> Moments:
    """Return moments of the full neurons on the slim stream, with the branch's target."""
    moments = Moments()
    for part in site.streams.slices():
        neurons = site.full.mlp.neurons(_normed(site, part))  # [b, N', F]
        _move_dense(site, part)
        target = site.target(site.full.mlp.fc2(neurons), part)
        weights = site.token_weights(site.weights.mlp, part)
        moments.add(neurons.flatten(0, 1), weights, target.flatten(0, 1))
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


def _move_dense(site: Site, part: slice) -> None:
    """Move the dense stream of a batch behind the full MLP."""
    stream = site.streams.dense[part]
    stream += site.full.mlp(site.full.mlp_input(stream))
