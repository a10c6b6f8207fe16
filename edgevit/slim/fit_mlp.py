"""Closed form of one MLP: what it reads, which neurons stay, and the refit of what they add to the stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgevit.models.layers import SlimMlp
from edgevit.slim import closed_form
from edgevit.slim.moments import Moments
from edgevit.slim.site import Site
from edgevit.slim.write import readers, write_inputs, write_linear, write_neurons, write_worth


def fit_mlp(site: Site) -> None:
    """Fit the cut MLP and move both streams behind it."""
    full, cut, streams = site.full.mlp, site.cut.mlp, site.streams
    if site.full.arch.norm2_on_stream:
        streams.change(site.full.norm2)
    if not streams.drifted and _is_whole(site):
        cut.load_state_dict(full.state_dict())
        streams.move_both(_branch(site))
        return
    _fit(site)
    streams.drifted = True
    for part in streams.slices():
        streams.add(part, cut(_normed(site, part)))


def _is_whole(site: Site) -> bool:
    """Say whether this MLP is not cut."""
    full, cut = site.full.dims, site.cut.dims
    return (full.hidden, full.mlp_width, full.per_image) == (cut.hidden, cut.mlp_width, cut.per_image)


def _normed(site: Site, part: slice) -> Tensor:
    return site.full.mlp_input(site.streams.slim[part])


def _fit(site: Site) -> None:
    seen = observe_mlp(site)
    write_mlp(site, seen, _choose_neurons(site, seen.moments))


class SeenMlp(NamedTuple):
    """What the full MLP was seen to do on the slim stream."""

    reading: SlimMlp
    """The full MLP as it reads what the cut one reads."""
    moments: Moments
    """Of its neurons."""


def observe_mlp(site: Site) -> SeenMlp:
    """Take the statistics of the full MLP on the slim stream, and move the dense one behind it."""
    write_worth(site.full.mlp, site.cut.mlp)
    reading = _fit_inputs(site)
    return SeenMlp(reading, _neuron_moments(site, reading))


def write_mlp(site: Site, seen: SeenMlp, kept: Tensor) -> None:
    """Write the cut MLP of the neurons `kept`, its output fitted to what the site aims at."""
    full, cut, aim = site.full.mlp, site.cut.mlp, site.options.aim
    reading, moments = seen
    covariance, weight = moments.covariance, full.fc2.weight.double()
    width = len(weight)
    inner, linear = covariance[kept][:, kept], _is_linear(site, reading)
    if linear:
        # What the full branch gives is linear in its neurons: its moments need no pass of their own.
        own_cross, own_mean = weight @ covariance[:, kept], full.fc2.bias.double() + weight @ moments.mean
    else:
        own_cross, own_mean = moments.cross_covariance[-width:, kept], moments.target_mean[-width:]
    new, mean = weight, own_mean
    if not linear or len(kept) < len(covariance):
        new = closed_form.refit(inner, own_cross, torch.zeros_like(own_cross), closed_form.RIDGE)
    if aim is not None:
        cross = aim * moments.cross_covariance[:width, kept] + (1 - aim) * own_cross
        new = closed_form.refit(inner, cross, new, site.options.pull)
        mean = aim * moments.target_mean[:width] + (1 - aim) * own_mean
    write_neurons(reading, cut, kept)
    write_linear(cut.fc2, new, mean - new @ moments.mean[kept])


def _is_linear(site: Site, reading: SlimMlp) -> bool:
    """Say whether what the full branch adds is linear in the neurons that the moments are of."""
    return reading is site.full.mlp and site.cut.mlp.choice is None


def _fit_inputs(site: Site) -> SlimMlp:
    """Return the full MLP as it reads what the cut one reads; which channels that are, `cut` gets here.

    The channels go that the others replace best, and the layers that read are refitted to those that stay:
    what a neuron is fed changes as little as it can.
    """
    full, cut = site.full.mlp, site.cut.mlp
    width = cut.fc1.in_features
    if width == full.fc1.in_features:
        write_inputs(full, cut, torch.arange(width, device=full.fc1.weight.device))
        return full
    moments = Moments()
    for part in site.streams.slices():
        weights = site.token_weights(site.weights.mlp, part)
        moments.add(full.read(_normed(site, part)).flatten(0, 1), weights)
    rows = torch.cat([layer.weight for layer in (full.fc1, full.gate) if layer is not None])
    kept = closed_form.eliminate_neurons(rows.double(), moments.covariance, width)
    write_inputs(full, cut, kept)
    dims = dataclasses.replace(site.cut.dims, hidden=full.fc1.out_features)
    reading = SlimMlp(dims, site.cut.arch).to(rows.device)
    write_inputs(full, reading, kept)
    for source, target in readers(full, reading):
        _refit_reader(source, target, moments, kept)
    return reading


def _refit_reader(source: nn.Linear, target: nn.Linear, moments: Moments, kept: Tensor) -> None:
    """Fit a layer that reads the channels `kept` to what it gives when it reads all."""
    weight, covariance = source.weight.double(), moments.covariance[:, kept]
    whole = weight @ covariance
    new = closed_form.refit(covariance[kept], whole, torch.zeros_like(whole), closed_form.RIDGE)
    write_linear(target, new, source.bias + weight @ moments.mean - new @ moments.mean[kept])


def _neuron_moments(site: Site, reading: SlimMlp) -> Moments:
    """Return moments of the neurons on the slim stream, with the drift as targets where it is wanted.

    Neurons that an image does not use are 0 there. Where the full branch is not linear in these neurons, what
    it adds stands behind the drift as more targets.
    """
    moments, choice, linear = Moments(), site.cut.mlp.choice, _is_linear(site, reading)
    for part in site.streams.slices():
        y = _normed(site, part)
        neurons = reading.neurons(y)  # [b, N', F]
        targets = [] if linear else [site.full.mlp(y)]
        if choice is not None:
            neurons = choice.masked(neurons)
        site.streams.move_dense(part, 2 * site.index + 1, _branch(site))
        if site.options.aim is not None:
            targets.insert(0, site.drift(part))
        weights = site.token_weights(site.weights.mlp, part)
        aims = torch.cat(targets, dim=-1).flatten(0, 1) if targets else None
        moments.add(neurons.flatten(0, 1), weights, aims)
    return moments


def _choose_neurons(site: Site, moments: Moments) -> Tensor:
    """Return sorted indices of the neurons that stay, int64 [F']."""
    keep, weight = site.cut.mlp.fc1.out_features, site.full.mlp.fc2.weight.double()
    if keep == weight.shape[1]:
        return torch.arange(keep, device=weight.device)
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
