"""One function a stage: its key (all that its output depends on) and how to make the output."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgevit.disk import sha256_file
from edgevit.images import Images, preprocess_to_json
from edgevit.models.load import ARCH_FILE, WEIGHTS_FILE, LoadedModel, load_model, load_saved, save_model
from edgevit.pipeline.inputs import Inputs
from edgevit.pipeline.keys import code_sha256, images_key, library_versions
from edgevit.plan import Plan, plan_text
from edgevit.progress import Progress
from edgevit.report.model import StageFacts
from edgevit.slim import SlimOptions, slim_model
from edgevit.store import JSON, Store

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Workshop:
    """The store of a build, who hears of progress, and what each stage has cost so far."""

    store: Store
    progress: Progress
    facts: list[StageFacts] = field(default_factory=list)

    def run(self, stage: str, key: Mapping[str, JSON], make: Callable[[Path], None], *, of: str = "") -> Path:
        """Run a stage through the store and note time, memory and whether the output was there.

        Args:
            stage: its name in the store.
            key: everything its output depends on.
            make: writes the output into a folder.
            of: what the stage was run for, in the report.
        """
        made = []
        begin = time.perf_counter()

        def noted(folder: Path) -> None:
            made.append(folder)
            make(folder)

        folder = self.store.run(stage, key, noted)
        self.note(f"{stage} {of}".rstrip(), begin, reused=not made)
        return folder

    def note(self, stage: str, begin: float, *, reused: bool) -> None:
        """Note what a stage cost that began at `begin` on `time.perf_counter`."""
        seconds = round(time.perf_counter() - begin, 3)
        self.facts.append(
            StageFacts(name=stage, seconds=seconds, reused=reused, peak_rss_bytes=_peak_rss_bytes())
        )


def _peak_rss_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class Saved:
    """A model in a stage's folder, loaded."""

    folder: Path
    loaded: LoadedModel
    sha256: str
    """Of its weights and dims."""


def load_dense(shop: Workshop, inputs: Inputs) -> Saved:
    """Load the dense model and keep it as safetensors, so that later runs need neither timm nor a pickle."""
    source = inputs.source
    key: dict[str, JSON] = {
        # Where the hash names the model, its path does not matter.
        "model": None if source.weights is None and inputs.source_sha256 else source.name,
        "options": {name: _plain(value) for name, value in source.options.items()},
        "pretrained": source.pretrained,
        "source": inputs.source_sha256,
        "versions": library_versions(("timm", "torch", "safetensors")),
        "code": code_sha256("models", "preprocess"),
    }
    folder = shop.run("load", key, lambda folder: save_model(load_model(source), folder))
    return _saved(folder)


def _plain(value: object) -> JSON:
    data: JSON = json.loads(json.dumps(value))
    return data


def _saved(folder: Path) -> Saved:
    sha256 = sha256_file(folder / WEIGHTS_FILE) + sha256_file(folder / ARCH_FILE)
    return Saved(folder, load_saved(folder), sha256)


def keep_plan(shop: Workshop, plan: Plan) -> Path:
    """Keep the plan's canonical text."""
    text = plan_text(plan)
    folder = shop.run("plan", {"plan": text}, lambda folder: _write(folder / PLAN_FILE, text))
    return folder / PLAN_FILE


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def slim_dense(
    shop: Workshop, dense: Saved, plan: Plan, options: SlimOptions, images: Images | None
) -> Saved:
    """Make the slim model that the plan describes."""
    key: dict[str, JSON] = {
        "dense": dense.sha256,
        "plan": plan_text(plan),
        "recover": options.recover,
        "images": images_key(images),
        "versions": library_versions(("torch", "numpy", "safetensors")),
        "code": code_sha256("slim", "models", "plan", "preprocess"),
    }

    def make(folder: Path) -> None:
        source = dense.loaded
        slim = slim_model(source.model, plan, options, images, shop.progress)
        save_model(LoadedModel(slim, source.preprocess, source.labels, source.random_weights), folder)

    return _saved(shop.run("slim", key, make))


def onnx_metadata(model: Saved, plan_sha256: str | None) -> dict[str, str]:
    """Return what an ONNX file says of itself: how its input is made, what its outputs mean, whence it came.

    The dense model follows no plan, so that another one leaves its file as it is.
    The hash of the weights stands for all that they came from; the recipe's own hash, which a changed gate or
    comment changes, is in the manifest.
    """
    import edgevit

    metadata = {
        "edgevit.version": edgevit.__version__,
        "edgevit.versions": json.dumps(
            library_versions(("onnx", "onnxscript", "timm", "torch")), sort_keys=True
        ),
        "edgevit.weights_sha256": sha256_file(model.folder / WEIGHTS_FILE),
        "edgevit.preprocess": json.dumps(preprocess_to_json(model.loaded.preprocess), sort_keys=True),
    }
    if plan_sha256 is not None:
        metadata["edgevit.plan_sha256"] = plan_sha256
    if model.loaded.labels is not None:
        metadata["edgevit.labels"] = json.dumps(list(model.loaded.labels), ensure_ascii=False)
    return metadata
