"""Image sets: which images they name, and those images as the arrays that a model takes.

A set is a TOML file (docs/recipes.md). `open_images` draws from it and returns `Images`, whose content
hash covers the chosen files, their labels and the preprocessing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgevit.errors import ImagesError
from edgevit.image_rows import Rows, folder_rows, hub_rows, parquet_rows
from edgevit.preprocess import (
    Preprocess,
    SetPreprocess,
    decode_image,
    preprocess_to_json,
    resolve_preprocess,
)
from edgevit.progress import Progress, silent
from edgevit.schema import Problem, Strict, load_toml
from edgevit.shipped import find_shipped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEEP_BYTES = 2**30
"""Pixels up to this size stay in memory after the first pass; larger sets are decoded in every pass."""

_PIXEL_BATCH = 32


class ImageSet(Strict):
    """Where images are and what to do with them."""

    how_to_make: ClassVar[str] = "A set is a few lines of TOML beside its images: see docs/recipes.md."

    kind: Literal["parquet", "folder", "hub"]
    """A Parquet file (or a folder of them), a folder of image files, or a dataset of the Hugging Face hub."""
    path: str = Field(min_length=1)
    """File or folder, relative to this file; for a hub set its name, such as "owner/dataset"."""
    image: str = Field(default="image", min_length=1)
    """Column with the images; a folder has no columns."""
    label: str = "label"
    """Column with the labels, 0 and up; used where it exists, required where written, "" for no labels."""
    split: str = Field(default="train", min_length=1)
    """Split of a hub set; files and folders have none."""
    preprocess: SetPreprocess | None = None
    """Settings in place of the model's own."""
    draw: Literal["random", "balanced"] = "random"
    """Draw from all images alike, or as many of each class as can be, which needs labels."""
    on_corrupt: Literal["error", "skip"] = "error"
    """Stop at an image that cannot be read, or leave it out and count it."""

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """Refuse keys that this kind of set does not read."""
        problems = []
        if "split" in table and table.get("kind") in ("parquet", "folder"):
            problems.append(Problem("split", "only hub sets have splits. Name the file or folder in path."))
        if "image" in table and table.get("kind") == "folder":
            problems.append(Problem("image", "a folder has no columns. Take this key out."))
        if table.get("draw") == "balanced" and table.get("label") == "":
            problems.append(Problem("draw", 'classes are balanced by labels, and label = "" reads none.'))
        return problems


@dataclass(frozen=True)
class LoadedSet:
    """An image set and the file it came from."""

    set: ImageSet
    path: Path
    """The set's file; paths in the set are relative to its folder."""
    labels: bool = True
    """Whether the images get labels. Without, those that can be read balance and count classes, no more."""


def load_image_set(name_or_path: str, relative_to: Path) -> LoadedSet:
    """Load the image set that `name_or_path` means; a path is relative to the folder `relative_to`.

    Raises:
        RecipeError: no such set, or its file has problems (all are listed).
    """
    path = find_shipped("calibration", name_or_path, relative_to)
    return LoadedSet(load_toml(path, ImageSet), path)


class Images:
    """Images drawn from a set, in the set's order. Made by `open_images`."""

    def __init__(self, rows: Rows, chosen: NDArray[np.int64], preprocess: Preprocess, found: _Found) -> None:
        self.labels: NDArray[np.int64] | None = None if rows.labels is None else rows.labels[chosen]
        """Class of each image, int64 [n]."""
        self.classes = found.classes
        """Number of classes among them; None where no labels can be read."""
        self.sha256 = found.sha256
        """Hash of the chosen files' bytes, their labels and the preprocessing, hexadecimal."""
        self.skipped = len(found.skipped)
        """Images that were drawn but could not be read; above 0 only with on_corrupt = "skip"."""
        self.skipped_names = found.skipped
        """Which those are."""
        self.digests = found.digests
        """SHA-256 of each image's file, to know one set's images in another."""
        self.preprocess = preprocess
        self._rows = rows
        self._chosen = chosen
        self._pixels: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self._chosen)

    def batches(self, size: int) -> Iterator[NDArray[np.float32]]:
        """Yield all images in order as model inputs, float32 [b, C, H, W] with b <= `size`.

        Raises:
            ImagesError: an image cannot be read; it is named.
        """
        if size < 1:
            raise ValueError(f"batch size: expected at least 1, got {size}")
        yield from map(self.preprocess.normalise, self._pixel_batches(size))

    def spread(self, count: int, size: int) -> Iterator[NDArray[np.float32]]:
        """Yield at most `count` images, spread evenly over all, as `batches` does; no others are decoded.

        Raises:
            ImagesError: an image cannot be read; it is named.
        """
        import numpy as np

        places = np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64)
        if self._pixels is None:
            yield from map(self.preprocess.normalise, self._decoded(self._chosen[places], size))
            return
        for start in range(0, len(places), size):
            yield self.preprocess.normalise(self._pixels[places[start : start + size]])

    def pixels(self) -> NDArray[np.uint8]:
        """Return all images in order before they are normalised, uint8 [n, H, W, C]; memory must hold them.

        Raises:
            ImagesError: an image cannot be read; it is named.
        """
        import numpy as np

        batches = list(self._pixel_batches(_PIXEL_BATCH))
        return np.concatenate(batches) if self._pixels is None else self._pixels

    def _pixel_batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        import numpy as np

        if self._pixels is not None:
            for start in range(0, len(self), size):
                yield self._pixels[start : start + size]
            return
        shape = (len(self), *self.preprocess.crop, self.preprocess.channels)
        keep = np.empty(shape, np.uint8) if int(np.prod(shape, dtype=np.int64)) <= KEEP_BYTES else None
        done = 0
        for pixels in self._decoded(self._chosen, size):
            if keep is not None:
                keep[done : done + len(pixels)] = pixels
            done += len(pixels)
            yield pixels
        self._pixels = keep  # only after a whole pass, so that an abandoned one leaves nothing half-filled

    def _decoded(self, chosen: NDArray[np.int64], size: int) -> Iterator[NDArray[np.uint8]]:
        import numpy as np

        records = self._rows.read(chosen)
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:  # PIL frees the GIL
            while batch := list(islice(records, size)):
                yield np.stack(list(pool.map(self._pixels_of, *zip(*batch, strict=True))))

    def _pixels_of(self, data: bytes, where: str) -> NDArray[np.uint8]:
        try:
            return _pixels(data, self.preprocess)
        except ValueError as error:
            raise ImagesError(
                f"{where}: cannot be read as an image: {error}. Replace it, or leave it out with"
                ' on_corrupt = "skip" in the set.'
            ) from error


def open_images(
    source: LoadedSet, default: Preprocess, count: int | None, seed: int, progress: Progress = silent
) -> Images:
    """Draw `count` images (all when None) from a set, without replacement, and hash them.

    They are preprocessed by the model's `default` with what the set says in its place. The draw depends on
    `seed` and the number of images alone (with draw = "balanced" also on their labels); the drawn ones stay
    in the set's order, so that a file is read from front to back. Images are decoded by `Images.batches`,
    except that on_corrupt = "skip" decodes them here as well, to know which to leave out.

    Raises:
        ImagesError: the set is missing, empty, truncated, lacks a column, is smaller than `count`, has labels
            below 0 or none to balance, or says what does not fit the model's input; or none of its images can
            be read.
    """
    try:
        preprocess = resolve_preprocess(default, source.set.preprocess)
    except ImagesError as error:
        raise ImagesError(f"{source.path}: {error}") from error
    rows = _open_rows(source)
    chosen = _draw(rows, count, seed, source)
    labels = rows.labels
    if not source.labels:
        rows = replace(rows, labels=None)
    if rows.labels is not None and (rows.labels[chosen] < 0).any():
        row = int(chosen[(rows.labels[chosen] < 0).argmax()])
        raise ImagesError(
            f"{source.path}: expected labels of 0 and up, got {rows.labels[row]} in row {row}."
            ' If the images are unlabelled, say label = "".'
        )
    found = _examine(rows, chosen, preprocess, source.set.on_corrupt == "skip", progress)
    if found.kept.size == 0:
        raise ImagesError(f"{source.path}: none of the {len(chosen)} images can be read.")
    if labels is not None:
        found = replace(found, classes=len(set(labels[found.kept].tolist())))
    return Images(rows, found.kept, preprocess, found)


def check_labels(labels: NDArray[np.int64], classes: int) -> None:
    """Refuse labels that a head with `classes` outputs cannot give.

    Raises:
        ImagesError: a label is below 0, or `classes` or more.
    """
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        first = int(wrong.argmax())
        raise ImagesError(
            f"labels do not fit the head: expected 0..{classes - 1} for its {classes} classes, got"
            f" {labels[first]} at image {first} ({int(wrong.sum())} of {len(labels)} do not fit)."
            " Use the set the model was trained for, or set num_classes in model.options."
        )


def required_labels(images: Images, classes: int) -> NDArray[np.int64]:
    """Return the class of each image, int64 [n], for work that cannot do without.

    Raises:
        ImagesError: the images have no labels, or some that a head with `classes` outputs cannot give.
    """
    if images.labels is None:
        raise ImagesError(
            "this learns from labels, and the set has none. Name its label column, or do without what needs"
            " labels."
        )
    check_labels(images.labels, classes)
    return images.labels


def _open_rows(source: LoadedSet) -> Rows:
    """Open a set; labels that nothing needs may be missing or wrong."""
    if source.labels or source.set.draw == "balanced":
        return _rows(source, source.set.label or None)
    try:
        return _rows(source, source.set.label or None)
    except ImagesError:
        return _rows(source, None)


def _rows(source: LoadedSet, label: str | None) -> Rows:
    images = source.set
    required = label is not None and ("label" in images.model_fields_set or images.draw == "balanced")
    path = source.path.parent / Path(images.path).expanduser()
    match images.kind:
        case "parquet":
            return parquet_rows(path, images.image, label, required)
        case "folder":
            return folder_rows(path, label, required)
        case "hub":
            return hub_rows(images.path, images.split, images.image, label, required)


def _draw(rows: Rows, count: int | None, seed: int, source: LoadedSet) -> NDArray[np.int64]:
    import numpy as np

    where = source.path
    if count is not None and count > rows.count:
        raise ImagesError(
            f"{where}: {count} images are asked for, but the set has {rows.count}."
            " Ask for fewer, or use a larger set."
        )
    if count is None or count == rows.count:
        return np.arange(rows.count)
    generator = np.random.default_rng(seed)
    if source.set.draw == "balanced" and rows.labels is not None:
        return _draw_balanced(rows.labels, count, generator)
    return np.sort(generator.choice(rows.count, count, replace=False))


def _draw_balanced(
    labels: NDArray[np.int64], count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw `count` images, one of each class in turn; a class that has no more is passed over."""
    import numpy as np

    order = generator.permutation(len(labels))
    by_class = np.argsort(labels[order], kind="stable")
    grouped = labels[order][by_class]
    turn = np.empty(len(labels), np.int64)
    turn[by_class] = np.arange(len(labels)) - np.searchsorted(grouped, grouped)
    # The last turn may not reach every class: which it does is left to the random order.
    return np.sort(order[np.argsort(turn, kind="stable")[:count]])


@dataclass(frozen=True)
class _Found:
    """What one pass over the drawn files found."""

    kept: NDArray[np.int64]
    sha256: str
    skipped: tuple[str, ...]
    digests: tuple[bytes, ...]
    classes: int | None = None


def _examine(
    rows: Rows, chosen: NDArray[np.int64], preprocess: Preprocess, skip: bool, progress: Progress
) -> _Found:
    digest = hashlib.sha256(json.dumps(preprocess_to_json(preprocess), sort_keys=True).encode())
    kept: list[np.int64] = []
    skipped: list[str] = []
    digests: list[bytes] = []
    for done, (index, (data, where)) in enumerate(zip(chosen, rows.read(chosen), strict=True), start=1):
        if skip and not _readable(data, preprocess):
            skipped.append(where)
        else:
            kept.append(index)
            digests.append(hashlib.sha256(data).digest())
            digest.update(digests[-1])
            digest.update(b"-" if rows.labels is None else str(rows.labels[index]).encode())
        progress("images read", done, len(chosen))
    return _Found(_int64(kept), digest.hexdigest(), tuple(skipped), tuple(digests))


def _int64(values: list[np.int64]) -> NDArray[np.int64]:
    import numpy as np

    return np.array(values, np.int64)


def _readable(data: bytes, preprocess: Preprocess) -> bool:
    try:
        _pixels(data, preprocess)
    except ValueError:
        return False
    return True


def _pixels(data: bytes, preprocess: Preprocess) -> NDArray[np.uint8]:
    return preprocess.apply(decode_image(data, preprocess.channels))
