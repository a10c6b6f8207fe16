from __future__ import annotations

import pytest
import torch

from edgevit.models.arch import Window
from edgevit.models.windows import Windows, shift_mask, window_order

WINDOWS = {
    "rows of windows": Window((2, 2), (0, 0), (4, 6)),
    "shifted": Window((2, 3), (1, 1), (4, 6)),
    "shifted one way": Window((2, 3), (0, 1), (4, 6)),
    "one window": Window((4, 6), (0, 0), (4, 6)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_that_are_split_and_joined_are_the_grid(name: str) -> None:
    windows = Windows(WINDOWS[name])
    x = torch.randn(3, 24, 5, generator=torch.Generator().manual_seed(0))
    cut = windows.split(x)
    assert cut.shape == (3 * WINDOWS[name].count, WINDOWS[name].area, 5)
    assert torch.equal(windows.join(cut), x)


def test_split_of_a_shifted_grid_is_a_roll_and_a_cut() -> None:
    window = Window((2, 3), (1, 2), (4, 6))
    grid = torch.arange(24).view(4, 6)
    rolled = torch.roll(grid, (-1, -2), (0, 1))
    expected = torch.stack([rolled[i : i + 2, j : j + 3].flatten() for i in (0, 2) for j in (0, 3)])
    assert torch.equal(window_order(window).view(4, 6), expected)
    assert torch.equal(Windows(window).split(grid.view(1, 24, 1)).squeeze(-1), expected)


def test_one_window_needs_no_permutation_and_no_mask() -> None:
    windows = Windows(WINDOWS["one window"])
    assert (windows.order, windows.back, windows.mask) == (None, None, None)


@pytest.mark.parametrize("name", WINDOWS)
def test_shift_mask_blocks_exactly_what_was_not_near_before_the_shift(name: str) -> None:
    """Two tokens of a window see each other when their distance on the grid is that inside the window."""
    window = WINDOWS[name]
    (height, width), (rows, columns) = window.size, window.grid
    mask, order = shift_mask(window), window_order(window).view(window.count, window.area)
    assert mask.shape == (window.count, 1, window.area, window.area)
    for index in range(window.count):
        for i in range(window.area):
            for j in range(window.area):
                here, there = int(order[index, i]), int(order[index, j])
                near = (here // columns - there // columns, here % columns - there % columns) == (
                    i // width - j // width,
                    i % width - j % width,
                )
                assert (float(mask[index, 0, i, j]) == 0) == near
    assert rows % height == 0


def test_windows_have_constants_and_no_state() -> None:
    windows = Windows(WINDOWS["shifted"])
    assert windows.state_dict() == {}
    assert {name for name, _ in windows.named_buffers()} == {"order", "back", "mask"}
