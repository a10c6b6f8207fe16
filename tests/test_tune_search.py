"""From a method's options to what it has to learn."""

from __future__ import annotations

import pytest

from edgevit.methods import EffiSelect, IntraHead, SearchSection
from edgevit.tune.gates import GateSearch
from edgevit.tune.row_gates import RowSearch
from edgevit.tune.search import search_of

KEYS = SearchSection(epochs=3, lr=2e-4, batch=8, smoothing=0.2, drop_path=0.1, precision="fp32")


@pytest.mark.parametrize(
    ("decides", "gates"),
    [
        ({"heads_drop": 0.3}, (True, False)),
        ({"hidden_drop": 0.5}, (False, True)),
        ({"macs": 0.6}, (True, True)),
    ],
)
def test_search_of_effiselect_has_gates_of_what_is_decided(
    decides: dict[str, float], gates: tuple[bool, bool]
) -> None:
    given = {"method": "effiselect", "train": "gates", "gate_lr": 0.02, "heads_weight": 0.5, "search": KEYS}
    search = search_of(EffiSelect.model_validate(given | decides))
    assert isinstance(search, GateSearch)
    assert (search.heads, search.hidden) == gates
    assert (search.freeze, search.gate_lr, search.heads_weight) == (True, 0.02, 0.5)
    assert (search.supervision.smoothing, search.supervision.drop_path) == (0.2, 0.1)
    training = search.supervision.training
    assert (training.epochs, training.lr, training.batch, training.precision) == (3, 2e-4, 8, "fp32")


def test_search_stays_the_same_for_another_share_or_budget() -> None:
    first, second = (
        search_of(IntraHead(method="intra-head", search=KEYS, macs=macs, align=align))
        for macs, align in ((0.5, 8), (0.6, 4))
    )
    assert isinstance(first, RowSearch)
    assert first == second
    other = search_of(IntraHead(method="intra-head", search=KEYS, macs=0.5, l1=0.1))
    assert other != first
