"""Patch merging: 2 x 2 neighbouring tokens of a grid become one wider token."""

from __future__ import annotations

from torch import Tensor, nn

from edgevit.models.narrow import make_norm


class Downsample(nn.Module):
    """Maps [B, N, D] to [B, N / 4, D']: four neighbours side by side, a norm, and a linear layer.

    Reference: Liu et al. 2021, Swin Transformer, arXiv:2103.14030, section 3.1.
    """

    def __init__(
        self, grid: tuple[int, int], widths: tuple[int, int], full: int | None, norm_eps: float
    ) -> None:
        """Make the layer.

        Args:
            grid: rows and columns of the tokens that come in; both even.
            widths: D and D'.
            full: D before channels were cut; None: all are there.
            norm_eps: of the norm.
        """
        super().__init__()
        self.grid = grid
        self.norm = make_norm(4 * widths[0], None if full is None else 4 * full, norm_eps)
        self.reduction = nn.Linear(4 * widths[0], widths[1], bias=full is not None)

    def forward(self, x: Tensor) -> Tensor:
        """Merge the tokens of a grid that stands row by row."""
        rows, columns = self.grid
        x = x.unflatten(1, (rows // 2, 2, columns // 2, 2))  # [B, rows / 2, 2, columns / 2, 2, D]
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)  # [B, N / 4, 4 * D]
        out: Tensor = self.reduction(self.norm(x))
        return out
