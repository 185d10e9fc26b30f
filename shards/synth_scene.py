"""From a label set to pixels: one made chip, in the bands of a TIFF and the colours of a JPEG.

Shape suffixes: H, W rows and columns; B bands of the TIFF (blue, green, red, near-infrared); C colours of the
JPEG (red, green, blue).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.synth_canvas import Canvas
from shards.synth_labels import draw_labels
from shards.synth_land import (
    draw_bare_ground,
    draw_blooming,
    draw_blow_down,
    draw_forest,
    draw_grassland,
    draw_water,
)
from shards.synth_mines import draw_artisinal_mine, draw_conventional_mine, draw_selective_logging
from shards.synth_sky import draw_haze, draw_overcast, draw_scattered_clouds, light
from shards.synth_works import (
    draw_agriculture,
    draw_cultivation,
    draw_habitation,
    draw_roads,
    draw_slash_burn,
)

# The order is that of covering: what is small comes late.
_LAYERS = (
    ("water", draw_water),
    ("agriculture", draw_agriculture),
    ("bare_ground", draw_bare_ground),
    ("conventional_mine", draw_conventional_mine),
    ("artisinal_mine", draw_artisinal_mine),
    ("blow_down", draw_blow_down),
    ("slash_burn", draw_slash_burn),
    ("selective_logging", draw_selective_logging),
    ("road", draw_roads),
    ("cultivation", draw_cultivation),
    ("habitation", draw_habitation),
    ("blooming", draw_blooming),
)

# A digital number is low + linear x + cubic x^3 of a brightness x: the values of real chips, where the lower half
# of the brightness takes a fifth of the range. The atmosphere's own light is the lowest value, most in the blue.
_LOW_B = np.array([3200, 2500, 1400, 1100], np.float32)
_LINEAR_B = np.array([2600, 2700, 2600, 11200], np.float32)
_CUBIC_B = np.array([7200, 7500, 7700, 0], np.float32)


@dataclass(frozen=True)
class Chip:
    """One made chip.

    Attributes:
        labels: sorted.
        rgb_HWC: uint8 (size, size, 3), red, green, blue.
        bands_HWB: uint16 (size, size, 4), blue, green, red, near-infrared, about 1,500 to 13,000.
    """

    labels: tuple[str, ...]
    rgb_HWC: NDArray[np.uint8]
    bands_HWB: NDArray[np.uint16]


def draw_chip(seed: int, index: int, size: int = 256) -> Chip:
    """Chip `index` of the made set `seed`: a pure function of its arguments.

    Args:
        seed: 0 or more.
        index: 0 or more.
        size: side in pixels, 32 or more.
    """
    rng = np.random.default_rng([seed, index])
    labels = draw_labels(rng)
    return draw_scene(labels, size, rng)


def draw_scene(labels: Collection[str], size: int, rng: np.random.Generator) -> Chip:
    """Draws what a label set names, and nothing else that has a label.

    Args:
        labels: of the Planet vocabulary, one weather label among them.
        size: side in pixels, 32 or more.
        rng: the source of all variation.
    """
    # A generator for each layer: one label more leaves the layers below it, and the sky, as they were.
    ground_rng, sky_rng, grain_rng, *layer_rngs = rng.spawn(3 + len(_LAYERS))
    canvas = Canvas(size, labels, ground_rng)
    if "cloudy" in labels:
        draw_overcast(canvas)
        canvas.rng = sky_rng
        light(canvas)
    else:
        (draw_forest if "primary" in labels else draw_grassland)(canvas)
        for (label, draw), layer_rng in zip(_LAYERS, layer_rngs, strict=True):
            if label in labels:
                canvas.rng = layer_rng
                draw(canvas)
        canvas.rng = sky_rng
        light(canvas)
        if "haze" in labels:
            draw_haze(canvas)
        if "partly_cloudy" in labels:
            draw_scattered_clouds(canvas)
    grain = grain_rng.standard_normal(canvas.bands_KHW.shape, dtype=np.float32)
    shown = (canvas.bands_KHW + np.float32(0.008) * grain).clip(0, 1)
    rgb = (shown[:3].transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)
    x = shown[[2, 1, 0, 3]].transpose(1, 2, 0)
    numbers = _LOW_B + x * (_LINEAR_B + _CUBIC_B * x * x)
    return Chip(tuple(sorted(labels)), np.ascontiguousarray(rgb), np.ascontiguousarray(numbers.astype(np.uint16)))
