"""Image sets: drawing, hashing, and every way in which they can be wrong."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toy_build import write_images

from edgevit import images as images_module
from edgevit.errors import ImagesError, RecipeError
from edgevit.images import Images, LoadedSet, check_labels, load_image_set, open_images
from edgevit.preprocess import Preprocess

SMALL = Preprocess(8, (8, 8), "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def png(value: int, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, files: Sequence[bytes], labels: Sequence[int] | None = None) -> Path:
    """Write the files as `datasets` does, with class names, in row groups of 4."""
    columns: dict[str, Any] = {"image": [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(files)]}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    table = pa.table(columns)
    names = b'{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'
    pq.write_table(table.replace_schema_metadata({b"huggingface": names}), path, row_group_size=4)
    return path


def make_set(folder: Path, text: str) -> LoadedSet:
    (folder / "set.toml").write_text(text)
    return load_image_set("set.toml", folder)


def parquet_set(folder: Path, more: str = "") -> LoadedSet:
    return make_set(folder, f'kind = "parquet"\npath = "images.parquet"\n{more}')


def folder_set(folder: Path, more: str = "") -> LoadedSet:
    return make_set(folder, f'kind = "folder"\npath = "pictures"\n{more}')


def values(images: Images, size: int = 3) -> list[int]:
    """Return the grey value of each one-coloured image."""
    batches = list(images.batches(size))
    assert all(batch.shape[1:] == (3, 8, 8) and batch.dtype == np.float32 for batch in batches)
    return [round((float(image[0, 0, 0]) * 0.5 + 0.5) * 255) for image in np.concatenate(batches)]


def test_open_images_parquet_gives_rows_in_order(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images.parquet", [png(i) for i in range(10)], [i % 2 for i in range(10)])
    images = open_images(parquet_set(tmp_path), SMALL, None, 0)
    assert (len(images), images.skipped) == (10, 0)
    assert values(images) == list(range(10))
    assert images.labels is not None
    np.testing.assert_array_equal(images.labels, [0, 1] * 5)


def test_open_images_folder_of_parquet_files_is_one_set(tmp_path: Path) -> None:
    (tmp_path / "images.parquet").mkdir()
    for part in range(2):
        files = [png(10 * part + i) for i in range(5)]
        write_parquet(tmp_path / "images.parquet" / f"{part}.parquet", files, [part] * 5)
    images = open_images(parquet_set(tmp_path), SMALL, 6, 0)
    drawn = values(images)
    assert drawn == sorted(drawn)
    assert images.labels is not None
    assert images.labels.tolist() == [value // 10 for value in drawn]


@pytest.mark.parametrize("plain", [pa.binary(), pa.large_binary()])
def test_open_images_plain_bytes_column_is_read(tmp_path: Path, plain: pa.DataType) -> None:
    pq.write_table(pa.table({"jpg": pa.array([png(5)], plain)}), tmp_path / "images.parquet")
    images = open_images(parquet_set(tmp_path, 'image = "jpg"'), SMALL, None, 0)
    assert (values(images), images.labels) == ([5], None)


def test_open_images_parquet_with_paths_reads_the_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(7))
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "a.png"}]}), tmp_path / "images.parquet")
    assert values(open_images(parquet_set(tmp_path), SMALL, None, 0)) == [7]


def test_open_images_folder_takes_sub_folders_as_classes(tmp_path: Path) -> None:
    for name, value in (("dog/x.png", 3), ("cat/b.PNG", 2), ("cat/a.png", 1), ("cat/notes.txt", 0)):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    images = open_images(folder_set(tmp_path), SMALL, None, 0)
    assert values(images) == [1, 2, 3]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1]


def test_open_images_folder_of_numbered_classes_takes_the_numbers(tmp_path: Path) -> None:
    for name in ("2", "10"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        (tmp_path / "pictures" / name / "a.png").write_bytes(png(int(name)))
    images = open_images(folder_set(tmp_path), SMALL, None, 0)
    assert images.labels is not None
    assert (images.labels.tolist(), values(images)) == ([10, 2], [10, 2])


def test_open_images_flat_folder_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png(1))
    assert open_images(folder_set(tmp_path), SMALL, None, 0).labels is None
    with pytest.raises(ImagesError, match="do not lie in two or more sub-folders"):
        open_images(folder_set(tmp_path, 'label = "label"'), SMALL, None, 0)


def test_open_images_folder_follows_links_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(png(1))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pictures" / "loop").symlink_to(tmp_path / "pictures")
    assert values(open_images(folder_set(tmp_path), SMALL, None, 0)) == [1]


def test_open_images_empty_label_key_ignores_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images.parquet", [png(1)], [-1])
    assert open_images(parquet_set(tmp_path, 'label = ""'), SMALL, None, 0).labels is None


def test_open_images_draw_depends_on_the_seed_alone(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images.parquet", [png(i) for i in range(50)])
    source = parquet_set(tmp_path)
    draws = [values(open_images(source, SMALL, 20, seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] == sorted(set(draws[0]))
    assert draws[0] != draws[2]
    assert len(draws[2]) == 20


def test_open_images_balanced_draws_as_many_of_each_class_as_there_are(tmp_path: Path) -> None:
    labels = [0] * 20 + [1] * 20 + [2] * 3
    write_parquet(tmp_path / "images.parquet", [png(i) for i in range(43)], labels)
    source = parquet_set(tmp_path, 'draw = "balanced"')
    draws = [open_images(source, SMALL, 13, seed) for seed in (0, 0, 1)]
    assert values(draws[0]) == values(draws[1]) == sorted(set(values(draws[0])))
    assert values(draws[0]) != values(draws[2])
    assert draws[0].labels is not None
    assert np.bincount(draws[0].labels).tolist() == [5, 5, 3]


def test_open_images_balanced_without_labels_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images.parquet", [png(i) for i in range(4)])
    with pytest.raises(ImagesError, match=r"label"):
        open_images(parquet_set(tmp_path, 'draw = "balanced"'), SMALL, 2, 0)
    with pytest.raises(RecipeError, match=r'draw: classes are balanced by labels, and label = "" reads none'):
        parquet_set(tmp_path, 'draw = "balanced"\nlabel = ""')


def test_open_images_without_labels_counts_classes_where_labels_can_be_read(tmp_path: Path) -> None:
    for labels, classes in (([3, 3], 1), ([0, -1], 2), (None, None)):
        write_parquet(tmp_path / "images.parquet", [png(1), png(2)], labels)
        images = open_images(replace(parquet_set(tmp_path), labels=False), SMALL, None, 0)
        assert (images.labels, images.classes) == (None, classes)


def test_open_images_hash_covers_bytes_labels_and_preprocessing(tmp_path: Path) -> None:
    def digest(files: Sequence[bytes], labels: Sequence[int] | None, preprocess: Preprocess = SMALL) -> str:
        write_parquet(tmp_path / "images.parquet", files, labels)
        return open_images(parquet_set(tmp_path), preprocess, None, 0).sha256

    files = [png(1), png(2)]
    other = Preprocess(9, (8, 8), "bilinear", (0.5,) * 3, (0.5,) * 3)
    digests = [
        digest(files, [0, 1]),
        digest(files[::-1], [0, 1]),
        digest(files, [1, 1]),
        digest(files, None),
        digest(files, [0, 1], other),
    ]
    assert len(set(digests)) == 5
    assert digest(files, [0, 1]) == digests[0]


def test_open_images_hash_is_that_of_the_images_not_of_the_container(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(png(i))
    write_parquet(tmp_path / "images.parquet", [png(i) for i in range(3)])
    assert (
        open_images(folder_set(tmp_path), SMALL, None, 0).sha256
        == open_images(parquet_set(tmp_path), SMALL, None, 0).sha256
    )


@pytest.mark.parametrize("keep_bytes", [0, 2**30])
def test_batches_are_equal_in_every_pass(
    tmp_path: Path, keep_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "KEEP_BYTES", keep_bytes)
    write_parquet(tmp_path / "images.parquet", [png(i) for i in range(7)])
    images = open_images(parquet_set(tmp_path), SMALL, None, 0)
    next(images.batches(2))  # an abandoned pass
    assert [values(images, size) for size in (2, 3, 100)] == [list(range(7))] * 3
    (tmp_path / "images.parquet").unlink()
    if keep_bytes:
        assert values(images) == list(range(7))
    else:
        with pytest.raises(ImagesError, match=r"images\.parquet: cannot be read as Parquet"):
            values(images)


@pytest.mark.parametrize("keep_bytes", [0, 2**30])
def test_pixels_are_what_the_batches_normalise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_bytes: int
) -> None:
    monkeypatch.setattr(images_module, "KEEP_BYTES", keep_bytes)
    write_parquet(tmp_path / "images.parquet", [png(value) for value in range(0, 200, 5)])
    images = open_images(parquet_set(tmp_path), SMALL, None, 0)
    pixels = images.pixels()
    assert (pixels.shape, pixels.dtype) == ((40, *SMALL.crop, 3), np.uint8)
    np.testing.assert_array_equal(SMALL.normalise(pixels), np.concatenate(list(images.batches(7))))


def test_open_images_reports_progress_up_to_all_images(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images.parquet", [png(i) for i in range(3)])
    calls: list[tuple[str, int, int]] = []
    open_images(parquet_set(tmp_path), SMALL, None, 0, lambda *call: calls.append(call))
    assert calls == [("images read", 1, 3), ("images read", 2, 3), ("images read", 3, 3)]


def test_batches_of_size_zero_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images.parquet", [png(1)])
    with pytest.raises(ValueError, match="batch size: expected at least 1, got 0"):
        next(open_images(parquet_set(tmp_path), SMALL, None, 0).batches(0))


def test_corrupt_image_in_parquet_is_named_by_file_and_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images.parquet", [png(0)] * 5 + [png(1)[:-40]])
    images = open_images(parquet_set(tmp_path), SMALL, None, 0)
    with pytest.raises(ImagesError, match=r"images\.parquet row 5 \(5\.png\): cannot be read as an image"):
        values(images)


def test_text_file_named_png_is_told_apart_in_words(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images.parquet", [b"hello"])
    images = open_images(parquet_set(tmp_path), SMALL, None, 0)
    with pytest.raises(
        ImagesError, match=r"row 0 .*its bytes are those of no known image format\. Replace it"
    ):
        values(images)


def test_corrupt_image_in_folder_is_named_by_path(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "good.png").write_bytes(png(1))
    (tmp_path / "pictures" / "bad.jpg").write_bytes(b"not a picture")
    images = open_images(folder_set(tmp_path), SMALL, None, 0)
    with pytest.raises(ImagesError, match=r'pictures/bad\.jpg: cannot be read .* on_corrupt = "skip"'):
        values(images)


def test_corrupt_images_are_skipped_and_counted_when_the_set_says_so(tmp_path: Path) -> None:
    files = [png(0), b"", png(2), png(3)[:45], png(4)]
    write_parquet(tmp_path / "images.parquet", files, [0, 1, 0, 1, 1])
    images = open_images(parquet_set(tmp_path, 'on_corrupt = "skip"'), SMALL, None, 0)
    assert (len(images), images.skipped, values(images)) == (3, 2, [0, 2, 4])
    path = tmp_path / "images.parquet"
    assert images.skipped_names == (f"{path} row 1 (1.png)", f"{path} row 3 (3.png)")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1]


def test_image_too_thin_to_resize_is_skipped_or_named_like_a_corrupt_one(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 1)).save(buffer, "PNG")  # decodes well, and would become 1024000 x 256
    write_parquet(tmp_path / "images.parquet", [png(0), buffer.getvalue()])
    large = Preprocess(256, (8, 8), "bilinear", (0.5,) * 3, (0.5,) * 3)
    skipping = open_images(parquet_set(tmp_path, 'on_corrupt = "skip"'), large, None, 0)
    assert (len(skipping), skipping.skipped, values(skipping)) == (1, 1, [0])
    stopping = open_images(parquet_set(tmp_path), large, None, 0)
    with pytest.raises(
        ImagesError, match=r"row 1 .* 4000 x 1 would be resized to 1024000 x 256\. Replace it"
    ):
        values(stopping)


def test_open_images_applies_the_preprocessing_of_the_set(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images.parquet", [png(0)])
    images = open_images(parquet_set(tmp_path, "[preprocess]\nresize = 16\nmean = [0.0]"), SMALL, None, 0)
    assert (images.preprocess.resize, images.preprocess.mean) == (16, (0.0, 0.0, 0.0))


def test_open_images_preprocessing_that_does_not_fit_the_model_names_the_set_and_key(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images.parquet", [png(0)])
    with pytest.raises(
        ImagesError, match=r"set\.toml: preprocess\.crop: expected the model's input 8 x 8, got 9"
    ):
        open_images(parquet_set(tmp_path, "[preprocess]\ncrop = 9"), SMALL, None, 0)


def test_set_of_corrupt_images_only_is_refused_even_when_skipping(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images.parquet", [b"", b"x"])
    with pytest.raises(ImagesError, match="none of the 2 images can be read"):
        open_images(parquet_set(tmp_path, 'on_corrupt = "skip"'), SMALL, None, 0)


def test_open_images_more_than_there_are_names_both(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images.parquet", [png(1)] * 3)
    with pytest.raises(ImagesError, match=r"set\.toml: 256 images are asked for, but the set has 3\."):
        open_images(parquet_set(tmp_path), SMALL, 256, 0)


def test_open_images_negative_label_names_the_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images.parquet", [png(1)] * 3, [0, 1, -1])
    with pytest.raises(ImagesError, match=r"expected labels of 0 and up, got -1 in row 2"):
        open_images(parquet_set(tmp_path), SMALL, None, 0)


def test_open_images_missing_folder_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "picturs").mkdir()
    with pytest.raises(ImagesError, match=r'pictures: no such folder\. Did you mean "picturs"\?'):
        open_images(folder_set(tmp_path), SMALL, None, 0)


def test_open_images_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "notes.txt").touch()
    with pytest.raises(ImagesError, match=r"pictures: the folder holds no images\. Expected .*jpeg"):
        open_images(folder_set(tmp_path), SMALL, None, 0)


def test_open_images_missing_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match=r"images\.parquet: no such Parquet file"):
        open_images(parquet_set(tmp_path), SMALL, None, 0)


@pytest.mark.parametrize("keep", [0, 4, 200])
def test_open_images_truncated_parquet_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_parquet(tmp_path / "images.parquet", [png(1)] * 9)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ImagesError, match=r"images\.parquet: cannot be read as Parquet: .* truncated"):
        open_images(parquet_set(tmp_path), SMALL, None, 0)


def test_open_images_damaged_parquet_page_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "images.parquet", [png(i, 64) for i in range(4)])
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(data)
    with pytest.raises(ImagesError, match=r"images\.parquet: cannot be read as Parquet"):
        open_images(parquet_set(tmp_path), SMALL, None, 0)


def test_open_images_parquet_without_rows_is_refused(tmp_path: Path) -> None:
    empty = pa.table({"image": pa.array([], pa.binary())})
    pq.write_table(empty, tmp_path / "images.parquet")
    with pytest.raises(ImagesError, match=r"images\.parquet: expected images, found no rows"):
        open_images(parquet_set(tmp_path), SMALL, None, 0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            'image = "imge"',
            r'no column "imge"\. Did you mean "image"\? Columns: image, label\. .* as image',
        ),
        (
            'label = "lable"',
            r'no column "lable"\. Did you mean "label"\? Columns: image, label\. .* as label',
        ),
        ('image = "label"', r"column label: expected the bytes of image files, .* got int64"),
        ('label = "image"', r"column image: expected whole numbers, got struct<"),
    ],
)
def test_open_images_wrong_column_lists_the_columns(tmp_path: Path, more: str, message: str) -> None:
    write_parquet(tmp_path / "images.parquet", [png(1)], [0])
    with pytest.raises(ImagesError, match=message):
        open_images(parquet_set(tmp_path, more), SMALL, None, 0)


def test_open_images_empty_labels_are_refused(tmp_path: Path) -> None:
    table = pa.table({"image": [png(1), png(2)], "label": pa.array([1, None], pa.int64())})
    pq.write_table(table, tmp_path / "images.parquet")
    with pytest.raises(ImagesError, match="column label: expected whole numbers, got 1 empty rows"):
        open_images(parquet_set(tmp_path), SMALL, None, 0)


def test_open_images_absent_default_label_column_means_no_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images.parquet", [png(1)])
    assert open_images(parquet_set(tmp_path), SMALL, None, 0).labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kind = "parquet"\npath = "a"\nsplit = "test"', "split: only hub sets have splits"),
        ('kind = "folder"\npath = "a"\nimage = "image"', "image: a folder has no columns"),
        ('kind = "tar"\npath = "a"', 'kind: expected "parquet", "folder" or "hub", got "tar"'),
        (
            'kind = "folder"\npath = "a"\npreprocess = { mean = [0.5, 0.5] }',
            r"preprocess\.mean: expected one number, or one for each of 3 channels; got 2",
        ),
        (
            'kind = "folder"\npath = "a"\npreprocess = { crop = [224, 0] }',
            r"preprocess\.crop\[1\]: expected a number >= 1, got 0",
        ),
    ],
)
def test_load_image_set_bad_file_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_set(tmp_path, text)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 10], r"expected 0\.\.9 for its 10 classes, got 10 at image 1 \(1 of 2 do not fit\)"),
        ([-1, 0], r"got -1 at image 0"),
    ],
)
def test_check_labels_that_do_not_fit_names_the_first(labels: list[int], message: str) -> None:
    with pytest.raises(ImagesError, match=message):
        check_labels(np.array(labels), 10)


def test_check_labels_that_fit_pass() -> None:
    check_labels(np.array([0, 9]), 10)


@pytest.fixture
def hub_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedSet:
    """Return a hub set whose dataset is a folder: `datasets` takes one in place of a hub name."""
    import datasets

    (tmp_path / "hub").mkdir()
    write_parquet(tmp_path / "hub" / "train.parquet", [png(i) for i in range(6)], [0, 1] * 3)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return make_set(tmp_path, f'kind = "hub"\npath = "{tmp_path / "hub"}"')


def test_open_images_hub_equals_parquet_and_prints_nothing(
    tmp_path: Path, hub_set: LoadedSet, capfd: pytest.CaptureFixture[str]
) -> None:
    hub = open_images(hub_set, SMALL, 4, 0)
    write_parquet(tmp_path / "images.parquet", [png(i) for i in range(6)], [0, 1] * 3)
    parquet = open_images(parquet_set(tmp_path), SMALL, 4, 0)
    assert (hub.sha256, values(hub)) == (parquet.sha256, values(parquet))
    assert list((tmp_path / "cache").iterdir())
    assert capfd.readouterr() == ("", "")


def test_open_images_hub_with_a_cache_that_cannot_be_written_still_reads(
    tmp_path: Path, hub_set: LoadedSet
) -> None:
    (tmp_path / "cache").touch()  # a file where the cache's folder would be
    assert values(open_images(hub_set, SMALL, None, 0)) == list(range(6))


def test_open_images_hub_unknown_dataset_or_split_is_refused(tmp_path: Path, hub_set: LoadedSet) -> None:
    split = make_set(tmp_path, f'kind = "hub"\npath = "{tmp_path / "hub"}"\nsplit = "tst"')
    with pytest.raises(ImagesError, match=r"\(split tst\): cannot be had from the hub: .*tst"):
        open_images(split, SMALL, None, 0)
    dataset = make_set(tmp_path, 'kind = "hub"\npath = "nobody/nothing"')
    with pytest.raises(ImagesError, match=r"nobody/nothing \(split train\): cannot be had from the hub"):
        open_images(dataset, SMALL, None, 0)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "rows", "classes"),
    [
        ("cifar10_test1000", 1000, 10),
        ("imagenet_val650_227", 650, 1000),
        ("imagenette160_val1500", 1500, 1000),
    ],
)
def test_open_images_real_parquet_files(
    tmp_path: Path, shared_data: Path, name: str, rows: int, classes: int
) -> None:
    source = make_set(tmp_path, f'kind = "parquet"\npath = "{shared_data / name}.parquet"')
    images = open_images(source, Preprocess(96, (96, 96), "bicubic", (0.5,) * 3, (0.5,) * 3), 40, 0)
    batches = list(images.batches(16))
    assert [batch.shape for batch in batches] == [(16, 3, 96, 96), (16, 3, 96, 96), (8, 3, 96, 96)]
    assert all(0.05 < float(batch.std()) < 2 for batch in batches)
    assert images.labels is not None
    check_labels(images.labels, classes)
    with pytest.raises(ImagesError, match=f"the set has {rows}"):
        open_images(source, SMALL, rows + 1, 0)


@pytest.mark.shared_data
def test_open_images_real_images_equal_a_plain_decode(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "nips2017_ccby24_299.parquet"
    images = open_images(make_set(tmp_path, f'kind = "parquet"\npath = "{path}"'), SMALL, None, 0)
    cells = pq.read_table(path).column("image").to_pylist()
    expected = [SMALL.apply(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in cells]
    np.testing.assert_array_equal(
        np.concatenate(list(images.batches(24))), SMALL.normalise(np.stack(expected))
    )


@pytest.mark.shared_data
def test_open_images_set_without_labels_has_none(tmp_path: Path, shared_data: Path) -> None:
    source = make_set(tmp_path, f'kind = "parquet"\npath = "{shared_data / "camvid_240x180_val"}.parquet"')
    images = open_images(source, SMALL, 8, 0)
    assert (len(images), images.labels) == (8, None)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(
    ("count", "places"), [(1, [0]), (4, [0, 23, 46, 69]), (70, list(range(70))), (500, list(range(70)))]
)
def test_images_are_spread_over_the_whole_set(
    tmp_path: Path, count: int, places: list[int], in_memory: bool
) -> None:
    write_images(tmp_path / "pictures", 70)
    (tmp_path / "set.toml").write_text('kind = "folder"\npath = "pictures"\n')
    images = open_images(load_image_set("set.toml", tmp_path), SMALL, None, 0)
    if in_memory:
        images.pixels()
    found = np.concatenate(list(images.spread(count, 32)))
    assert np.array_equal(found, np.concatenate(list(images.batches(32)))[places])
