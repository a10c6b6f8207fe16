"""Markers, the count of what was skipped and why, and the toy model that most tests use."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Tests use no network; the Hugging Face libraries read these when they are first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

FAKE_DRIVER = ("-shared", "-fPIC", "-w", str(Path(__file__).parent / "fake_cuda.c"))
"""What a C compiler makes the fake CUDA driver of."""

# Waking a second thread takes longer than the work on tensors this small. Processes that tests start inherit
# it: float sums, and so the weights of a build, are equal to the last bit only for one number of threads.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow")


def _why_not_shared_data(config: pytest.Config) -> str | None:
    return None if SHARED_DATA.is_dir() else "no ../shared/data beside the checkout"


def _why_not_slow(config: pytest.Config) -> str | None:
    wanted = config.getoption("--slow") or os.environ.get("EDGEVIT_SLOW") == "1"
    return None if wanted else "slow: run with --slow or EDGEVIT_SLOW=1"


def _why_not_gpu(config: pytest.Config) -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def _why_not_tensorrt(config: pytest.Config) -> str | None:
    from real_tensorrt import USED, is_fetched

    missing = [version for version in USED if not is_fetched(version)]
    return f"TensorRT {', '.join(missing)} not here: python tools/tensorrt/fetch.py" if missing else None


SKIPS: dict[str, Callable[[pytest.Config], str | None]] = {
    "shared_data": _why_not_shared_data,
    "slow": _why_not_slow,
    "gpu": _why_not_gpu,
    "tensorrt": _why_not_tensorrt,
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker, why_not in SKIPS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        reason = why_not(config) if marked else None
        if reason is not None:
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


def _skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):  # (file, line, "Skipped: reason")
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = Counter(_skip_reason(report) for report in terminalreporter.getreports("skipped"))
    for reason, count in counts.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason}")


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Compile the fake CUDA driver, connect it with the fake TensorRT, and return its path."""
    import ctypes
    import shutil
    import subprocess

    import fake_tensorrt

    if shutil.which("cc") is None:
        pytest.skip("no C compiler for the fake driver")
    out = tmp_path_factory.mktemp("driver") / "libcuda.so"
    subprocess.run(["cc", *FAKE_DRIVER, "-o", str(out)], check=True)
    ctypes.CDLL(str(out)).tell(fake_tensorrt.HEAR)
    return str(out)


@pytest.fixture
def fake_gpu(fake_driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engine.py and the backend find the fake driver and the fake TensorRT."""
    import fake_tensorrt

    from edgevit import engine
    from edgevit.backends import tensorrt

    real = engine.Cuda
    for module in (engine, tensorrt):
        monkeypatch.setattr(module, "import_tensorrt", lambda runtime: fake_tensorrt)
        monkeypatch.setattr(module, "Cuda", lambda: real(fake_driver))


@pytest.fixture
def shared_data() -> Path:
    """Return the folder of real weights and images; for tests marked `shared_data`."""
    return SHARED_DATA


@pytest.fixture
def toy_vit() -> VisionTransformer:
    """Return a seeded timm ViT in eval mode: depth 2, D 48, H 3, MLP 192, image 32, patch 8, 10 classes.

    Every bias, norm and token is random and not zero: timm starts them at 0 or 1, and at those values a
    forgotten bias or a swapped norm changes nothing that a test could see.
    """
    import torch
    from timm.models.vision_transformer import VisionTransformer

    generator = torch.Generator().manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm_scale = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_norm_scale else 0.1 * noise)
    return model.eval()
