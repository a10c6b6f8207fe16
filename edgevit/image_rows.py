"""Where an image set's rows come from: Parquet files, a folder of images, or the Hugging Face hub.

Each opener returns `Rows`: how many images there are, their labels, and a way to read chosen ones. Files and
folders are read in place: the cache of the `datasets` library would double them on disk, and takes a file
that was replaced within one time stamp for the old one. The hub is read through `datasets`.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import ImagesError
from edgevit.schema import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

Record = tuple[bytes, str]
"""The bytes of an image file, and how to name it in a message."""

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


@dataclass(frozen=True)
class Rows:
    """The images of a set, unread."""

    count: int
    labels: NDArray[np.int64] | None
    """Class of every image, int64 [count]."""
    read: Callable[[NDArray[np.int64]], Iterator[Record]]
    """Yield the images of the given rows, whose numbers ascend; raises ImagesError."""


def folder_rows(path: Path, label: str | None, label_required: bool) -> Rows:
    """Open a folder of image files, in the order of their paths.

    Where every image lies in one of two or more sub-folders, the sub-folders are the classes: numbered in
    the order of their names, or by the name itself where all names are numbers.

    Raises:
        ImagesError: the folder is missing, holds no images, or has no classes though labels are required.
    """
    if not path.is_dir():
        raise ImagesError(
            f"{path}: no such folder.{_neighbours(path)} A set's path is relative to the set's own file."
        )
    files = sorted(_image_files(path))
    if not files:
        kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise ImagesError(f"{path}: the folder holds no images. Expected files of the kinds {kinds}.")
    labels = _folder_labels([file.relative_to(path) for file in files]) if label else None
    if label and label_required and labels is None:
        raise ImagesError(
            f"{path}: labels are asked for, but the images do not lie in two or more sub-folders, one for"
            ' each class. Sort them so, or say label = "".'
        )

    def read(indices: NDArray[np.int64]) -> Iterator[Record]:
        for index in indices:
            yield _file_bytes(files[index]), str(files[index])

    return Rows(len(files), labels, read)


def _image_files(path: Path) -> Iterator[Path]:
    seen: set[Path] = set()
    for folder, subfolders, files in os.walk(path, followlinks=True):  # sets of links to images are common
        real = Path(folder).resolve()
        # Sorted, so that of two links to one folder the same one counts on every machine.
        subfolders[:] = [] if real in seen else sorted(s for s in subfolders if not s.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        for name in files:
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield Path(folder, name)


def _folder_labels(files: Sequence[Path]) -> NDArray[np.int64] | None:
    import numpy as np

    folders = sorted({file.parts[0] for file in files})
    if any(len(file.parts) != 2 for file in files) or len(folders) < 2:
        return None
    numbered = all(name.isdecimal() for name in folders)
    number = {name: int(name) if numbered else index for index, name in enumerate(folders)}
    return np.array([number[file.parts[0]] for file in files], np.int64)


def parquet_rows(path: Path, image: str, label: str | None, label_required: bool) -> Rows:
    """Open a Parquet file, or all `*.parquet` of a folder in the order of their names.

    Raises:
        ImagesError: the file is missing or damaged, has no rows, or lacks a column.
    """
    import numpy as np
    import pyarrow.parquet as pq

    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ImagesError(f"{path}: no such Parquet file.{_neighbours(path)}")
    parts, count = [], 0
    for file in files:
        with _parquet_errors(file):
            schema = pq.read_schema(file)
            _check_image_column(file, schema, image)
            count += pq.read_metadata(file).num_rows
            parts.append(_label_column(file, schema, label, label_required))
    if count == 0:
        raise ImagesError(f"{path}: expected images, found no rows.")
    known = [part for part in parts if part is not None]
    labels = np.concatenate(known) if len(known) == len(parts) else None

    def read(indices: NDArray[np.int64]) -> Iterator[Record]:
        return _parquet_records(files, image, indices)

    return Rows(count, labels, read)


@contextmanager
def _parquet_errors(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ImagesError(
            f"{file}: cannot be read as Parquet: {_first_line(error)} The file may be truncated"
            " or no Parquet file; copy it again."
        ) from error


def _check_image_column(file: Path, schema: pa.Schema, image: str) -> None:
    import pyarrow as pa

    if image not in schema.names:
        raise _no_column(str(file), "image", image, schema.names)
    found = schema.field(image).type
    names = [field.name for field in found] if pa.types.is_struct(found) else []
    if "bytes" not in names and not _is_bytes(found):
        raise ImagesError(
            f"{file}: column {image}: expected the bytes of image files, or {{bytes, path}} as Hugging Face"
            f" writes them, got {found}. Columns: {', '.join(schema.names)}."
        )


def _is_bytes(found: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(found) or pa.types.is_large_binary(found))


def _no_column(where: str, key: str, name: str, columns: Sequence[str]) -> ImagesError:
    return ImagesError(
        f'{where}: no column "{name}".{did_you_mean(name, columns)} Columns: {", ".join(columns)}.'
        f" Name the right one as {key} in the set."
    )


def _label_column(
    file: Path, schema: pa.Schema, label: str | None, required: bool
) -> NDArray[np.int64] | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if label is None or (label not in schema.names and not required):
        return None
    if label not in schema.names:
        raise _no_column(str(file), "label", label, schema.names)
    column = pq.read_table(file, columns=[label]).column(label)
    if not pa.types.is_integer(column.type) or column.null_count:
        got = f"{column.null_count} empty rows" if column.null_count else str(column.type)
        raise ImagesError(
            f"{file}: column {label}: expected whole numbers, got {got}."
            ' Name another column, or say label = "".'
        )
    labels: NDArray[np.int64] = column.to_numpy().astype("int64")
    return labels


def _parquet_records(files: Sequence[Path], image: str, indices: NDArray[np.int64]) -> Iterator[Record]:
    """Yield the chosen rows; a row group that holds none of them is not read."""
    import pyarrow.parquet as pq

    start = 0
    for file in files:
        first_row = start
        with _parquet_errors(file), pq.ParquetFile(file) as parquet:
            for group in range(parquet.num_row_groups):
                stop = start + parquet.metadata.row_group(group).num_rows
                if not ((indices >= start) & (indices < stop)).any():
                    start = stop
                    continue
                for batch in parquet.iter_batches(batch_size=64, row_groups=[group], columns=[image]):
                    stop = start + len(batch)
                    for index in indices[(indices >= start) & (indices < stop)]:
                        cell = batch.column(0)[int(index) - start].as_py()
                        yield _cell_record(cell, f"{file} row {index - first_row}", file.parent)
                    start = stop


def _cell_record(cell: Any, where: str, folder: Path) -> Record:
    """Return the bytes in a cell: bytes, or {bytes, path} where bytes may be absent."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    path = cell.get("path") if isinstance(cell, dict) else None
    if data is not None:
        return data, f"{where} ({path})" if path else where
    if path is None:
        return b"", where  # no image here: decoding says so, and on_corrupt decides
    return _file_bytes(folder / path), str(folder / path)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImagesError(f"{path}: cannot be read: {error.strerror}.") from error


def _neighbours(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return f" {path.parent} does not exist." if not path.parent.is_dir() else did_you_mean(path.name, names)


def hub_rows(name: str, split: str, image: str, label: str | None, label_required: bool) -> Rows:
    """Open a dataset of the Hugging Face hub; it is downloaded once into the library's cache.

    Raises:
        ImagesError: the dataset or split cannot be had, or lacks a column.
    """
    import datasets
    import numpy as np

    data = _load_hub(name, split)
    columns = list(data.column_names)
    if image not in columns:
        raise _no_column(name, "image", image, columns)
    if label_required and label and label not in columns:
        raise _no_column(name, "label", label, columns)
    labels = None
    if label and label in columns:
        values = list(data[label])
        if not all(isinstance(value, int) for value in values):
            raise ImagesError(f'{name}: column {label}: expected whole numbers. label = "" is for none.')
        labels = np.array(values, np.int64)

    pictures = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))

    def read(indices: NDArray[np.int64]) -> Iterator[Record]:
        for index in indices:
            yield _cell_record(pictures[int(index)][image], f"{name} {split} row {index}", Path())

    return Rows(len(data), labels, read)


def _load_hub(name: str, split: str) -> Any:
    import datasets

    try:
        with _quiet():
            return datasets.load_dataset(name, split=split, cache_dir=str(_hub_cache()))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ImagesError(
            f"{name} (split {split}): cannot be had from the hub: {_first_line(error)}"
            " Check the name, the split and the network; a copy on disk can be a parquet or folder set."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the bars, logs and warnings of the hub's libraries off the terminal, and restore them after."""
    import datasets
    from huggingface_hub.utils.tqdm import disable_progress_bars

    shown = not datasets.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with disable_progress_bars():
            try:
                datasets.disable_progress_bars()
                datasets.logging.set_verbosity_error()
                yield
            finally:
                datasets.logging.set_verbosity(verbosity)
                if shown:
                    datasets.enable_progress_bars()


def _hub_cache() -> Path:
    """Return the cache of `datasets`, or a folder that goes with this process where it cannot be written."""
    import datasets

    cache = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return cache
    except OSError:
        temporary = Path(tempfile.mkdtemp(prefix="edgevit-hub-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        return temporary
