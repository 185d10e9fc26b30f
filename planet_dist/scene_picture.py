"""A scene as a small picture in its own colours, with the size of its pixels on the ground and the way to the north.

Suffixes: H, W rows and columns of the picture; B bands; C colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planet_dist.scene_grid import Window
from planet_dist.scene_read import Scene
from planet_dist.scene_shapes import Floats, Projector, coordinates, metres_of
from shards.errors import SceneError

_MOST_SIDE_PIXELS = 800
_BLOCK_PIXELS = 1024  # a side of what is read at a time
_CUT_PERCENT = 2.0  # of the darkest and of the brightest pixels
_GAMMA = 0.6  # forest is dark, and clouds would leave it black


@dataclass(frozen=True)
class Picture:
    """A scene made small.

    Attributes:
        colours_HWC: float32 in [0, 1], red, green, blue; grey where the model's bands have no such names.
        valid_HW: where the scene has data.
        height, width: of the scene in pixels.
        metres_per_pixel: of the scene, at its centre: across and down; None where that is not known.
        north: the way to the north in pixels to the right and down, of length 1; None where that is not known.
    """

    colours_HWC: NDArray[np.float32]
    valid_HW: NDArray[np.bool_]
    height: int
    width: int
    metres_per_pixel: tuple[float, float] | None
    north: tuple[float, float] | None


def take_picture(scene: Scene, projector: Projector) -> Picture:
    """Reads a scene at a size of at most 800 pixels a side.

    Raises:
        SceneError: the file is damaged.
    """
    factor = max(1.0, max(scene.height, scene.width) / _MOST_SIDE_PIXELS)
    rows, columns = (max(1, round(side / factor)) for side in (scene.height, scene.width))
    shape = rows, columns
    row_edges = np.arange(rows + 1) * scene.height // rows
    column_edges = np.arange(columns + 1) * scene.width // columns
    values_HWB = np.zeros((*shape, len(scene.bands.names)), np.float32)
    valid_HW = np.zeros(shape, bool)
    step = max(1, int(_BLOCK_PIXELS / factor))
    for top in range(0, rows, step):
        for left in range(0, columns, step):
            block = slice(top, top + step), slice(left, left + step)
            edges = row_edges[top : top + step + 1], column_edges[left : left + step + 1]
            values_HWB[block], valid_HW[block] = _averaged(scene, *edges)
    chosen = [scene.bands.names.index(name) for name in _shown(scene.bands.names)]
    colours_HWC = np.zeros((*shape, 3), np.float32)
    if valid_HW.any():
        shown_HWC = values_HWB[..., chosen].astype(np.float32)
        low_C, high_C = np.percentile(shown_HWC[valid_HW], [_CUT_PERCENT, 100 - _CUT_PERCENT], axis=0)
        linear_HWC = ((shown_HWC - low_C) / np.maximum(high_C - low_C, 1e-6)).clip(0, 1)
        colours_HWC = (linear_HWC**_GAMMA).astype(np.float32)
    metres, north = _on_the_ground(scene, projector)
    return Picture(colours_HWC, valid_HW, scene.height, scene.width, metres, north)


def _averaged(
    scene: Scene, row_edges: NDArray[np.int64], column_edges: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Means of the pixels with data between edges, float32 (H, W, B), and where there are any."""
    height, width = int(row_edges[-1] - row_edges[0]), int(column_edges[-1] - column_edges[0])
    values_HWB, valid_HW = scene.read(Window(int(row_edges[0]), int(column_edges[0]), height, width))
    starts = row_edges[:-1] - row_edges[0], column_edges[:-1] - column_edges[0]
    counted_HW = np.add.reduceat(np.add.reduceat(valid_HW.astype(np.float32), starts[0], axis=0), starts[1], axis=1)
    kept_HWB = np.where(valid_HW[..., None], values_HWB, 0).astype(np.float32)
    summed_HWB = np.add.reduceat(np.add.reduceat(kept_HWB, starts[0], axis=0), starts[1], axis=1)
    means_HWB: NDArray[np.float32] = (summed_HWB / np.maximum(counted_HW, 1)[..., None]).astype(np.float32)
    return means_HWB, counted_HW > 0


def _shown(names: Sequence[str]) -> tuple[str, str, str]:
    return ("red", "green", "blue") if {"red", "green", "blue"} <= set(names) else (names[0],) * 3


def _on_the_ground(scene: Scene, projector: Projector) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """The size of a pixel at the scene's centre, and the way to the north."""
    row, column = scene.height / 2, scene.width / 2
    pixels_32 = np.array([(column, row), (column + 1, row), (column, row + 1)])
    places_32 = coordinates(scene.source.transform, pixels_32)
    try:
        centre_2, right_2, down_2 = projector.degrees(places_32)
    except SceneError:
        return None, None  # a GeoPackage can be written all the same
    # How longitude and latitude change by a pixel to the right and by one down; the north changes the latitude alone.
    across_2, below_2 = _change(centre_2, right_2), _change(centre_2, down_2)
    north_2 = np.linalg.lstsq(np.stack([across_2, below_2], axis=1), np.array([0.0, 1.0]), rcond=None)[0]
    length = float(np.linalg.norm(north_2))
    metres = metres_of(across_2, centre_2[1]), metres_of(below_2, centre_2[1])
    return metres, (float(north_2[0]) / length, float(north_2[1]) / length) if length else None


def _change(start_2: Floats, end_2: Floats) -> Floats:
    longitude, latitude = end_2 - start_2
    return np.array([(longitude + 180) % 360 - 180, latitude])  # over the antimeridian too
