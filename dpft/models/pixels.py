"""What shape of image an HF model reads, from its configuration."""

from __future__ import annotations

from typing import Any

from dpft.errors import InputError

PIXELS = "pixel_values"
"""What transformers calls the input of a model that reads images."""


def image_shape(config: Any) -> tuple[int, int, int]:
    """(channels, height, width); :class:`InputError` for a configuration that does not say."""
    channels, size = getattr(config, "num_channels", None), getattr(config, "image_size", None)
    if channels is None or size is None or getattr(config, "patch_size", None) is None:
        raise InputError(
            "Expected an image model with num_channels, image_size and patch_size in its configuration, as ViT has; "
            "choose another model.source."
        )
    return int(channels), *_pair(size)


def patches(config: Any) -> int:
    """How many patches the model cuts an image into."""
    _, height, width = image_shape(config)
    down, across = _pair(config.patch_size)
    return (height // down) * (width // across)


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
