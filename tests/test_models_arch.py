from __future__ import annotations

import dataclasses
import json

import pytest
from toy_ccts import CCT_ARCH
from toy_choosers import choosing_arch
from toy_dinos import toy_dino
from toy_swins import SWIN
from toy_vits import ARCH, DIMS, toy_arch

from edgevit.errors import WeightsError
from edgevit.models.arch import arch_from_json, arch_to_json
from edgevit.plan import Choice, PerImage


@pytest.mark.parametrize(
    "arch",
    [
        ARCH,
        SWIN,
        CCT_ARCH,
        toy_dino().arch,
        choosing_arch(inputs=9),
        choosing_arch(how=PerImage(3, "magnitude")),
        toy_arch("class+distillation", 2),
        dataclasses.replace(toy_arch("mean"), norm="none"),
        dataclasses.replace(
            ARCH, choice=Choice("cells"), blocks=(dataclasses.replace(DIMS, choice=Choice("drop", "knn")),)
        ),
    ],
)
def test_arch_survives_json(arch: object) -> None:
    assert arch_from_json(json.loads(json.dumps(arch_to_json(arch))), "arch.json") == arch  # type: ignore[arg-type]


def test_arch_counts_its_tokens() -> None:
    arch = dataclasses.replace(ARCH, image=(1, 8, 32), patch=(2, 8), prefix=3)
    assert (arch.patches, arch.tokens) == (16, 19)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 1}, "x.json: expected an edgevit arch of schema 2, got 1. Build the model again"),
        ({"colour": "red"}, "x.json: the arch is incomplete or has unknown keys: .*colour"),
        ({"blocks": [{"heads": 3}]}, "missing 7 required positional arguments: 'qk_dim'"),
    ],
)
def test_arch_that_cannot_be_read_says_where(change: dict[str, object], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        arch_from_json(arch_to_json(ARCH) | change, "x.json")


@pytest.mark.parametrize("key", ["patch", "blocks"])
def test_arch_without_a_key_names_it(key: str) -> None:
    data = arch_to_json(ARCH)
    del data[key]
    with pytest.raises(WeightsError, match=f"incomplete or has unknown keys: .*{key}"):
        arch_from_json(data, "x.json")
