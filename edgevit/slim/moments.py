"""Weighted first and second moments of rows that stream by, in float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Moments:
    """Streaming moments of rows x [..., n, p] and, if given, their cross moments with targets t [n, c].

    Leading dims (heads) are kept apart. Only sums are held: p*p, p*c and p numbers for each leading index.
    """

    def __init__(self) -> None:
        self._weight = torch.zeros((), dtype=torch.float64)
        self._x: Tensor = self._weight
        self._t: Tensor = self._weight
        self._xx: Tensor = self._weight
        self._xt: Tensor = self._weight
        self._rows: dict[str, Tensor] = {}

    def add(self, x: Tensor, weights: Tensor, targets: Tensor | None = None) -> None:
        """Add rows x [..., n, p] with weights [..., n] and, for unbatched rows, targets [n, c]."""
        root = weights.double().sqrt().unsqueeze(-1)  # [..., n, 1]
        scaled = self._scaled("x", x, root)
        self._weight = self._weight + root.square().sum(dim=(-2, -1))
        self._x = self._x + (scaled.mT @ root).squeeze(-1)
        self._xx = _square(scaled).add_(self._xx)
        if targets is not None:
            scaled_targets = self._scaled("t", targets, root)
            self._t = self._t + (scaled_targets.mT @ root).squeeze(-1)
            self._xt = (scaled.mT @ scaled_targets).add_(self._xt)

    def _scaled(self, name: str, rows: Tensor, root: Tensor) -> Tensor:
        """Return rows * root in float64, in memory that the next batch of this size uses again.

        Fresh memory for every batch, hundreds of megabytes, costs as much as the product itself.
        """
        kept = self._rows.get(name)
        if kept is None or kept.shape != rows.shape:
            kept = self._rows[name] = torch.empty_like(rows, dtype=torch.float64)
        return kept.copy_(rows).mul_(root)

    @property
    def mean(self) -> Tensor:
        """Return E[x], [..., p]."""
        return self._x / self._weight.unsqueeze(-1)

    @property
    def target_mean(self) -> Tensor:
        """Return E[t], [c]."""
        return self._t / self._weight

    @property
    def square(self) -> Tensor:
        """Return E[x xᵀ], [..., p, p]."""
        return self._xx / self._weight[..., None, None]

    @property
    def covariance(self) -> Tensor:
        """Return Cov(x), [..., p, p]."""
        mean = self.mean
        return self.square - mean.unsqueeze(-1) * mean.unsqueeze(-2)

    @property
    def cross_covariance(self) -> Tensor:
        """Return Cov(t, x), [c, p]."""
        return self._xt.T / self._weight - torch.outer(self.target_mean, self.mean)


def _square(x: Tensor) -> Tensor:
    """Return xᵀx of rows x [..., n, p]."""
    if x.dim() == 2 and x.device.type == "cpu":
        # numpy hands aᵀa to BLAS as a symmetric product, at half the work of a general one.
        rows: np.ndarray = x.numpy()
        return torch.from_numpy(rows.T @ rows)
    return x.mT @ x
