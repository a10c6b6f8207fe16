from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from edgevit.errors import WeightsError
from edgevit.models.weights import check_weights, read_weights

State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    generator = torch.Generator().manual_seed(0)
    return {"head.weight": torch.randn(5, 4, generator=generator), "head.bias": torch.randn(5)}


def _equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_safetensors_are_read(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    assert _equal(read_weights(tmp_path / "w.safetensors"), state)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_pytorch_files_are_read(state: State, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    torch.save(state, path)
    assert _equal(read_weights(path), state)


@pytest.mark.parametrize("key", ["model", "state_dict", "model_ema", "state_dict_ema"])
def test_wrapped_state_dict_is_unwrapped(state: State, tmp_path: Path, key: str) -> None:
    torch.save({key: state, "epoch": 300}, tmp_path / "w.pth")
    assert _equal(read_weights(tmp_path / "w.pth"), state)


def test_averaged_weights_are_preferred(state: State, tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in state.items()}
    torch.save({"state_dict": other, "state_dict_ema": state}, tmp_path / "w.pth")
    assert _equal(read_weights(tmp_path / "w.pth"), state)


def test_prefix_of_data_parallel_training_is_removed(state: State, tmp_path: Path) -> None:
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save({"model": {"state_dict": wrapped}}, tmp_path / "w.pth")
    assert _equal(read_weights(tmp_path / "w.pth"), state)


def test_half_precision_weights_become_float32(state: State, tmp_path: Path) -> None:
    halves = {name: value.half() for name, value in state.items()} | {"steps": torch.tensor([7])}
    save_file(halves, tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors")
    assert found["head.weight"].dtype == torch.float32
    assert torch.equal(found["head.weight"], halves["head.weight"].float())
    assert found["steps"].dtype == torch.int64


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"weights .*gone.pth: no such file\. Paths in a recipe are rel"):
        read_weights(tmp_path / "gone.pth")


@pytest.mark.parametrize("keep", [0, 4, 40, 200])
def test_truncated_safetensors_are_refused_with_their_size(state: State, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=rf"w.safetensors \({keep} bytes\): not a whole safetensors file"):
        read_weights(path)


@pytest.mark.parametrize("keep", [0, 10, 500])
def test_truncated_pytorch_files_are_refused_with_their_size(state: State, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "w.pth"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=rf"w.pth \({keep} bytes\): not a whole PyTorch file"):
        read_weights(path)


def test_text_in_place_of_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_text("<!DOCTYPE html><html>Sign in to download</html>")
    with pytest.raises(WeightsError, match=r"w.pth"):
        read_weights(path)


class _Code:
    """What runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"head": _Code(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"the pickle holds more than tensors .* never runs code"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("what", [[1, 2], {"epoch": 3}, {}, torch.ones(3)])
def test_pytorch_file_without_a_state_dict_is_refused(tmp_path: Path, what: object) -> None:
    torch.save(what, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"expected a state dict .*, got (list|dict|Tensor)\. Save"):
        read_weights(tmp_path / "w.pth")


def test_weights_that_fit_pass(state: State) -> None:
    check_weights(state, {name: torch.zeros_like(value) for name, value in state.items()}, "w.pth", "toy")


def test_weights_of_another_model_name_tensors_and_shapes() -> None:
    found = {"a": torch.ones(2, 3), "b": torch.ones(1)}
    expected = {"a": torch.ones(2, 4), "c": torch.ones(1)}
    message = (
        "weights w.pth are not of model toy:\n"
        "  other shape (1): a: toy wants [2, 4], the file has [2, 3]\n"
        "  missing (1): c\n"
        "  unknown (1): b\n"
        "Name the model that these weights were trained with, or set model.options (img_size, num_classes, "
        "...)."
    )
    with pytest.raises(WeightsError, match=f"^{re.escape(message)}$"):
        check_weights(found, expected, "w.pth", "toy")


def test_long_lists_of_tensors_are_shortened() -> None:
    expected = {f"t{index}": torch.ones(1) for index in range(9)}
    with pytest.raises(WeightsError, match=r"missing \(9\): t0; t1; t2; t3; t4; t5 \.\.\.\n"):
        check_weights({}, expected, "w.pth", "toy")
