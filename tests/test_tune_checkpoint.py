from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_training import checkpoint_in

from edgevit.errors import WeightsError
from edgevit.tune.checkpoint import Counters, read_checkpoint, write_checkpoint

STATE = {"weight.a": torch.tensor([1.5, -0.0]), "optimiser.step.a": torch.tensor(3.0)}


def test_checkpoint_comes_back_as_written(tmp_path: Path) -> None:
    counters = Counters(step=7, seconds=1.25, epoch_losses=(0.1, 1 / 3), loss_sum=2 / 3)
    write_checkpoint(checkpoint_in(tmp_path), "id", counters, STATE)
    found = read_checkpoint(checkpoint_in(tmp_path), "id")
    assert found is not None
    assert found[0] == counters
    assert found[1].keys() == STATE.keys()
    assert all(torch.equal(found[1][name], value) for name, value in STATE.items())
    assert [path.name for path in tmp_path.iterdir()] == ["training.safetensors"]


def test_checkpoint_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert read_checkpoint(checkpoint_in(tmp_path), "id") is None


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_checkpoint_cut_short_is_refused_with_a_remedy(tmp_path: Path, kept: int) -> None:
    file = checkpoint_in(tmp_path)
    write_checkpoint(file, "id", Counters(), STATE)
    file.path.write_bytes(file.path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"training\.safetensors: damaged .* to train from the start"):
        read_checkpoint(file, "id")


def test_checkpoint_of_another_identity_says_how_much_is_done(tmp_path: Path) -> None:
    write_checkpoint(checkpoint_in(tmp_path), "id", Counters(step=7), STATE)
    with pytest.raises(WeightsError, match=r"of another training: .* \(7 steps of it are done\)"):
        read_checkpoint(checkpoint_in(tmp_path), "other")
