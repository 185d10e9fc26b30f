"""Chips as pictures for people, and pictures as files for a page.

Suffixes: H and W pixels.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.schema import ImageForm

_BRIGHTEST_PERCENTILE = 99.5


def displayed(pixels: NDArray[Any], form: ImageForm) -> NDArray[np.uint8]:
    """A chip as people see it: red, green and blue; 16-bit values are stretched so that few are blown out.

    Args:
        pixels: (H, W, bands) of the form's dtype.

    Returns:
        uint8 (H, W, 3); grey where the form names no red, green and blue.
    """
    named = all(colour in form.band_order for colour in ("red", "green", "blue"))
    bands = [form.band_order.index(colour) for colour in ("red", "green", "blue")] if named else [0, 0, 0]
    rgb = pixels[:, :, bands]
    if rgb.dtype == np.uint8:
        return np.ascontiguousarray(rgb)
    low, high = np.percentile(rgb, [100 - _BRIGHTEST_PERCENTILE, _BRIGHTEST_PERCENTILE])
    scaled = (rgb.astype(np.float64) - low) / max(float(high - low), 1.0)
    stretched: NDArray[np.uint8] = np.clip(scaled * 255, 0, 255).astype(np.uint8)
    return stretched


def webp_bytes(picture: Image.Image, quality: int) -> bytes:
    """A picture as a WebP file.

    Args:
        quality: 0 to 100.
    """
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=quality, method=4)
    return buffer.getvalue()
