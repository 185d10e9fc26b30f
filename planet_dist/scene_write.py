"""A map as it is made, cell by cell: GeoJSON (RFC 7946, WGS84) or GeoPackage (the scene's own coordinates).

What is written lies in a hidden folder beside the map until the last cell is there; then one rename puts it in place.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

from planet_dist.scene_grid import Cell
from planet_dist.scene_shapes import Projector, rings
from shards.errors import PlanetError, SceneError
from shards.schema import sync_folder

LAYER = "cells"
SUFFIXES = (".geojson", ".json", ".gpkg")
_DECIMALS = 6  # of a probability
_CELLS_A_WRITE = 2_000


@dataclass(frozen=True)
class MappedCell:
    """One cell with its prediction.

    Attributes:
        tags: the labels that the model's rule decides.
        rarest_tag: of the tags that are no weather the one that fewest training chips bear, or "".
        weather: the likeliest tag of the vocabulary's first group of labels that exclude each other, or "".
        probabilities_C: float64, of every label.
        no_data_share: of the chip's pixels.
    """

    cell: Cell
    tags: tuple[str, ...]
    rarest_tag: str
    weather: str
    probabilities_C: NDArray[np.float64]
    no_data_share: float


class MapWriter(Protocol):
    """What takes cells; nothing is kept of those that it has written."""

    def write(self, cells: Sequence[MappedCell]) -> None:
        """Adds cells."""

    def finish(self) -> None:
        """Writes what is left, so that the file is whole."""


@contextmanager
def open_map(
    path: Path, labels: Sequence[str], projector: Projector, segments: int, made_by: Mapping[str, Any]
) -> Iterator[MapWriter]:
    """A map to write to; when the block ends without an error, after `finish`, it stands at `path`.

    Args:
        path: ends with .geojson, .json or .gpkg; a map that stands there is replaced.
        labels: the order of probabilities.
        projector: of the scene.
        segments: pieces of each side of a cell in WGS84.
        made_by: what made the map, which is written into it.

    Raises:
        SceneError: another ending.
        PlanetError: it cannot be written.
    """
    check_suffix(path)
    aside = path.with_name(f".{path.name}.tmp")
    whole = aside / path.name
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
        aside.mkdir()
        if path.suffix.lower() == ".gpkg":
            package = _GeoPackage(whole, tuple(labels), projector, made_by)
            yield package
        else:
            with whole.open("w", encoding="utf-8") as file:
                text = _GeoJson(file, tuple(labels), projector, segments)
                text.begin(made_by)
                yield text
        with whole.open("rb") as written:
            os.fsync(written.fileno())
        whole.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise PlanetError(f"{path}: cannot be written ({error}); free some space or give another --out") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_suffix(path: Path) -> None:
    """Raises SceneError unless the name says which kind of map it is."""
    if path.suffix.lower() not in SUFFIXES:
        raise SceneError(
            f"{path}: a scene's map is GeoJSON (.geojson, .json) in WGS84 or GeoPackage (.gpkg) in the scene's own "
            "coordinates; give an --out that ends so"
        )


def _properties(mapped: MappedCell, labels: Sequence[str]) -> dict[str, Any]:
    pixels = mapped.cell.pixels
    probabilities = {
        f"p_{label}": round(float(p), _DECIMALS) for label, p in zip(labels, mapped.probabilities_C, strict=True)
    }
    return {
        "tags": " ".join(mapped.tags),
        "rarest_tag": mapped.rarest_tag,
        **probabilities,
        "no_data": round(mapped.no_data_share, _DECIMALS),
        "row": pixels.row,
        "column": pixels.column,
        "height": pixels.height,
        "width": pixels.width,
    }


@dataclass
class _GeoJson:
    file: TextIO
    labels: tuple[str, ...]
    projector: Projector
    segments: int
    started: bool = False

    def begin(self, made_by: Mapping[str, Any]) -> None:
        head = json.dumps({"type": "FeatureCollection", "made_by": made_by}, ensure_ascii=False, allow_nan=False)
        self.file.write(f'{head[:-1]}, "features": [')

    def write(self, cells: Sequence[MappedCell]) -> None:
        rings_NV2 = rings(self.projector.transform, [one.cell.pixels for one in cells], self.segments)
        for mapped, geometry in zip(cells, self.projector.geometries(rings_NV2), strict=True):
            feature = {"type": "Feature", "geometry": geometry, "properties": _properties(mapped, self.labels)}
            text = json.dumps(feature, ensure_ascii=False, allow_nan=False)
            self.file.write(f"{',' if self.started else ''}\n{text}")
            self.started = True

    def finish(self) -> None:
        self.file.write("\n]}\n")
        self.file.flush()


@dataclass
class _GeoPackage:
    path: Path
    labels: tuple[str, ...]
    projector: Projector
    made_by: Mapping[str, Any]
    waiting: list[MappedCell] = field(default_factory=list)

    def write(self, cells: Sequence[MappedCell]) -> None:
        self.waiting += cells
        if len(self.waiting) >= _CELLS_A_WRITE:
            self._append(self.waiting)
            self.waiting = []

    def finish(self) -> None:
        self._append(self.waiting)
        self.waiting = []

    def _append(self, cells: Sequence[MappedCell]) -> None:
        if not cells:
            return
        from pyogrio import raw
        from pyogrio.errors import DataSourceError, FeatureError, GeometryError

        rows = [_properties(mapped, self.labels) for mapped in cells]
        rings_NV2 = rings(self.projector.transform, [one.cell.pixels for one in cells])
        columns = [np.array([row[name] for row in rows], _column_type(rows[0][name])) for name in rows[0]]
        first = not self.path.exists()
        about = {"layer_metadata": {key: str(value) for key, value in self.made_by.items()}} if first else {}
        try:
            raw.write(
                self.path,
                np.array([_well_known_binary(ring_V2) for ring_V2 in rings_NV2], object),
                columns,
                list(rows[0]),
                layer=LAYER,
                driver="GPKG",
                geometry_type="Polygon",
                crs=self.projector.crs.to_wkt(),
                append=not first,
                **about,
            )
        except (DataSourceError, FeatureError, GeometryError) as error:
            raise OSError(str(error)) from error


def _column_type(value: Any) -> Any:
    return {str: object, int: np.int64, float: np.float64}[type(value)]


def _well_known_binary(ring_V2: NDArray[np.float64]) -> bytes:
    """A polygon of one outline, little-endian: byte order, type 3, one ring, its vertices."""
    return struct.pack("<BIII", 1, 3, 1, len(ring_V2)) + ring_V2.astype("<f8").tobytes()
