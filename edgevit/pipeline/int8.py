"""The int8 graph of a model: quantised, each layer's cost measured, costly layers put back into float."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgevit.disk import sha256_tree
from edgevit.errors import ExportError
from edgevit.export.int8_layers import Int8Graph, Switched
from edgevit.export.links import first_not_finite, onnx_link
from edgevit.export.parity import Batch
from edgevit.export.precision import quantise
from edgevit.images import Images
from edgevit.measure.accuracy import Logits
from edgevit.pipeline.graphs import Form, Graph
from edgevit.pipeline.int8_control import (
    FloatLayers,
    Loss,
    choose_float_layers,
    loss_between,
    order_of_return,
)
from edgevit.pipeline.int8_sensitivity import LayerSensitivity, measure_layers
from edgevit.pipeline.keys import code_sha256, images_key, library_versions
from edgevit.pipeline.stages import Stages
from edgevit.progress import Progress, silent
from edgevit.recipe import Int8Section
from edgevit.report.model import Int8Facts, Int8Layer, Int8Loss
from edgevit.store import JSON

QUANTISING_IMAGES = 256
"""Calibration images that ranges are taken from at most."""
_TRIAL_IMAGES = 32
"""Of these, at most, those on which a graph with SmoothQuant is compared with one without."""
SENSITIVITY_IMAGES = 8
"""Of these, at most, those on which each layer is run alone: KL is a number for every image, and ranks layers
soon."""
SMOOTH_BELOW = 0.98
"""SmoothQuant, whose products cost time, is tried where the plain graph agrees with fp32 on fewer images."""

_CODE = (
    "export",
    "measure/accuracy",
    "pipeline/int8",
    "pipeline/int8_control",
    "pipeline/int8_sensitivity",
    "report/model",
)
_FACTS_FILE = "int8.json"
_SMOOTH_FILE = "smooth_quant.json"
_INT8 = Path("onnx") / "int8.onnx"


@dataclass(frozen=True)
class Quantised:
    """A model's graph in int8."""

    graph: Graph
    facts: Int8Facts

    @property
    def parity(self) -> dict[str, float]:
        """Return what stands beside the links of the chain of custody."""
        side, after = self.facts.side, self.facts.after
        return {
            f"{side}_fp32_int8_agreement": after.agreement,
            f"{side}_fp32_int8_mean_kl": after.kl,
            f"{side}_int8_smooth_quant": float(self.facts.smooth_quant),
        }


@dataclass(frozen=True)
class Asked:
    """Which model's graph is wanted, on which images, within which limits."""

    side: str
    form: Form
    images: Images
    limits: Int8Section


def make_int8(stages: Stages, fp32: Graph, asked: Asked) -> Quantised:
    """Quantise a graph in two stages, so that other limits do not quantise again.

    Raises:
        ExportError: NNCF gives up, or a layer computes NaN or infinity; it is named.
        ImagesError: calibration images that show no ranges.
    """
    key: dict[str, JSON] = {
        "onnx": fp32.sha256,
        "images": images_key(asked.images),
        "versions": library_versions(("nncf", "onnx", "onnxruntime")),
        "code": code_sha256(*_CODE),
    }

    def make_all(folder: Path) -> None:
        (folder / _INT8).parent.mkdir()
        smooth = _quantise_best(fp32.path, spread(asked.images), folder / _INT8)
        (folder / _SMOOTH_FILE).write_text(json.dumps(smooth))

    plain = stages.run("quantise", key, make_all, of=asked.side)
    smooth: bool = json.loads((plain / _SMOOTH_FILE).read_text())

    def make_limited(folder: Path) -> None:
        (folder / _INT8).parent.mkdir()
        graph = Int8Graph(fp32.path, plain / _INT8)
        images = spread(asked.images)
        found, choice = control_int8(graph, fp32.path, images, asked.limits, stages.progress)
        graph.write(folder / _INT8, choice.in_float)
        facts = _facts(asked, found, choice, smooth=smooth)
        (folder / _FACTS_FILE).write_text(facts.model_dump_json())

    limits: dict[str, JSON] = {"limits": asked.limits.model_dump(), "int8": sha256_tree(plain / "onnx")}
    folder = stages.run("limit int8", key | limits | {"form": asked.form.folder}, make_limited, of=asked.side)
    facts = Int8Facts.model_validate_json((folder / _FACTS_FILE).read_bytes())
    graph = Graph(folder / _INT8, sha256_tree(folder / "onnx"), fp32.arch)
    return Quantised(graph, facts)


def spread(images: Images) -> list[Batch]:
    """Return single images, [1, C, H, W] each, spread evenly over the set, as its order may go by class."""
    wanted = set(np.linspace(0, len(images) - 1, min(len(images), QUANTISING_IMAGES)).astype(int).tolist())
    return [image for index, image in enumerate(images.batches(1)) if index in wanted]


def thinned(images: Sequence[Batch], most: int) -> list[Batch]:
    """Return `most` of some images, or a few less, spread evenly over them; all where there are no more."""
    return list(images[:: max(1, -(-len(images) // most))])


def control_int8(
    graph: Int8Graph,
    fp32: Path,
    images: Sequence[Batch],
    limits: Int8Section,
    progress: Progress = silent,
) -> tuple[tuple[LayerSensitivity, ...], FloatLayers]:
    """Measure each layer by itself, then the loss of all together, and choose what goes back to float.

    Args:
        graph: the int8 graph.
        fp32: the file that it was made of.
        images: [1, C, H, W] each, which the reported accuracy is not taken from.
        limits: what int8 may cost.
        progress: told after each image.

    Raises:
        ExportError: a layer computes NaN or infinity; it is named.
    """
    switched = graph.switched()
    few = thinned(images, SENSITIVITY_IMAGES)
    found = measure_layers(graph.layers, switched, few, progress)
    reference = _logits(fp32, images)
    names = {layer.name for layer in graph.layers}

    def loss_of(in_float: tuple[str, ...]) -> Loss:
        logits = _switched_logits(switched, names.difference(in_float), images)
        return loss_between(reference, logits)

    return found, choose_float_layers(found, loss_of, limits)


def _switched_logits(switched: Switched, in_int8: set[str], images: Sequence[Batch]) -> Logits:
    return np.concatenate([switched.run(image, in_int8)[0] for image in images])


def _logits(path: Path, images: Sequence[Batch]) -> Logits:
    run = onnx_link(path).run
    return np.concatenate([run(image) for image in images])


def _facts(
    asked: Asked, found: tuple[LayerSensitivity, ...], choice: FloatLayers, *, smooth: bool
) -> Int8Facts:
    places = {name: place for place, name in enumerate(choice.in_float, start=1)}
    return Int8Facts(
        side=asked.side,
        graph=asked.form.folder,
        smooth_quant=smooth,
        images=min(len(asked.images), QUANTISING_IMAGES),
        max_drop=asked.limits.max_drop,
        min_agreement=asked.limits.min_agreement,
        before=Int8Loss(**asdict(choice.before)),
        after=Int8Loss(**asdict(choice.after)),
        layers=tuple(
            Int8Layer(
                name=one.layer.name,
                block=one.layer.block,
                macs=one.layer.macs,
                sqnr_db=one.sqnr_db,
                kl=one.kl,
                returned=places.get(one.layer.name),
            )
            for one in order_of_return(found)
        ),
    )


def _quantise_best(fp32: Path, images: Sequence[Batch], out: Path) -> bool:
    """Quantise without SmoothQuant, and with it where that agrees too little; keep what is nearer to fp32.

    Returns:
        Whether SmoothQuant is in the graph.
    """
    sample = thinned(images, _TRIAL_IMAGES)
    expected = _logits(fp32, sample)
    _require_finite(fp32, sample, expected)

    def attempt(path: Path, *, smooth: bool) -> Loss:
        quantise(fp32, images, path, smooth=smooth)
        return loss_between(expected, _logits(path, sample))

    plain = attempt(out, smooth=False)
    if plain.agreement >= SMOOTH_BELOW:
        return False
    other = out.with_name("smooth.onnx")
    nearer = attempt(other, smooth=True).kl < plain.kl
    if nearer:
        other.replace(out)
    other.unlink(missing_ok=True)
    return nearer


def _require_finite(fp32: Path, images: Sequence[Batch], logits: Logits) -> None:
    """Refuse a model that computes NaN or infinity before ranges are taken from it."""
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if broken.size:
        layer = first_not_finite(fp32, images[broken[0]])
        raise ExportError(
            f"{fp32}: {layer} computes NaN or infinity in fp32 on a calibration image, so that int8 has no"
            " range. Look at its weights and at the preprocessing."
        )
