from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from toy_training import (
    SAMPLES,
    TRAINING,
    Noise,
    Regression,
    SparseRegression,
    checkpoint_in,
    stop_at,
    weights,
)

from edgevit.errors import TrainingError, WeightsError
from edgevit.training import Training
from edgevit.tune.loop import Trained, train_
from edgevit.tune.objective import Objective, ParameterGroup

STEPS = 16


def trained_weights(
    training: Training = TRAINING, kind: type[Regression] = Regression
) -> tuple[dict[str, Tensor], Trained]:
    """Return the weights of a training that nothing interrupts."""
    objective = kind()
    return_value = train_(objective, Noise(), training)
    return weights(objective), return_value


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_train_lowers_the_loss_and_leaves_frozen_weights() -> None:
    objective = Regression(dropout=0.0)
    before = weights(objective)
    found = train_(objective, Noise(), dataclasses.replace(TRAINING, epochs=20, lr=0.1))
    assert found.epoch_losses[-1] < 0.7 * found.epoch_losses[0]
    assert (found.steps, len(found.epoch_losses)) == (20 * (SAMPLES // 5), 20)
    assert torch.equal(objective.frozen.weight, before["frozen.weight"])
    assert not torch.equal(objective.trained.weight, before["trained.weight"])
    assert not objective.training


def test_train_twice_gives_the_same_weights_whatever_was_drawn_before() -> None:
    first, _ = trained_weights()
    torch.rand(3)
    assert equal(first, trained_weights()[0])


def test_train_other_seed_gives_other_weights() -> None:
    other, _ = trained_weights(dataclasses.replace(TRAINING, seed=1))
    assert not equal(trained_weights()[0], other)


def test_train_leaves_the_callers_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    objective = Regression()
    torch.manual_seed(3)
    train_(objective, Noise(), TRAINING)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("step", [2, 3, 6, 7, 15])
@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("kind", [Regression, SparseRegression])
def test_train_interrupted_within_an_epoch_ends_with_the_same_bits(
    tmp_path: Path, step: int, ema: float | None, kind: type[Regression]
) -> None:
    training = dataclasses.replace(TRAINING, ema=ema)
    expected, whole = trained_weights(training, kind)
    with pytest.raises(KeyboardInterrupt):
        train_(kind(), Noise(), training, checkpoint_in(tmp_path), stop_at(step))
    objective, steps = kind(), []
    found = train_(
        objective, Noise(), training, checkpoint_in(tmp_path), lambda _, done, total: steps.append(done)
    )
    assert steps == list(range(step // 3 * 3 + 1, STEPS + 1))
    assert equal(weights(objective), expected)
    assert found.epoch_losses == whole.epoch_losses


def test_train_step_after_each_step_makes_true_zeros() -> None:
    found, _ = trained_weights(kind=SparseRegression)
    plain, _ = trained_weights()
    assert (found["trained.weight"] == 0).any()
    assert not (plain["trained.weight"] == 0).any()


def test_train_group_of_rate_zero_stays() -> None:
    class HalfFrozen(Regression):
        def groups(self) -> tuple[ParameterGroup, ...]:
            return ParameterGroup(("trained.weight",)), ParameterGroup(("trained.bias",), rate=0.0)

    objective = HalfFrozen()
    before = weights(objective)
    train_(objective, Noise(), TRAINING)
    assert torch.equal(objective.trained.bias, before["trained.bias"])
    assert not torch.equal(objective.trained.weight, before["trained.weight"])


def test_train_finished_checkpoint_is_loaded_not_trained_on(tmp_path: Path) -> None:
    training = dataclasses.replace(TRAINING, checkpoint_steps=STEPS)
    train_(Regression(), Noise(), training, checkpoint_in(tmp_path))
    objective = Regression()
    found = train_(objective, Noise(), training, checkpoint_in(tmp_path), stop_at(1))
    assert found.steps == STEPS
    assert equal(weights(objective), trained_weights(training)[0])


def test_train_average_lies_between_start_and_last_weights() -> None:
    start = weights(Regression())["trained.weight"]
    last = trained_weights(dataclasses.replace(TRAINING, warmup=0.0))[0]["trained.weight"]
    average = trained_weights(dataclasses.replace(TRAINING, warmup=0.0, ema=0.9))[0]["trained.weight"]
    assert 0 < (average - start).norm() < (last - start).norm()


def test_train_loss_that_is_no_number_names_step_and_checkpoint(tmp_path: Path) -> None:
    file = checkpoint_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_(Regression(), Noise(), TRAINING, file, stop_at(3))
    good = file.path.read_bytes()
    with pytest.raises(
        TrainingError, match=r"the loss is nan in step [4-8] of 16 \(epoch [12] of 4\)"
    ) as caught:
        train_(Regression(), Noise(broken=4), TRAINING, file)
    assert str(file.path) in str(caught.value)
    assert "below 0.01" in str(caught.value)
    state = load_file(file.path)
    assert all(value.isfinite().all() for value in state.values())
    assert len(good) == file.path.stat().st_size


def test_train_gradient_that_is_not_finite_stops_before_the_weights_change() -> None:
    class RootAtZero(Objective):
        """Its loss at 0 is finite, its gradient is not."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, inputs: Tensor, wanted: Tensor) -> Tensor:
            return self.weight.sqrt().sum()

    objective = RootAtZero()
    with pytest.raises(TrainingError, match=r"the gradient is inf in step 1 of 16.*No checkpoint"):
        train_(objective, Noise(), TRAINING)
    assert objective.weight.item() == 0


@pytest.mark.parametrize(
    ("training", "belongs_to"),
    [
        (dataclasses.replace(TRAINING, lr=2e-2), "toy"),
        (dataclasses.replace(TRAINING, ema=0.9), "toy"),
        (TRAINING, "another model"),
    ],
)
def test_train_checkpoint_of_another_training_is_refused(
    tmp_path: Path, training: Training, belongs_to: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_(Regression(), Noise(), TRAINING, checkpoint_in(tmp_path), stop_at(4))
    with pytest.raises(WeightsError, match=r"training\.safetensors: of another training.*3 steps"):
        train_(Regression(), Noise(), training, checkpoint_in(tmp_path, belongs_to))


def test_train_checkpoint_of_other_groups_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_(Regression(), Noise(), TRAINING, checkpoint_in(tmp_path), stop_at(4))
    with pytest.raises(WeightsError, match="of another training"):
        train_(SparseRegression(), Noise(), TRAINING, checkpoint_in(tmp_path))


def test_train_other_checkpoint_steps_go_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_(Regression(), Noise(), TRAINING, checkpoint_in(tmp_path), stop_at(4))
    objective = Regression()
    train_(objective, Noise(), dataclasses.replace(TRAINING, checkpoint_steps=5), checkpoint_in(tmp_path))
    assert equal(weights(objective), trained_weights()[0])


def test_train_fewer_samples_than_a_batch_makes_one_batch_of_them() -> None:
    _, found = trained_weights(dataclasses.replace(TRAINING, batch=1000))
    assert found.steps == TRAINING.epochs


def test_train_bf16_computes_the_loss_in_other_digits() -> None:
    _, exact = trained_weights()
    _, rounded = trained_weights(dataclasses.replace(TRAINING, precision="bf16"))
    assert rounded.epoch_losses != exact.epoch_losses
    assert rounded.epoch_losses == pytest.approx(exact.epoch_losses, rel=0.05)


# Trains without dropout, whose draws differ between processes, and saves what the first process has.
MANY = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from toy_training import TRAINING, Noise, SparseRegression
from edgevit.tune.loop import train_
from accelerate import PartialState
objective = SparseRegression(dropout=0.0)
objective.empty = torch.nn.Parameter(torch.zeros(1, 0))  # as prefix tokens of a model that has none
found = train_(objective, Noise(), TRAINING)
state = PartialState()
if state.is_main_process:
    save_file(objective.state_dict(), sys.argv[1])
    Path(sys.argv[1] + ".losses").write_text(repr((state.num_processes, found.epoch_losses)))
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_train_on_two_processes_gives_what_one_gives(tmp_path: Path) -> None:
    """Five samples are three and two: the shares differ, and so the sums' rounding, by a few last digits."""
    script = tmp_path / "many.py"
    script.write_text(MANY)
    tests = str(Path(__file__).parent)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script,
         tmp_path / "two.safetensors"],
        check=True, timeout=120,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "ACCELERATE_USE_CPU": "true",
        },
    )  # fmt: skip
    objective = SparseRegression(dropout=0.0)
    alone = train_(objective, Noise(), TRAINING)
    processes, losses = eval((tmp_path / "two.safetensors.losses").read_text())
    assert processes == 2
    assert losses == pytest.approx(alone.epoch_losses, rel=1e-5)
    two, one = load_file(tmp_path / "two.safetensors"), objective.state_dict()
    assert all(torch.allclose(two[name], one[name], rtol=1e-4, atol=1e-5) for name in one)


class Judged(Regression):
    """Scores weights by how near the first of them is to a wanted number."""

    wanted = 0.0

    def judge(self, inputs: Tensor, targets: Tensor | None = None) -> Tensor:
        assert not self.training
        return -(self.trained.weight[0, 0] - self.wanted).abs().expand(len(inputs))


def judged(wanted: float) -> Judged:
    objective = Judged()
    objective.wanted = wanted
    return objective


def first_weights(ema: float | None) -> list[float]:
    """Return the first weight of the result behind each of the toy training's epochs."""
    found: list[float] = []

    class Spy(Judged):
        def judge(self, inputs: Tensor, targets: Tensor | None = None) -> Tensor:
            found.append(self.trained.weight.detach()[0, 0].item())
            return super().judge(inputs, targets)

    train_(Spy(), Noise(), dataclasses.replace(TRAINING, ema=ema), held_out=Noise())
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("best", [1, 2, 4])
def test_train_with_samples_held_out_ends_with_the_best_epoch(
    tmp_path: Path, best: int, ema: float | None
) -> None:
    training = dataclasses.replace(TRAINING, ema=ema)
    after = first_weights(ema)
    assert len(after) == 4
    objective = judged(after[best - 1])
    found = train_(objective, Noise(), training, held_out=Noise())
    assert (found.best_epoch, len(found.scores), found.scores[best - 1]) == (best, 4, 0.0)
    assert objective.trained.weight.detach()[0, 0].item() == after[best - 1]
    for step in (3, 7, 14):
        file = checkpoint_in(tmp_path / str(step))
        file.path.parent.mkdir()
        with pytest.raises(KeyboardInterrupt):
            train_(judged(after[best - 1]), Noise(), training, file, stop_at(step), Noise())
        again = judged(after[best - 1])
        assert train_(again, Noise(), training, file, held_out=Noise()).scores == found.scores
        assert equal(weights(again), weights(objective))


def test_train_with_samples_held_out_learns_nothing_from_them() -> None:
    plain, _ = trained_weights()
    objective = judged(1e9)  # never reached: the last epoch may still be the nearest
    found = train_(objective, Noise(), TRAINING, held_out=Noise())
    assert found.scores != ()
    if found.best_epoch == 4:
        assert equal(weights(objective), plain)


def test_train_checkpoint_without_held_out_samples_is_another_training(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_(Judged(), Noise(), TRAINING, checkpoint_in(tmp_path), stop_at(4))
    with pytest.raises(WeightsError, match="of another training"):
        train_(Judged(), Noise(), TRAINING, checkpoint_in(tmp_path), held_out=Noise())


def test_train_objective_that_cannot_judge_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="Regression has no score"):
        train_(Regression(), Noise(), TRAINING, held_out=Noise())
