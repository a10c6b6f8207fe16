"""Decoding and preprocessing, against timm's own transform."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevit.errors import ImagesError
from edgevit.preprocess import (
    Preprocess,
    SetPreprocess,
    decode_image,
    preprocess_from_json,
    preprocess_to_json,
    resolve_preprocess,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT = Preprocess(36, (32, 32), "bicubic", MEAN, STD)


def noise(height: int, width: int, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


def encode(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(40, 40), (61, 35), (35, 61), (20, 300), (9, 8), (36, 47)])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (DEFAULT, {"input_size": (3, 32, 32), "crop_pct": 32 / 36, "interpolation": "bicubic"}),
        (
            Preprocess(32, (32, 32), "bilinear", MEAN, STD),
            {"input_size": (3, 32, 32), "crop_pct": 1.0, "interpolation": "bilinear"},
        ),
        (
            Preprocess((36, 36), (32, 32), "lanczos", MEAN, STD),
            {
                "input_size": (3, 32, 32),
                "crop_pct": 32 / 36,
                "interpolation": "lanczos",
                "crop_mode": "squash",
            },
        ),
        (
            Preprocess((36, 54), (32, 48), "bicubic", MEAN, STD, keep_ratio=True),
            {"input_size": (3, 32, 48), "crop_pct": 32 / 36, "interpolation": "bicubic"},
        ),
        (
            Preprocess(24, (32, 32), "nearest", MEAN, STD),  # smaller than the crop: a black border
            {"input_size": (3, 32, 32), "crop_pct": 32 / 24, "interpolation": "nearest"},
        ),
    ],
)
def test_preprocess_equals_timm(size: tuple[int, int], ours: Preprocess, theirs: dict[str, Any]) -> None:
    from timm.data import create_transform

    image = noise(*size)
    expected = create_transform(**theirs, mean=MEAN, std=STD)(image).numpy()
    actual = ours.normalise(ours.apply(image)[None])[0]
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected)


def test_preprocess_of_one_channel_equals_timm() -> None:
    from timm.data import create_transform

    image = noise(50, 40, 1)
    ours = Preprocess(36, (32, 32), "bicubic", (0.3,), (0.4,), channels=1)
    expected = create_transform(
        (1, 32, 32), crop_pct=32 / 36, interpolation="bicubic", mean=(0.3,), std=(0.4,)
    )
    np.testing.assert_array_equal(ours.normalise(ours.apply(image)[None])[0], expected(image).numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 4}, "channels: expected 1 or 3, got 4"),
        ({"mean": (0.5,)}, "mean and std: expected 3 each"),
        ({"interpolation": "cubic"}, "interpolation: expected .*'bicubic'.*, got 'cubic'"),
    ],
)
def test_preprocess_that_fits_no_model_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preprocess_from_json(preprocess_to_json(DEFAULT) | change)


def test_preprocess_json_survives_a_round_trip() -> None:
    for preprocess in (DEFAULT, Preprocess((3, 4), (2, 3), "nearest", (0.1,), (1.0,), 1, keep_ratio=True)):
        assert preprocess_from_json(json.loads(json.dumps(preprocess_to_json(preprocess)))) == preprocess


def test_preprocess_json_with_another_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected the keys .*'crop'.*, got .*'corp'"):
        preprocess_from_json({"corp": 3})


def test_resolve_preprocess_without_override_keeps_the_models() -> None:
    assert resolve_preprocess(DEFAULT, None) is DEFAULT
    assert resolve_preprocess(DEFAULT, SetPreprocess()) == DEFAULT


def test_resolve_preprocess_override_replaces_only_what_it_names() -> None:
    override = SetPreprocess(resize=(32, 48), crop=32, interpolation="nearest", std=(0.5,))
    assert resolve_preprocess(DEFAULT, override) == Preprocess(
        (32, 48), (32, 32), "nearest", MEAN, (0.5, 0.5, 0.5)
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (SetPreprocess(crop=224), r"preprocess\.crop: expected the model's input 32 x 32, got 224 x 224"),
        (SetPreprocess(crop=(32, 30)), r"expected the model's input 32 x 32, got 32 x 30"),
        (SetPreprocess(resize=31), r"preprocess\.resize: 31 is smaller than the model's input 32 x 32"),
        (SetPreprocess(resize=(64, 31)), r"\(64, 31\) is smaller than the model's input 32 x 32"),
    ],
)
def test_resolve_preprocess_that_misses_the_input_names_both(override: SetPreprocess, message: str) -> None:
    with pytest.raises(ImagesError, match=message):
        resolve_preprocess(DEFAULT, override)


def test_resolve_preprocess_three_means_for_a_grey_model_are_refused() -> None:
    grey = Preprocess(32, (32, 32), "bicubic", (0.3,), (0.4,), channels=1)
    with pytest.raises(ImagesError, match=r"preprocess\.mean: expected 1 for this model, got 3"):
        resolve_preprocess(grey, SetPreprocess(mean=MEAN))


def test_decode_image_applies_the_exif_orientation() -> None:
    image = Image.fromarray(np.zeros((4, 8, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    assert decode_image(encode(image, "JPEG", exif=exif), 3).size == (4, 8)


def test_decode_image_drops_alpha() -> None:
    pixels = np.array([[[10, 20, 30, 0]]], np.uint8)
    assert decode_image(encode(Image.fromarray(pixels)), 3).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("options", [{}, {"transparency": b"\x00\xff"}])
def test_decode_image_looks_palettes_up(options: dict[str, bytes]) -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert decode_image(encode(image, **options), 3).getpixel((0, 0)) == (10, 20, 30)


def test_decode_image_keeps_the_upper_byte_of_16_bits() -> None:
    data = encode(Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16)))
    np.testing.assert_array_equal(np.asarray(decode_image(data, 1)), [[0, 0, 1, 255]])
    assert decode_image(data, 3).mode == "RGB"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "YCbCr"])
@pytest.mark.parametrize(("channels", "expected"), [(1, "L"), (3, "RGB")])
def test_decode_image_of_any_mode_has_the_models_channels(mode: str, channels: int, expected: str) -> None:
    form = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    assert decode_image(encode(noise(8, 8).convert(mode), form), channels).mode == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no known image format"),
        (b"no image", "no known image format"),
        (encode(noise(64, 64), "JPEG")[:800], "truncated"),
        (encode(noise(64, 64))[:800], "."),
        (encode(noise(64, 64), "WEBP")[:800], "."),
        (encode(Image.new("F", (2, 2)), "TIFF"), "32-bit float pixels have no agreed range"),
    ],
    ids=["empty", "text", "jpeg", "png", "webp", "float"],
)
def test_decode_image_damaged_file_is_a_value_error(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_image(data, 3)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("form", ["PNG", "GIF", "JPEG", "WEBP"])
def test_decode_image_with_one_wrong_byte_decodes_or_is_a_value_error(form: str) -> None:
    good = encode(noise(8, 8), form)
    refused = 0
    for position in range(0, len(good), max(1, len(good) // 150)):
        data = bytearray(good)
        data[position] ^= 0xFF
        try:
            decode_image(bytes(data), 3)
        except ValueError:
            refused += 1
    assert refused > 0
