"""Target files."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevit.errors import RecipeError
from edgevit.plan import KINDS
from edgevit.target import DEFAULT_TARGET, Rules, load_target


def test_load_target_default_is_shipped_and_named_after_its_file(tmp_path: Path) -> None:
    target = load_target(DEFAULT_TARGET, tmp_path)
    assert (target.name, target.runtime, target.device) == ("openvino-cpu", "openvino", "cpu")
    assert (target.precisions, target.threads, target.batch, target.opset) == (("fp32", "bf16"), 2, 1, 18)


def test_load_target_own_file_is_read_relative_to_the_folder(tmp_path: Path) -> None:
    text = (
        'name = "line-7"\nruntime = "onnxruntime"\nthreads = 0\n[rules]\nhidden = 32\n[timing]\nseconds = 2'
    )
    (tmp_path / "board.toml").write_text(text)
    target = load_target("board.toml", tmp_path)
    assert target.name == "line-7"
    assert target.rules == Rules(hidden=32)
    assert target.timing.seconds == 2.0


def test_load_target_finds_the_timing_cache_beside_its_file(tmp_path: Path) -> None:
    text = 'runtime = "tensorrt"\ndevice = "gpu"\n[tensorrt]\ntiming_cache = "orin.cache"\npinned = true\n'
    (tmp_path / "boards").mkdir()
    (tmp_path / "boards" / "ours.toml").write_text(text)
    target = load_target("boards/ours.toml", tmp_path)
    assert target.tensorrt.timing_cache == str(tmp_path / "boards" / "orin.cache")


def test_rules_have_the_names_of_the_plan() -> None:
    assert tuple(Rules.model_fields) == KINDS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            'runtime = "openvin"',
            r'runtime: expected "onnxruntime", "openvino", "tensorrt" or "tensorrt-rtx", got "openvin"',
        ),
        (
            'precisions = ["fp32", "fp33"]',
            r'precisions\[1\]: expected "fp32", "fp16", "bf16", "int8" or "int8-bf16", got "fp33"',
        ),
        ("precisions = []", r"precisions: expected a list of at least 1, got \[\]"),
        ('precisions = ["fp32", "fp32"]', r"precisions: expected each precision once, got fp32, fp32"),
        ("batch = 0", r"batch: expected a number >= 1, got 0"),
        ("threads = -1", r"threads: expected a number >= 0, got -1"),
        ("opset = 12", r"opset: expected a number >= 13, got 12"),
        ("rules = { head = 2 }", r'rules\.head: unknown key\. Did you mean "heads"\?'),
        (
            'runtime = "tensorrt"\ndevice = "cpu"',
            r'device: expected "gpu" \(of this machine\) or "board" \(by a build kit\), got "cpu"',
        ),
        (
            'runtime = "tensorrt"\ndevice = "board"',
            r'tensorrt\.versions: expected the versions that the board has, such as \["8\.6", "10\.3"\]',
        ),
        (
            'runtime = "tensorrt"\ndevice = "gpu"\ntensorrt = { pinned = true }',
            r"tensorrt\.pinned: expected timing_cache beside it, the file to take the times from",
        ),
        (
            "tensorrt = { workspace_mb = 1 }",
            r'tensorrt: expected only beside runtime = "tensorrt" or "tensorrt-rtx", got openvino',
        ),
        (
            "timing = { min_samples = 3000 }",
            r"timing\.max_samples: expected at least min_samples = 3000, got 2000",
        ),
        ("timing = { seconds = inf }", r"timing\.seconds: expected a finite number, got inf"),
    ],
)
def test_load_target_bad_value_names_the_key(tmp_path: Path, line: str, message: str) -> None:
    runtime = "" if line.startswith("runtime") else 'runtime = "openvino"\n'
    (tmp_path / "board.toml").write_text(runtime + line)
    with pytest.raises(RecipeError, match=message):
        load_target("board.toml", tmp_path)


@pytest.mark.parametrize(
    ("dims", "tokens", "one_kernel"),
    [((32, 32), 197, True), ((32, 16), 197, False), ((48, 48), 197, False), ((32, 32), 577, False)],
)
def test_fused_attention_takes_its_dims_alone(
    tmp_path: Path, dims: tuple[int, int], tokens: int, *, one_kernel: bool
) -> None:
    rule = 'precisions = ["int8"]\ndims = [16, 32, 64]\nequal_dims = true\nmax_tokens = 512\n'
    (tmp_path / "board.toml").write_text(f'runtime = "onnxruntime"\n[[fused_attention]]\n{rule}')
    (found,) = load_target("board.toml", tmp_path).fused_attention
    assert found.takes(*dims, tokens) is one_kernel


def test_shipped_gpus_of_compute_capability_7_5_or_later_name_the_attention_they_fuse(tmp_path: Path) -> None:
    for name in ("jetson-orin-nano", "jetson-agx-orin", "jetson-thor", "nvidia-gpu", "nvidia-rtx"):
        half, *integer = load_target(name, tmp_path).fused_attention
        assert half.precisions == ("fp16", "bf16")
        assert half.dims == tuple(range(16, 257, 8))
        assert [(rule.dims, rule.max_tokens) for rule in integer] == (
            [] if "orin" in name else [((16, 32, 64), 512)]
        )
