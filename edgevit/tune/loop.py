"""One training loop for every objective, on Accelerate: a CPU, a GPU, or many processes that share a batch.

An objective is a module whose `forward(*batch)` returns the mean loss of the batch's samples; those of its
parameters that require gradients are trained, in groups that it names, and it may change them after each step
(`objective.py`). So it holds the model, and a teacher or gates where it needs them, and the loop knows of
neither.

A step is a function of the state before it, the seed and its number: order, augmentation and learning rate
are computed from those, and torch's generators are seeded anew before each step. That is why a training that
goes on from a checkpoint ends with the weights of one that was not interrupted, to the last bit on the same
machine with the same number of threads and processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from edgevit.errors import TrainingError
from edgevit.progress import Progress, silent
from edgevit.training import Training
from edgevit.tune.checkpoint import CheckpointFile, Counters, read_checkpoint, write_checkpoint
from edgevit.tune.objective import Objective, ParameterGroup, check_groups
from edgevit.tune.precision import resolve_precision
from edgevit.tune.processes import on_all_processes
from edgevit.tune.schedule import learning_rate


class TrainingData(Protocol):
    """Samples by index."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def batch(self, epoch: int, chosen: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Return what the objective takes for the samples `chosen`; nothing else decides it."""
        ...


@dataclass(frozen=True)
class Trained:
    """What a training did."""

    steps: int
    seconds: float
    """Over all interruptions, without the steps that were lost to them."""
    epoch_losses: tuple[float, ...]
    """Mean loss of each epoch."""
    processes: int = 1
    """How many shared each batch."""
    scores: tuple[float, ...] = ()
    """Of each epoch on the samples that were held out; none where none were."""

    @property
    def best_epoch(self) -> int | None:
        """Return the epoch, counted from 1, whose weights are the result because they scored best."""
        return self.scores.index(max(self.scores)) + 1 if self.scores else None


def train_(
    objective: Objective,
    data: TrainingData,
    training: Training,
    checkpoint: CheckpointFile | None = None,
    progress: Progress = silent,
    held_out: TrainingData | None = None,
) -> Trained:
    """Train the parameters of `objective` that require gradients, in place; leave it in eval mode on the CPU.

    An epoch is a new order of all samples; those that do not fill its last batch are left out of it. The last
    weights are the result (or their moving average): none are chosen by a score, so none is flattered. With
    samples held out, it is those of the epoch that scores best on them, of equal ones the first.

    Args:
        objective: its `forward(*batch)` returns the mean loss of the batch's samples.
        data: the same in every process.
        training: the options.
        checkpoint: where the training is kept, and goes on from where it is there; None: nowhere.
        progress: called after each step.
        held_out: samples that `objective.judge` scores after every epoch; nothing is learnt from them.

    Raises:
        ValueError: groups that leave a parameter out.
        TrainingError: the loss or the gradient is not finite, and the last checkpoint is kept; or a batch has
            fewer samples than there are processes.
        WeightsError: the checkpoint is damaged or of another training.
        DiskFullError: no space left for a checkpoint.
    """
    with on_all_processes(train_, objective, data, training, checkpoint, silent, held_out):
        return _train(objective, data, training, checkpoint, progress, held_out)


def _train(
    objective: Objective,
    data: TrainingData,
    training: Training,
    checkpoint: CheckpointFile | None,
    progress: Progress,
    held_out: TrainingData | None,
) -> Trained:
    # Accelerate's own precision is a setting of the whole process that cannot change; ours is the recipe's.
    accelerator = Accelerator(mixed_precision="no")
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # the caller's random numbers stay its own
        run = _start(accelerator, objective, data, training, checkpoint, held_out)
        counters = run.restore()
        while counters.step < run.total:
            begin = time.perf_counter()
            loss = run.step(counters.step)
            _count(counters, loss, time.perf_counter() - begin, run.epoch_steps)
            if held_out is not None and counters.step % run.epoch_steps == 0:
                run.choose(counters)
            if counters.step % training.checkpoint_steps == 0:
                run.keep(counters)
            if run.accelerator.is_main_process:
                progress("training", counters.step, run.total)
        run.finish()
    return Trained(
        counters.step, counters.seconds, counters.epoch_losses, accelerator.num_processes, counters.scores
    )


def _count(counters: Counters, loss: float, seconds: float, epoch_steps: int) -> None:
    counters.step += 1
    counters.seconds += seconds
    counters.loss_sum += loss
    if counters.step % epoch_steps == 0:
        counters.epoch_losses += (counters.loss_sum / epoch_steps,)
        counters.loss_sum = 0.0


def _start(
    accelerator: Accelerator,
    objective: Objective,
    data: TrainingData,
    training: Training,
    checkpoint: CheckpointFile | None,
    held_out: TrainingData | None,
) -> _Run:
    batch = min(training.batch, len(data))
    if batch < accelerator.num_processes:
        raise TrainingError(
            f"training: expected a sample for each of {accelerator.num_processes} processes, got a batch of"
            f" {batch}. Launch fewer processes, or make the batch larger."
        )
    groups = check_groups(objective)
    trained = dict(objective.named_parameters())
    names = [name for group in groups for name in group.names]
    optimiser = torch.optim.AdamW(
        [
            {
                "params": [trained[name] for name in group.names],
                "weight_decay": training.weight_decay * group.decayed,
            }
            for group in groups
        ],
        lr=training.lr,
    )
    for value in objective.parameters():
        if not value.numel():
            value.requires_grad_(False)  # several processes would wait for its gradient
    wrapped = accelerator.prepare(objective.train())
    average = None
    if training.ema is not None:
        average = {name: trained[name].detach().clone() for name in names}
    return _Run(
        accelerator,
        objective,
        wrapped,
        optimiser,
        groups,
        average,
        data,
        training,
        batch,
        checkpoint,
        held_out,
    )


@dataclass(frozen=True)
class _Run:
    """Everything that the steps of one training share."""

    accelerator: Accelerator
    objective: Objective
    wrapped: nn.Module
    """The objective as Accelerate calls it, on its device and in step with the other processes."""
    optimiser: torch.optim.Optimizer
    groups: tuple[ParameterGroup, ...]
    """Of the trained parameters, as the optimiser has them."""
    average: dict[str, Tensor] | None
    data: TrainingData
    training: Training
    batch: int
    checkpoint: CheckpointFile | None
    held_out: TrainingData | None
    best: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    """The result of the epoch that has scored best so far; empty where none has."""

    @property
    def names(self) -> list[str]:
        """List the trained parameters in the optimiser's order."""
        return [name for group in self.groups for name in group.names]

    @property
    def epoch_steps(self) -> int:
        return len(self.data) // self.batch

    @property
    def total(self) -> int:
        return self.training.epochs * self.epoch_steps

    def step(self, step: int) -> float:
        """Do one step and return the mean loss of its batch, over all processes."""
        seed, processes = self.training.seed, self.accelerator.num_processes
        epoch, place = divmod(step, self.epoch_steps)
        order = np.random.default_rng([seed, epoch]).permutation(len(self.data))
        own = order[place * self.batch : (place + 1) * self.batch][
            self.accelerator.process_index :: processes
        ]
        numbers = np.random.SeedSequence([seed, step, self.accelerator.process_index])
        torch.manual_seed(int(numbers.generate_state(1)[0]))
        device = self.accelerator.device
        inputs = [tensor.to(device) for tensor in self.data.batch(epoch, own)]
        with self._autocast():
            loss = self.wrapped(*inputs)
        share = loss * (len(own) / self.batch)  # processes may have one sample more or less
        value = float(self.accelerator.reduce(share.detach().float(), "sum"))
        self._require_finite("loss", value, step)
        self.accelerator.backward(share * processes)  # gradients are averaged over the processes
        self._update(step)
        return value

    def _update(self, step: int) -> None:
        parameters = self._parameters()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), self.training.clip_norm)
        self._require_finite("gradient", float(norm), step)
        lr = learning_rate(self.training, step, self.total)
        for group, own in zip(self.optimiser.param_groups, self.groups, strict=True):
            group["lr"] = lr * own.rate
        self.optimiser.step()
        self.optimiser.zero_grad()
        with torch.no_grad():
            self.objective.after_step(lr)
        if self.average is not None and self.training.ema is not None:
            for name, average in self.average.items():
                average.lerp_(parameters[name].detach(), 1 - self.training.ema)

    def choose(self, counters: Counters) -> None:
        """Score the weights as they are, and remember them if they score better than all before."""
        present = {name: value.detach().clone() for name, value in self._weights().items()}
        result = present | {name: value.clone() for name, value in (self.average or {}).items()}
        self.objective.load_state_dict(result, strict=False)
        score = self._score()
        self.objective.load_state_dict(present, strict=False)
        if not counters.scores or score > max(counters.scores):
            self.best.update(result)
        counters.scores += (score,)

    def _score(self) -> float:
        """Return the mean score of the samples that were held out, each judged by one process."""
        assert self.held_out is not None
        own = np.arange(len(self.held_out))[self.accelerator.process_index :: self.accelerator.num_processes]
        device, total = self.accelerator.device, torch.zeros((), dtype=torch.float64)
        self.objective.eval()
        for start in range(0, len(own), self.batch):
            inputs = [tensor.to(device) for tensor in self.held_out.batch(0, own[start : start + self.batch])]
            with torch.no_grad(), self._autocast():
                total += self.objective.judge(*inputs).double().sum().cpu()
        self.objective.train()
        return float(self.accelerator.reduce(total.to(device), "sum")) / len(self.held_out)

    def _autocast(self) -> torch.autocast:
        bf16 = resolve_precision(self.training.precision) == "bf16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=bf16)

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if math.isfinite(value):
            return
        kept = self.checkpoint.path if self.checkpoint and self.checkpoint.path.exists() else None
        left = f"The last good checkpoint is {kept}" if kept else "No checkpoint had been written"
        raise TrainingError(
            f"training: the {what} is {value} in step {step + 1} of {self.total} (epoch"
            f" {step // self.epoch_steps + 1} of {self.training.epochs}). {left}. Use a learning rate below"
            f' {self.training.lr:g}, or precision "fp32".'
        )

    def _parameters(self) -> dict[str, nn.Parameter]:
        found = dict(self.objective.named_parameters())
        return {name: found[name] for name in self.names}

    def _weights(self) -> dict[str, Tensor]:
        """Return what training changes of the objective: parameters and buffers."""
        frozen = {name for name, value in self.objective.named_parameters() if not value.requires_grad}
        return {name: value for name, value in self.objective.state_dict().items() if name not in frozen}

    def _state(self) -> dict[str, Tensor]:
        moments = self.optimiser.state_dict()["state"]
        state = {f"weight.{name}": value for name, value in self._weights().items()}
        for index, name in enumerate(self.names):
            state |= {f"optimiser.{key}.{name}": value for key, value in moments[index].items()}
        state |= {f"average.{name}": value for name, value in (self.average or {}).items()}
        return state | {f"best.{name}": value for name, value in self.best.items()}

    def _identity(self) -> str:
        """Hash what a checkpoint must have in common with this training."""
        options = dataclasses.asdict(self.training) | {"checkpoint_steps": None}
        shapes = {name: list(value.shape) for name, value in self._weights().items()}
        belongs_to = self.checkpoint.belongs_to if self.checkpoint else ""
        groups = [dataclasses.asdict(group) for group in self.groups]
        samples = len(self.data), 0 if self.held_out is None else len(self.held_out)
        text = json.dumps([options, shapes, groups, samples, belongs_to], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def keep(self, counters: Counters) -> None:
        """Write the checkpoint."""
        if self.checkpoint is not None and self.accelerator.is_main_process:
            write_checkpoint(self.checkpoint, self._identity(), counters, self._state())

    def restore(self) -> Counters:
        """Load the checkpoint where there is one, and return how far the training is."""
        found = None if self.checkpoint is None else read_checkpoint(self.checkpoint, self._identity())
        if found is None:
            return Counters()
        counters, state = found
        weights = {name: state[f"weight.{name}"] for name in self._weights()}
        self.objective.load_state_dict(weights, strict=False)  # what is frozen is there already
        moments = {
            index: {key: state[f"optimiser.{key}.{name}"] for key in _MOMENTS}
            for index, name in enumerate(self.names)
        }
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        for name, average in (self.average or {}).items():
            average.copy_(state[f"average.{name}"])
        if counters.scores:
            self.best.update({name: state[f"best.{name}"] for name in weights})
        return counters

    def finish(self) -> None:
        """Put the result in place (the best, the average or the last), and go back to the CPU."""
        if self.best:
            self.objective.load_state_dict(self.best, strict=False)
        elif self.average is not None:
            with torch.no_grad():
                for name, parameter in self._parameters().items():
                    parameter.copy_(self.average[name])
        self.accelerator.wait_for_everyone()
        self.objective.eval().cpu()


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of each parameter
