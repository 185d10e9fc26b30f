"""A large made scene of known places, mapped by the command: are the polygons there, how fast, in how much memory.

    python benchmarks/scene.py [--side 10000] [--bundle RUN/bundle] [--keep DIR]

A GeoTIFF of side x side pixels, 4 bands, uint16, is drawn from made chips: forest, and in it rivers, fields, a cloud
and haze, at places that no grid knows of, with a corner that has no data. Without --bundle a small-resnet is trained on
other made chips first (some minutes). Then `planet-dist predict BUNDLE --scene` runs as a process of its own, and its
GeoJSON is read back with json, shapely and pyproj, none of which the program uses to make it.

Exits with status 1 unless the polygons are where the places are and the command stayed below 2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rich.console import Console
from rich.table import Table

from shards.synth_scene import draw_scene

CHIP = 256
VARIANTS = 12  # of chips for each kind of place
PIXEL_METRES = 3.0
CRS = "EPSG:32720"
LEFT, TOP = 500_000.0, 9_600_000.0
MOST_BYTES = 2e9
LEAST_FOUND, MOST_FALSE = 0.95, 0.05
# The file's bands, and which of the drawn ones (blue, green, red, near-infrared) they are.
BANDS, DRAWN = "red=1,green=2,blue=3,near_infrared=4", [2, 1, 0, 3]
BACKGROUND = ("clear", "primary")
RECIPE = ["--recipe", "small-resnet-32", "data.kind=tif", "data.split=tail:200", "evaluate.turns=1"]
RECIPE += ["phases.0.epochs=25", "phases.0.batch_size=50"]


@dataclass(frozen=True)
class Place:
    """A rectangle of one kind: its labels, the one to look for, and where it lies in shares of the scene's side."""

    name: str
    labels: tuple[str, ...]
    sought: str
    row: float
    column: float
    height: float
    width: float

    def box(self, side: int) -> tuple[int, int, int, int]:
        """First row and column, rows and columns of pixels."""
        row, column, height, width = (round(side * part) for part in (self.row, self.column, self.height, self.width))
        return row, column, height, width

    def outline(self, side: int) -> shapely.Geometry:
        """In the scene's coordinates."""
        row, column, height, width = self.box(side)
        return shapely.box(
            LEFT + PIXEL_METRES * column,
            TOP - PIXEL_METRES * (row + height),
            LEFT + PIXEL_METRES * (column + width),
            TOP - PIXEL_METRES * row,
        )


PLACES = (
    Place("rivers", ("clear", "primary", "water"), "water", 0.113, 0.087, 0.25, 0.31),
    Place("fields", ("agriculture", "clear", "primary"), "agriculture", 0.507, 0.153, 0.33, 0.27),
    Place("cloud", ("cloudy",), "cloudy", 0.071, 0.613, 0.21, 0.29),
    Place("haze", ("haze", "primary"), "haze", 0.541, 0.579, 0.27, 0.31),
)


class Drawing:
    """Made chips of a kind, tiled in random order and turned at random, for any rectangle."""

    def __init__(self, labels: tuple[str, ...], seed: int) -> None:
        self._seed = seed
        rngs = (np.random.default_rng([seed, number]) for number in range(VARIANTS))
        self._chips = [draw_scene(labels, CHIP, rng).bands_HWB for rng in rngs]

    def rows(self, row: int, width: int) -> NDArray[np.uint16]:
        """One row of tiles, (256, width, 4): a function of its number alone."""
        rng = np.random.default_rng([self._seed, 1_000_000 + row])
        tiles = []
        for _ in range(-(-width // CHIP)):
            chip_HWB = np.rot90(self._chips[rng.integers(VARIANTS)], rng.integers(4))
            tiles.append(chip_HWB[:, ::-1] if rng.integers(2) else chip_HWB)
        return np.concatenate(tiles, axis=1)[:, :width]


def strips(side: int) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """The scene from above to below: first row, and (rows, side, 4) of the drawn bands; 0 is no data."""
    background = Drawing(BACKGROUND, 100)
    drawings = [(place.box(side), Drawing(place.labels, 101 + number)) for number, place in enumerate(PLACES)]
    for top in range(0, side, CHIP):
        strip_HWB = background.rows(top // CHIP, side)[: min(CHIP, side - top)].copy()
        for (row, column, height, width), drawing in drawings:
            for tile in range(-(-height // CHIP)):
                start, end = row + tile * CHIP, min(row + (tile + 1) * CHIP, row + height)
                first, last = max(start, top), min(end, top + len(strip_HWB))
                if first < last:
                    rows_HWB = drawing.rows(tile, width)[first - start : last - start]
                    strip_HWB[first - top : last - top, column : column + width] = rows_HWB
        # A swath's slanting edge.
        cut_H = (0.2 * side - 0.25 * np.arange(top, top + len(strip_HWB))).clip(0).astype(int)
        for number, cut in enumerate(cut_H):
            strip_HWB[number, side - cut :] = 0
        yield top, strip_HWB


def draw(path: Path, side: int) -> None:
    """Writes the scene, strip by strip."""
    form: Any = {"driver": "GTiff", "height": side, "width": side, "count": 4, "dtype": "uint16", "nodata": 0}
    tiled: Any = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "zlevel": 1}
    place = from_origin(LEFT, TOP, PIXEL_METRES, PIXEL_METRES)
    with rasterio.open(path, "w", **form, **tiled, crs=CRS, transform=place) as file:
        for top, strip_HWB in strips(side):
            window = rasterio.windows.Window(0, top, side, len(strip_HWB))
            file.write(np.moveaxis(strip_HWB[..., DRAWN], -1, 0), window=window)


def train(folder: Path) -> Path:
    """A bundle trained on made chips that the scene does not show."""
    script = Path(__file__).parent.parent / "planet_dist" / "train.py"
    launch = Path(__file__).parent.parent / "launch" / "cpu.yaml"
    chips, dataset, run = folder / "chips", folder / "dataset", folder / "run"
    for command in (
        ["planet-shard", "synth", "--out", chips, "--count", "1000", "--kind", "tif", "--seed", "1"],
        ["planet-shard", "build", "--images", chips / "train-tif", "--labels", chips / "train.csv", "--out", dataset],
        ["accelerate", "launch", "--config_file", launch, script, "--data", dataset, "--out", run, *RECIPE],
    ):
        subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)
    return run / "bundle"


def measure(command: list[str]) -> tuple[float, int]:
    """Runs a command; its seconds, and the most bytes that it held at once."""
    started = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with status {process.returncode}")
    return time.monotonic() - started, usage.ru_maxrss * 1024


@dataclass(frozen=True)
class Found:
    """How the polygons agree with a place: cells whose chip lies in it, and cells whose chip lies in none."""

    place: Place
    inside: int
    inside_tagged: int
    outside: int
    outside_tagged: int

    @property
    def good(self) -> bool:
        """Whether the place is where it belongs."""
        return (
            self.inside > 0
            and self.inside_tagged >= LEAST_FOUND * self.inside
            and self.outside_tagged <= MOST_FALSE * self.outside
        )


def compare(path: Path, side: int) -> tuple[list[Found], float, float]:
    """Holds the map against the places.

    Returns:
        For each place what was found; the area of the polygons, in shares of the scene; the share of it that two
        polygons claim.
    """
    turn = pyproj.Transformer.from_crs("EPSG:4326", CRS, always_xy=True)
    features = json.loads(path.read_text())["features"]
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in features]
    shapes = [shapely.transform(one, lambda points: np.column_stack(turn.transform(*points.T))) for one in shapes]
    tags = [set(feature["properties"]["tags"].split()) for feature in features]
    outlines = [place.outline(side) for place in PLACES]
    # A chip reaches half its diagonal from the middle of its cell; at the scene's edge it's moved by up to 32 pixels.
    chips = [shape.centroid.buffer(PIXEL_METRES * (CHIP / 2**0.5 + 32)) for shape in shapes]
    nowhere = [not any(outline.intersects(chip) for outline in outlines) for chip in chips]
    found = []
    for place, outline in zip(PLACES, outlines, strict=True):
        tagged = [place.sought in one for one in tags]
        inside = [outline.contains(chip) for chip in chips]
        found.append(
            Found(
                place,
                sum(inside),
                sum(a and b for a, b in zip(inside, tagged, strict=True)),
                sum(nowhere),
                sum(a and b for a, b in zip(nowhere, tagged, strict=True)),
            )
        )
    whole, area = (side * PIXEL_METRES) ** 2, sum(shape.area for shape in shapes)
    return found, area / whole, (area - shapely.union_all(shapes).area) / whole


def main() -> None:
    """Draws, trains where needed, measures, compares, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10_000)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder for the scene and the map, instead of a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bundle = given.bundle or train(Path(temporary))
        scene, out = folder / "made-scene.tif", folder / "map.geojson"
        draw(scene, given.side)
        command = ["planet-dist", "predict", str(bundle), "--scene", str(scene), "--bands", BANDS, "--out", str(out)]
        seconds, held_bytes = measure(command)
        found, area, doubled = compare(out, given.side)
        cells = len(json.loads(out.read_text())["features"])
        sizes = scene.stat().st_size, out.stat().st_size, out.with_suffix(".png").stat().st_size
    table = Table(title=f"{given.side:,} x {given.side:,} pixels, 4 bands, uint16", show_header=False)
    table.add_row("place: cells inside with its tag", "")
    for one in found:
        shares = f"{one.inside_tagged} of {one.inside}; elsewhere {one.outside_tagged} of {one.outside}"
        table.add_row(
            f"  {one.place.name} ({one.place.sought})", f"{shares}{'' if one.good else '  NOT WHERE IT BELONGS'}"
        )
    table.add_row("polygons", f"{cells:,}, {area:.1%} of the scene, {doubled:.1e} of it twice")
    table.add_row("time", f"{seconds:.0f} s, {cells / seconds:.0f} chips/s")
    table.add_row("most memory at once", f"{held_bytes / 1e9:.2f} GB")
    table.add_row("scene, map, quick-look", ", ".join(f"{size / 1e6:.1f} MB" for size in sizes))
    table.add_row("machine", f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    Console().print(table)
    if held_bytes > MOST_BYTES or doubled > 1e-6 or not all(one.good for one in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
