"""From image records to what a model reads: decoded and resized one by one, normalised by public constants.

    value = (pixel / peak - mean) / std      peak: 16 for digits, 255 for files; mean, std: the recipe's

Pillow is imported on use.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from dpft.config import DataSection
from dpft.data.images import DIGITS_PEAK, DIGITS_SIDE, ImageRecord
from dpft.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, int, int]  # channels, height, width

MAX_PIXELS = 50_000_000
_BILINEAR = 2  # Pillow's number for it
_FORMATS = ("PNG", "JPEG")
_EIGHT_BITS = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")


class ImageExample(TypedDict):
    """One record as a model takes it, not yet normalised: a byte a pixel keeps many in memory."""

    pixels: NDArray[np.uint8]  # [C, H, W]
    label: int


@dataclass(frozen=True)
class ImageCollator:
    """Stacks examples of one shape and normalises each pixel by the recipe's constants."""

    shape: Shape
    peak: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def for_section(cls, section: DataSection, shape: Shape) -> ImageCollator:
        """The collator of a recipe and a model; InputError for constants that are not one a channel, or one for all."""
        for field in ("mean", "std"):
            if (count := len(getattr(section, field))) not in (1, shape[0]):
                raise InputError(
                    f"data.{field}: expected one number, or one for each of the model's {shape[0]} channels, "
                    f"found {count}."
                )
        return cls(shape, DIGITS_PEAK if section.source == "digits" else 255, section.mean, section.std)

    def __call__(self, examples: Sequence[ImageExample]) -> dict[str, Tensor]:
        """pixel_values [B, C, H, W] float32 and labels [B] int64; B = 0 for an empty list."""
        import torch

        stacked = np.zeros((len(examples), *self.shape), dtype=np.uint8)
        for row, example in zip(stacked, examples, strict=True):
            row[:] = example["pixels"]
        mean, std = (torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
        labels = torch.tensor([example["label"] for example in examples], dtype=torch.int64)
        return {"pixel_values": (torch.from_numpy(stacked) / self.peak - mean) / std, "labels": labels}


def image_examples(records: Sequence[ImageRecord], section: DataSection, shape: Shape) -> Iterator[ImageExample]:
    """Example i is a function of record i, the recipe and the model's shape alone; InputError names its place."""
    read = _digit if section.source == "digits" else _decoded
    return (ImageExample(pixels=read(record, shape), label=record.label) for record in records)


def synthetic_images(count: int, num_labels: int, collate: ImageCollator, seed: int = 0) -> list[ImageExample]:
    """Uniform noise of the right shape, for preflights that must not touch private data."""
    rng = np.random.default_rng(seed)  # needs no secrecy: nothing here is noise or sampling
    pixels = rng.integers(0, int(collate.peak) + 1, size=(count, *collate.shape), dtype=np.uint8)
    return [ImageExample(pixels=image, label=int(rng.integers(num_labels))) for image in pixels]


def _digit(record: ImageRecord, shape: Shape) -> NDArray[np.uint8]:
    """Each pixel becomes a square of equal pixels where the model reads larger images."""
    channels, height, width = shape
    if height % DIGITS_SIDE or width % DIGITS_SIDE:
        raise InputError(
            f"Expected a model whose image_size is a multiple of {DIGITS_SIDE} for digits, found {height} x {width}."
        )
    small = np.frombuffer(record.content, dtype=np.uint8).reshape(DIGITS_SIDE, DIGITS_SIDE)
    large = small.repeat(height // DIGITS_SIDE, axis=0).repeat(width // DIGITS_SIDE, axis=1)
    return np.broadcast_to(large, (channels, height, width))


def _decoded(record: ImageRecord, shape: Shape) -> NDArray[np.uint8]:
    """Decoded, in grey or colour as the model has channels, and resized (bilinear) without keeping its proportions."""
    channels, height, width = shape
    if channels not in (1, 3):
        raise InputError(f"Expected a model of 1 or 3 channels for image files, found {channels}.")
    image_of = _pillow()
    fault = f"is not a PNG or JPEG image of 8 bits a channel and at most {MAX_PIXELS:,} pixels"
    try:
        with image_of.open(io.BytesIO(record.content), formats=_FORMATS) as image:
            if image.mode in _EIGHT_BITS and image.width * image.height <= MAX_PIXELS:
                image = image.convert("L" if channels == 1 else "RGB").resize((width, height), _BILINEAR)
                return np.asarray(image, dtype=np.uint8).reshape(height, width, channels).transpose(2, 0, 1).copy()
    except Exception:  # no closed list: decoders raise their own, OSError, ValueError, SyntaxError
        fault = "can't be decoded"
    raise InputError(f"{record.place}: its image {fault}; convert or remove it.")


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise InputError('Image files need Pillow, which is not installed; pip install "dpft[images]".') from None
    return Image
