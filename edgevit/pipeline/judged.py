"""How far a slim model's answers are from the dense one's, on a few images; no labels."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from edgevit.gpu import copied_to, on_gpu_or_cpu
from edgevit.images import Images
from edgevit.pipeline.keys import code_sha256, images_key, library_versions
from edgevit.pipeline.models import Saved
from edgevit.pipeline.stages import Stages
from edgevit.prune.sensitivity import joint_kl
from edgevit.slim.stream import BATCH
from edgevit.store import JSON

JUDGED = 256
"""Images on which a whole plan is judged, at most."""
_FILE = "kl.json"


def measured_kl(stages: Stages, dense: Saved, slim: Saved, images: Images) -> float:
    """Return KL(dense || slim) of the whole plan on at most `JUDGED` images, spread over all of them."""
    key: dict[str, JSON] = {
        "dense": dense.sha256,
        "slim": slim.sha256,
        "images": images_key(images),
        "judged": JUDGED,
        "versions": library_versions(("torch", "numpy")),
        "code": code_sha256("prune/sensitivity", "pipeline/judged", "models"),
    }

    def make(folder: Path) -> None:
        def judge(device: torch.device) -> float:
            judged = (torch.from_numpy(batch).to(device) for batch in images.spread(JUDGED, BATCH))
            whole, cut = (copied_to(saved.loaded.model, device) for saved in (dense, slim))
            return joint_kl(whole, cut, judged)

        found = on_gpu_or_cpu(judge, stages.progress)
        (folder / _FILE).write_text(json.dumps({"kl": found}) + "\n", encoding="utf-8")

    folder = stages.run("judge", key, make)
    return float(json.loads((folder / _FILE).read_text(encoding="utf-8"))["kl"])
