"""What the matrix products of a training are computed in on this machine."""

from __future__ import annotations

from typing import Literal

import torch

from edgevit.gpu import torch_device
from edgevit.training import TrainingPrecision

_CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16")  # x86, x86, Arm; without one, bf16 is emulated and slower


def resolve_precision(wanted: TrainingPrecision) -> Literal["fp32", "bf16"]:
    """Return `wanted`, with "auto" decided: bf16 where the device has instructions for it."""
    if wanted != "auto":
        return wanted
    if torch_device().type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    found = torch.cpu.get_capabilities()
    return "bf16" if any(found.get(name, False) for name in _CPU_BF16) else "fp32"
