from __future__ import annotations

import pytest
import torch

from edgevit.models.arch import Tokenizer
from edgevit.models.tokenizer import ConvTokenizer


@pytest.mark.parametrize(
    "form", [Tokenizer((), 3, 1, 1), Tokenizer((5,), 7, 2, 3), Tokenizer((5, 6), 3, 1, 0)]
)
@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_tokenizer_makes_the_grid_that_its_form_promises(form: Tokenizer, size: tuple[int, int]) -> None:
    made = ConvTokenizer(form, channels=2, embed=8)(torch.zeros(1, 2, *size))
    assert made.shape == (1, 8, *form.grid(size))


def test_tokenizer_convolves_rectifies_and_pools() -> None:
    layer = ConvTokenizer(Tokenizer((), 1, 1, 0), channels=1, embed=1)
    with torch.no_grad():
        layer.convs[0].weight.fill_(-1.0)
    image = torch.tensor([[1.0, -2.0], [-3.0, 4.0]]).view(1, 1, 2, 2)
    assert layer(image).tolist() == [[[[3.0]]]]
