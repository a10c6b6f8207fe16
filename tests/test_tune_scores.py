from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgevit.errors import WeightsError
from edgevit.tune.scores import load_scores, save_scores


def test_scores_come_back_as_written(tmp_path: Path) -> None:
    scores = {"blocks.0.heads": torch.rand(3), "blocks.0.qk": torch.rand(8, 3).T}
    save_scores(scores, tmp_path / "scores.safetensors")
    found = load_scores(tmp_path / "scores.safetensors")
    assert found.keys() == scores.keys()
    assert all(torch.equal(found[name], value) for name, value in scores.items())


@pytest.mark.parametrize("content", [None, b"", b"\x10\0\0\0\0\0\0\0{"])
def test_scores_that_cannot_be_read_say_what_to_do(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "scores.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"scores .*scores\.safetensors: cannot be read .*Build again\."):
        load_scores(path)
