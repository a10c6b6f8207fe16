"""A pretended GPU: tensors that say they are elsewhere, compute on the CPU, and refuse to meet the CPU's.

It shows on a machine without a GPU that code which follows a device never mixes it with the CPU, and what it
computes. It is no GPU: its kernels, memory, rounding and speed are the CPU's. It calls itself "meta", the one
device beside the CPU through which gradients pass in every build of torch; it has nothing else in common with
torch's own meta device. Like CUDA it takes numbers (tensors of no dims) from the CPU, and copies both ways;
unlike CUDA it refuses indices that lie on the CPU, each of which CUDA would have to fetch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

PRETENDED = torch.device("meta")
_COPIES = ("aten::_to_copy", "aten::copy_")


class MixedDevicesError(RuntimeError):
    """An operator got tensors of the pretended GPU and of the CPU."""


def _dispatch(
    _: object,
    func: Callable[..., object],
    types: Sequence[type],
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
) -> object:
    """Run an operator as torch hands it over, to a class of tensors or to a mode."""
    return _run(func, args, kwargs or {})


class _There(Tensor):
    """A tensor of the pretended GPU; `here` has its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> _There:
        made = Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=PRETENDED,
        )
        made.here = here
        return cast(_There, made)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"there {self.here!r}"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    __torch_dispatch__ = classmethod(_dispatch)


class _Factories(TorchDispatchMode):
    """Lets `torch.zeros(..., device=PRETENDED)` and `tensor.to(PRETENDED)` make tensors of that device."""

    __torch_dispatch__ = _dispatch


class _FromNumbers(TorchFunctionMode):
    """Lets `torch.tensor(numbers, device=PRETENDED)` do so: below Python, nothing could hold the numbers."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") == PRETENDED:
            return torch.tensor(*args, **{**kwargs, "device": None}).to(PRETENDED)
        return func(*args, **kwargs)


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Make the device usable."""
    with _Factories(), _FromNumbers():
        yield PRETENDED


def _run(func: Any, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, _There) for tensor in tensors)
    name = func._schema.name
    if there and name not in _COPIES:
        _refuse_strangers(name, tensors, leaves)
    asked = kwargs.get("device")
    to = there if asked is None else torch.device(cast(str, asked)) == PRETENDED
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    if func._schema.is_mutable:  # what was changed in place is what is returned
        return args[0]
    return tree_map(_there, found) if to else found


def _refuse_strangers(name: str, tensors: Sequence[Tensor], leaves: Sequence[object]) -> None:
    strangers = [tuple(t.shape) for t in tensors if not isinstance(t, _There) and t.dim() > 0]
    if strangers or any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise MixedDevicesError(f"{name}: a tensor {strangers} or a generator of the CPU, others on the GPU")


def _here(leaf: object) -> object:
    return leaf.here if isinstance(leaf, _There) else leaf


def _there(leaf: object) -> object:
    return _There(leaf) if isinstance(leaf, Tensor) else leaf
