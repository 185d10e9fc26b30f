"""Cells as polygons: in the scene's own coordinates, and in WGS84 as RFC 7946 wants them.

Suffixes: N cells, V vertices of a ring (the last is the first again), 2 coordinates (east and north, or longitude and
latitude).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planet_dist.scene_grid import Grid, Window
from shards.errors import SceneError

Floats = NDArray[np.float64]

_WGS84 = "EPSG:4326"
_DECIMALS = 7  # of a degree: a centimetre
_MOST_SAG_PIXELS = 0.05
_MOST_SEGMENTS = 64
_SEMI_MAJOR_METRES, _ECCENTRICITY_SQUARED = 6_378_137.0, 6.69437999014e-3  # of WGS84


def rings(transform: Any, windows: Sequence[Window], segments: int = 1) -> Floats:
    """The outlines of windows, counterclockwise on the map, whichever way the pixels run.

    Args:
        transform: affine, from (column, row) of pixel corners to the scene's coordinates.
        segments: pieces of each side.

    Returns:
        float64 (N, 4 * segments + 1, 2).
    """
    box_N4 = np.array([(w.row, w.column, w.row + w.height, w.column + w.width) for w in windows], np.float64)
    top_N, left_N, bottom_N, right_N = box_N4.T
    corners_N52 = np.stack(
        [(left_N, top_N), (left_N, bottom_N), (right_N, bottom_N), (right_N, top_N), (left_N, top_N)], axis=0
    ).transpose(2, 0, 1)
    if transform.determinant > 0:
        corners_N52 = corners_N52[:, ::-1]
    share_S1 = np.arange(segments)[:, None] / segments
    start_N4S2, end_N4S2 = corners_N52[:, :-1, None], corners_N52[:, 1:, None]
    sides_N4S2 = start_N4S2 + share_S1 * (end_N4S2 - start_N4S2)
    pixels_NV2 = np.concatenate([sides_N4S2.reshape(len(windows), -1, 2), corners_N52[:, :1]], axis=1)
    return coordinates(transform, pixels_NV2)


def coordinates(transform: Any, pixels_N2: Floats) -> Floats:
    """Where places in pixels, column before row, lie in the scene's coordinates; any shape (..., 2)."""
    x_N, y_N = pixels_N2[..., 0], pixels_N2[..., 1]
    east_N = transform.c + transform.a * x_N + transform.b * y_N
    north_N = transform.f + transform.d * x_N + transform.e * y_N
    return np.stack([east_N, north_N], axis=-1)


@dataclass(frozen=True)
class Projector:
    """From a scene's coordinates to longitude and latitude.

    Args:
        where: the scene's name, for errors.
        crs: the scene's.
        transform: the scene's.
    """

    where: str
    crs: Any
    transform: Any

    def degrees(self, points_N2: Floats) -> Floats:
        """Longitudes and latitudes of points in the scene's coordinates.

        Raises:
            SceneError: there is no way from the one to the other.
        """
        from rasterio.warp import transform

        try:
            lon, lat = transform(self.crs, _WGS84, *points_N2.T.tolist())
        except Exception as error:  # GDAL's errors come through as classes without a public name
            raise self._unmappable(str(error)) from error
        degrees_N2 = np.array([lon, lat]).T
        if not np.isfinite(degrees_N2).all():
            raise self._unmappable("its coordinates have no place there")
        return degrees_N2

    def segments(self, grid: Grid) -> int:
        """Into how many pieces a cell's side is cut, so that straight lines in degrees stray 0.05 pixels at most.

        One number for the whole scene: neighbours then share their vertices.

        Raises:
            SceneError: as for degrees.
        """
        rows, columns = (np.linspace(0, count - 1, min(count, 9)).astype(int) for count in grid.shape)
        windows = [grid.cell(int(row), int(column)).pixels for row in rows for column in columns]
        halves_NV2 = rings(self.transform, windows, segments=2)
        degrees_NV2 = self.degrees(halves_NV2.reshape(-1, 2)).reshape(halves_NV2.shape)
        start_N42, middle_N42, end_N42 = degrees_NV2[:, 0:-1:2], degrees_NV2[:, 1::2], degrees_NV2[:, 2::2]
        side_N4 = np.linalg.norm(end_N42 - start_N42, axis=-1)
        sag_N4 = np.linalg.norm(middle_N42 - (start_N42 + end_N42) / 2, axis=-1)
        longest = max(max(window.height, window.width) for window in windows)
        plain_N4 = (side_N4 > 0) & (np.ptp(degrees_NV2[..., 0], axis=1) < 180)[:, None]  # not over the antimeridian
        sag_pixels = float(np.max(np.divide(sag_N4, side_N4, out=np.zeros_like(sag_N4), where=plain_N4))) * longest
        return min(max(1, math.ceil(math.sqrt(sag_pixels / _MOST_SAG_PIXELS))), _MOST_SEGMENTS)

    def geometries(self, rings_NV2: Floats) -> list[dict[str, Any]]:
        """GeoJSON geometries: longitude before latitude, counterclockwise, cut in two at the antimeridian.

        Raises:
            SceneError: as for degrees.
        """
        from rasterio.warp import transform_geom

        shapes = [{"type": "Polygon", "coordinates": [ring]} for ring in rings_NV2.tolist()]
        try:
            turned = transform_geom(self.crs, _WGS84, shapes, precision=_DECIMALS)
        except Exception as error:  # as above
            raise self._unmappable(str(error)) from error
        return [_tidied(shape) for shape in turned]

    def _unmappable(self, reason: str) -> SceneError:
        return SceneError(
            f"{self.where}: cannot be brought to longitude and latitude ({reason[:100]}); check its coordinate "
            "reference system by gdalinfo, or give --out FILE.gpkg, which keeps the scene's own"
        )


def metres_of(change_2: Floats, latitude: float) -> float:
    """The length on WGS84's ellipsoid of a small change of longitude and latitude, all in degrees."""
    flatter = 1 - _ECCENTRICITY_SQUARED * math.sin(math.radians(latitude)) ** 2
    east = _SEMI_MAJOR_METRES / math.sqrt(flatter) * math.cos(math.radians(latitude))
    north = _SEMI_MAJOR_METRES * (1 - _ECCENTRICITY_SQUARED) / flatter**1.5
    return math.hypot(east * math.radians(change_2[0]), north * math.radians(change_2[1]))


def _tidied(shape: dict[str, Any]) -> dict[str, Any]:
    """Without vertices that stand twice in a row, and each outline counterclockwise."""
    if shape["type"] == "Polygon":
        return {"type": "Polygon", "coordinates": [_tidied_ring(shape["coordinates"][0])]}
    parts = [[_tidied_ring(part[0])] for part in shape["coordinates"]]
    return {"type": "MultiPolygon", "coordinates": parts}


def _tidied_ring(ring: Sequence[Sequence[float]]) -> list[list[float]]:
    points = [list(ring[0]), *(list(b) for a, b in pairwise(ring) if tuple(a) != tuple(b))]
    area = sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(points))
    return points if area > 0 else points[::-1]
