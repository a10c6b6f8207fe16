"""From the bytes of an image file to what a model takes: decode, resize, crop, normalise.

The same arithmetic as timm's evaluation transform (Resize, CenterCrop, ToTensor, Normalize), without torch.
H height, W width, C channels, B batch.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field

from edgevit.errors import ImagesError
from edgevit.schema import Problem, Strict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Edge = Annotated[int, Field(ge=1)]
Size = tuple[Edge, Edge]

MAX_PIXELS = 2**27
"""Pixels of a resized image, 400 MB in colour; PIL refuses files of more than 1.3 times as many."""


class SetPreprocess(Strict):
    """What an image set says about preprocessing; a key that is absent leaves the model's own setting."""

    resize: Edge | Size | None = None
    """Pixels of the shortest edge after resizing, proportions kept, or [height, width] exactly, >= 1."""
    crop: Edge | Size | None = None
    """Pixels of the central square cut out after resizing, or [height, width]: the model's input, >= 1."""
    interpolation: Interpolation | None = None
    """Filter of the resizing."""
    mean: tuple[float, ...] | None = Field(default=None, min_length=1, max_length=3)
    """Mean that is subtracted, one for each channel or one for all, on the scale 0..1."""
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(default=None, min_length=1, max_length=3)
    """Standard deviation that divides, one for each channel or one for all, > 0 on the scale 0..1."""

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """Refuse two values for one or three channels."""
        pairs = [key for key in ("mean", "std") if isinstance(v := table.get(key), tuple) and len(v) == 2]
        return [Problem(key, "expected one number, or one for each of 3 channels; got 2") for key in pairs]


@dataclass(frozen=True)
class Preprocess:
    """How pixels become a model's input, with nothing left open."""

    resize: int | tuple[int, int]
    """Shortest edge in pixels, or (height, width)."""
    crop: tuple[int, int]
    """Height and width of the central crop: the model's input."""
    interpolation: Interpolation
    mean: tuple[float, ...]
    """One a channel, on the scale 0..1."""
    std: tuple[float, ...]
    """One a channel, on the scale 0..1."""
    channels: int = 3
    """3 (RGB) or 1 (grey)."""
    keep_ratio: bool = False
    """Where `resize` is (height, width): scale to cover it, proportions kept, as timm does before it cuts
    an input that is not square."""

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels: expected 1 or 3, got {self.channels}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std: expected {self.channels} each, got {self.mean} and {self.std}")
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(f"interpolation: expected {get_args(Interpolation)}, got {self.interpolation!r}")

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the pixels of `image`, resized and cropped, uint8 [H, W, C].

        Raises:
            ValueError: so long and thin that it would have more than `MAX_PIXELS` before it is cropped.
        """
        import numpy as np
        from PIL import Image

        image = image.convert("L" if self.channels == 1 else "RGB")
        filter_ = Image.Resampling[self.interpolation.upper()]
        width, height = self._resized(image.width, image.height)
        if width * height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} would be resized to {width} x {height}")
        image = image.resize((width, height), filter_)
        return np.asarray(_crop_centre(image, self.crop)).reshape(*self.crop, self.channels)

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the model's input for `pixels`, uint8 [B, H, W, C], as float32 [B, C, H, W]."""
        import numpy as np

        mean = np.array(self.mean, np.float32).reshape(-1, 1, 1)
        std = np.array(self.std, np.float32).reshape(-1, 1, 1)
        scaled = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32)  # [B, C, H, W]
        scaled /= np.float32(255)
        scaled -= mean
        scaled /= std
        return scaled

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height after resizing, rounded as torchvision and timm round them."""
        if isinstance(self.resize, int):
            short, long = sorted((width, height))
            new_long = int(self.resize * long / short)
            return (self.resize, new_long) if width <= height else (new_long, self.resize)
        new_height, new_width = self.resize
        if not self.keep_ratio:
            return new_width, new_height
        ratio = min(height / new_height, width / new_width)
        return round(width / ratio), round(height / ratio)


def _crop_centre(image: Image.Image, crop: tuple[int, int]) -> Image.Image:
    """Cut the centre out; PIL fills what lies outside the image with black, as torchvision does."""
    height, width = crop
    left = _crop_start(image.width, width)
    top = _crop_start(image.height, height)
    return image.crop((left, top, left + width, top + height))


def _crop_start(size: int, wanted: int) -> int:
    return -((wanted - size) // 2) if wanted > size else round((size - wanted) / 2)


def resolve_preprocess(model_default: Preprocess, override: SetPreprocess | None) -> Preprocess:
    """Return the model's own preprocessing with what the image set says in its place.

    Raises:
        ImagesError: the set crops to another size than the model's input, resizes to less than it crops,
            or gives three means or deviations to a model that reads grey images.
    """
    if override is None:
        return model_default
    crop = model_default.crop if override.crop is None else _pair(override.crop)
    if crop != model_default.crop:
        raise ImagesError(
            f"preprocess.crop: expected the model's input {_text(model_default.crop)}, got {_text(crop)}."
            " Leave crop out, or give the model another img_size in model.options."
        )
    resize = model_default.resize if override.resize is None else override.resize
    if override.resize is not None and _too_small(override.resize, crop):
        raise ImagesError(
            f"preprocess.resize: {override.resize} is smaller than the model's input {_text(crop)}, so the"
            " border would be black. Resize to at least the input."
        )
    return Preprocess(
        resize=resize,
        crop=crop,
        interpolation=override.interpolation or model_default.interpolation,
        mean=_per_channel("mean", override.mean, model_default.mean),
        std=_per_channel("std", override.std, model_default.std),
        channels=model_default.channels,
        keep_ratio=model_default.keep_ratio and override.resize is None,
    )


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _too_small(resize: int | tuple[int, int], crop: tuple[int, int]) -> bool:
    if isinstance(resize, int):
        return resize < min(crop)
    return resize[0] < crop[0] or resize[1] < crop[1]


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _per_channel(key: str, values: tuple[float, ...] | None, default: tuple[float, ...]) -> tuple[float, ...]:
    if values is None:
        return default
    if len(values) == 1:
        return values * len(default)
    if len(values) != len(default):
        raise ImagesError(f"preprocess.{key}: expected {len(default)} for this model, got {len(values)}.")
    return values


def preprocess_to_json(preprocess: Preprocess) -> dict[str, Any]:
    """Return `preprocess` as JSON data, the same for the same preprocessing."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(preprocess).items()}


def preprocess_from_json(data: Mapping[str, Any]) -> Preprocess:
    """Rebuild a `Preprocess` from `preprocess_to_json` data.

    Raises:
        ValueError: a key is missing or unknown, or a value is not what `Preprocess` takes.
    """
    names = {field.name for field in fields(Preprocess)}
    if data.keys() != names:
        raise ValueError(f"preprocess: expected the keys {sorted(names)}, got {sorted(data)}")
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
    return Preprocess(**values)


def decode_image(data: bytes, channels: int) -> Image.Image:
    """Decode an image file to grey (`channels` 1) or RGB (3), 8 bits.

    The EXIF orientation is applied; an alpha channel is dropped, as timm drops it; palettes are looked up;
    of 16-bit grey values the upper 8 bits are kept; of an animation the first picture is taken.

    Raises:
        ValueError: no image, a truncated or damaged one, or one with 32-bit float pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    # What PIL's decoders raise on damaged files; SyntaxError is how its PNG reader reports a broken chunk.
    damaged = (OSError, SyntaxError, EOFError, struct.error, IndexError, KeyError, TypeError)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except UnidentifiedImageError as error:  # its words name a Python object
        raise ValueError("its bytes are those of no known image format") from error
    except (*damaged, Image.DecompressionBombError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    return _eight_bit(image).convert("L" if channels == 1 else "RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image

    if image.mode == "F":
        raise ValueError("32-bit float pixels have no agreed range; save the image with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8))
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    return image
