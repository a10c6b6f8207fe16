"""Whether torch computes on this machine's GPU: one rule for trainings and for passes over images.

Passes over images are measured cuts, slimming and the KL of a whole plan. A GPU and a CPU give the same but
for rounding: TF32, which keeps 10 bits of a factor's mantissa, is off.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import nn

from edgevit.progress import Progress

CPU = torch.device("cpu")
Result = TypeVar("Result")
Model = TypeVar("Model", bound=nn.Module)


def torch_device() -> torch.device:
    """Return the CUDA GPU of this process where there is one, else the CPU, as Accelerate does for trainings.

    `CUDA_VISIBLE_DEVICES=` and `ACCELERATE_USE_CPU=1` switch a GPU off for both.
    """
    if not torch.cuda.is_available():
        return CPU
    from accelerate.utils import parse_flag_from_env

    return CPU if parse_flag_from_env("ACCELERATE_USE_CPU") else torch.device("cuda")


def on_gpu_or_cpu(work: Callable[[torch.device], Result], progress: Progress) -> Result:
    """Return what `work` computes on `torch_device`; on the CPU where the GPU's memory does not do.

    Args:
        work: computes on the device that it is given.
        progress: told when the work begins anew on the CPU.
    """
    device = torch_device()
    if device == CPU:
        return work(CPU)
    try:
        with _without_tf32():
            return work(device)
    except torch.OutOfMemoryError:
        pass  # the error holds the tensors of every frame that it went through, until here
    torch.cuda.empty_cache()
    task = "too little memory on the GPU: computing on the CPU"
    progress(task, 0, 1)
    found = work(CPU)
    progress(task, 1, 1)
    return found


def copied_to(model: Model, device: torch.device) -> Model:
    """Return a copy of `model` on another device; on the CPU, the model itself.

    Args:
        model: on the CPU, where it stays.
        device: the CPU or another.
    """
    return model if device == CPU else copy.deepcopy(model).to(device)


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """Keep products and convolutions in fp32; torch's default is TF32 for convolutions."""
    products = torch.backends.cuda.matmul
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch declares it nowhere
    before = products.fp32_precision, convolutions.fp32_precision
    products.fp32_precision = convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        products.fp32_precision, convolutions.fp32_precision = before
