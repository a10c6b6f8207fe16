"""The fp16 graph of a model: made by what ranges on calibration images allow, compared with the fp32 one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edgevit.disk import sha256_tree
from edgevit.export.half import to_half
from edgevit.export.links import onnx_link
from edgevit.export.parity import check_parity
from edgevit.images import Images
from edgevit.pipeline.artefacts import limits_of
from edgevit.pipeline.graphs import PARITY_FILE, Form, Graph, Probe, parity_facts
from edgevit.pipeline.int8 import spread, thinned
from edgevit.pipeline.keys import code_sha256, images_key, library_versions
from edgevit.pipeline.stages import Stages
from edgevit.store import JSON

_RANGE_IMAGES = 64
"""Calibration images, at most, that ranges are read on; the limit they decide over leaves a factor of 4."""
_FP16 = Path("onnx") / "fp16.onnx"


@dataclass(frozen=True)
class Halving:
    """Which model's graph is wanted, by which images, and on what it is compared."""

    side: str
    form: Form
    images: Images
    probe: Probe


def make_half(stages: Stages, fp32: Graph, asked: Halving) -> tuple[Graph, dict[str, float]]:
    """Make the fp16 graph; return it, and what the report says of it beside the chain of custody.

    Raises:
        ExportError: a layer computes NaN or infinity; it is named.
        ParityError: it does not compute what the fp32 graph does; the first diverging block is named.
    """
    key: dict[str, JSON] = {
        "onnx": fp32.sha256,
        "images": images_key(asked.images),
        "probe": asked.probe.key,
        "versions": library_versions(("onnx", "onnxruntime")),
        "code": code_sha256("export", "pipeline/half", "pipeline/artefacts"),
    }

    def make(folder: Path) -> None:
        (folder / _FP16).parent.mkdir()
        images = thinned(spread(asked.images), _RANGE_IMAGES)
        kept = to_half(fp32.path, images, folder / _FP16)
        links = onnx_link(fp32.path), onnx_link(folder / _FP16)
        batches = asked.probe.batches(asked.form.batch)
        found = check_parity(*links, batches, limits_of(fp32.arch, "fp16"), fp32.arch)
        facts = parity_facts(f"{asked.side}_fp32_fp16", found) | {
            f"{asked.side}_fp32_nodes_by_range": len(kept.by_range),
            f"{asked.side}_fp32_nodes_by_choice": len(kept.by_choice),
        }
        (folder / PARITY_FILE).write_text(json.dumps(facts))

    folder = stages.run("halve", key, make, of=asked.side)
    facts: dict[str, float] = json.loads((folder / PARITY_FILE).read_text())
    return Graph(folder / _FP16, sha256_tree(folder / "onnx"), fp32.arch), facts
