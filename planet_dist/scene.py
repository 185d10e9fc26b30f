"""A large georeferenced scene to a map: cut into chips, predicted batch by batch, written as polygons and a quick-look.

    GeoTIFF --windows--> chips --batches--> tags and probabilities of cells --as they come--> map.geojson or map.gpkg
                                                                       \\--one byte a cell--> map.png

Nothing grows with the scene but the quick-look's grid, which has a bound. scene_grid.py says what cells are.

Suffixes: N cells of a batch, C labels, H, W rows and columns, B bands.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planet_dist.bundle import Bundle
from planet_dist.bundle_description import Description
from planet_dist.scene_grid import Cell, Grid, lay_grid
from planet_dist.scene_map import QuickLook, draw_quick_look
from planet_dist.scene_picture import Picture, take_picture
from planet_dist.scene_read import Scene, SceneChip, open_scene
from planet_dist.scene_shapes import Projector
from planet_dist.scene_write import MappedCell, check_suffix, open_map
from shards.errors import ConfigError, RunError, SceneError
from shards.workers import map_in_order

_MOST_CHIP_PIXELS = 4096
_BATCH_BYTES = 64 * 2**20
_FAR_DEVIATIONS = 3.0


@dataclass(frozen=True)
class SceneOptions:
    """What a user says about a scene.

    Attributes:
        bands: such as "red=3,green=2,blue=1", counted from 1, or None where the file's descriptions name them.
        limits: the values that become the least and the greatest of the model's dtype, or None.
        overlap: the least share of a chip's side that neighbouring chips have in common.
        chip: the side of a chip in pixels of the scene, or None for that of the training chips.
        no_data: the value that stands for no data; "file" for what the file says, "none" where all is data.
        most_no_data: a chip is left out where more than this share of it has no data.
    """

    bands: str | None = None
    limits: tuple[float, float] | None = None
    overlap: float = 0.25
    chip: int | None = None
    no_data: float | Literal["file", "none"] = "file"
    most_no_data: float = 0.25


@dataclass
class SceneCounts:
    """What became of a scene's cells and pixels.

    Attributes:
        cells: in all.
        mapped: written, each with a prediction.
        pixels, data_pixels: of the whole scene.
        lost_data_pixels: those with data that lie in cells that were left out.
        values, clipped: of the chips that were predicted, and how many of them --range cut off.
        sum_B: of those values, in the training chips' units, band by band.
    """

    cells: int
    mapped: int = 0
    pixels: int = 0
    data_pixels: int = 0
    lost_data_pixels: int = 0
    values: int = 0
    clipped: int = 0
    sum_B: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))

    @property
    def left_out(self) -> int:
        """Cells without a prediction."""
        return self.cells - self.mapped


@dataclass(frozen=True)
class MappedScene:
    """What was made.

    Attributes:
        map, quick_look: the files.
        lines: for people to read: chips, bands, values, what was left out.
        counts: of cells and pixels.
    """

    map: Path
    quick_look: Path
    lines: list[str]
    counts: SceneCounts


def map_scene(
    bundle: Bundle,
    path: Path,
    out: Path,
    options: SceneOptions,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MappedScene:
    """Predicts a scene and writes its map, and beside it the quick-look of the same name, .png.

    Args:
        bundle: on the device that computes.
        path: of the scene.
        out: .geojson or .json for WGS84, .gpkg for the scene's own coordinates.
        progress: is told how many of how many chips are done.

    Raises:
        SceneError: the scene cannot be used, nothing of it has data, or it doesn't fit the model and the options.
        ConfigError: an option is out of range.
        PlanetError: the map cannot be written. Nothing of it is there then.
    """
    check_suffix(out)
    _check(options)
    quick_look = out.with_suffix(".png")
    if path.resolve() in (out.resolve(), quick_look.resolve()):
        raise SceneError(f"{path}: the map {out} and its quick-look {quick_look} would take its place; rename --out")
    form = bundle.description.image
    with open_scene(path, form, bands=options.bands, limits=options.limits, no_data=options.no_data) as scene:
        height, width = (options.chip, options.chip) if options.chip else (form.height, form.width)
        grid = lay_grid(scene.height, scene.width, height, width, options.overlap)
        projector = Projector(str(path), scene.source.crs, scene.source.transform)
        segments = 1 if out.suffix.lower() == ".gpkg" else projector.segments(grid)
        counts = SceneCounts(grid.count)
        look = QuickLook.of(bundle.description, grid)
        made_by = _made_by(bundle, scene, grid, options)
        with open_map(out, bundle.labels, projector, segments, made_by) as writer:
            # Closed at once when the map cannot be written: the thread that reads must end before the file is closed.
            with closing(_predicted(bundle, scene, grid, options.most_no_data, look, counts, progress)) as batches:
                for cells in batches:
                    look.add(cells)
                    writer.write(cells)
            if not counts.mapped:
                raise SceneError(
                    f"{path}: none of its {counts.cells:,} cells can be predicted: in each more than "
                    f"{options.most_no_data:.0%} of the chip has no data (by {scene.no_data_stated_by}); "
                    "check --nodata and --max-nodata"
                )
            writer.finish()
            picture = take_picture(scene, projector)
            lines = [*_lines(scene, grid, options, counts, picture), *_doubts(bundle.description, counts)]
            draw_quick_look(quick_look, look, picture, path.name, lines)
    return MappedScene(out, quick_look, lines, counts)


def _check(options: SceneOptions) -> None:
    if not 0 <= options.most_no_data < 1:
        raise ConfigError(
            f"--max-nodata {options.most_no_data}: a chip is left out above a share of 0 to 1 without data; "
            "give 0 or more, and less than 1"
        )
    if options.chip is not None and not 1 <= options.chip <= _MOST_CHIP_PIXELS:
        raise ConfigError(f"--chip {options.chip}: a chip has a side of 1 to {_MOST_CHIP_PIXELS} pixels; give that")


def _predicted(
    bundle: Bundle,
    scene: Scene,
    grid: Grid,
    most_no_data: float,
    look: QuickLook,
    counts: SceneCounts,
    progress: Callable[[int, int], None],
) -> Generator[list[MappedCell], None, None]:
    """Batches of cells with their predictions; the next chips are read meanwhile."""
    chip_bytes = grid.chip_height * grid.chip_width * len(scene.bands.numbers) * np.dtype(scene.scaling.target).itemsize
    size = max(1, min(bundle.batch_size, _BATCH_BYTES // chip_bytes))
    done = 0
    # One thread, for a file is read by one thread at a time.
    with ThreadPoolExecutor(1) as pool:
        chips = map_in_order(pool, lambda cell: (cell, scene.chip(cell.chip)), grid.cells(), look_ahead=2 * size)
        kept = _with_data(chips, most_no_data, counts)
        while batch := list(islice(kept, size)):
            yield _answered(bundle, scene, batch, look)
            done = batch[-1][0].row * grid.shape[1] + batch[-1][0].column + 1
            progress(done, grid.count)
    if done < grid.count:
        progress(grid.count, grid.count)


def _with_data(
    chips: Iterator[tuple[Cell, SceneChip]], most_no_data: float, counts: SceneCounts
) -> Iterator[tuple[Cell, SceneChip]]:
    """The chips that can be predicted; all are counted."""
    for cell, chip in chips:
        top, left = cell.pixels.row - cell.chip.row, cell.pixels.column - cell.chip.column
        core_HW = chip.valid_HW[top : top + cell.pixels.height, left : left + cell.pixels.width]
        data = int(np.count_nonzero(core_HW))
        counts.pixels += core_HW.size
        counts.data_pixels += data
        if data == 0 or _no_data_share(chip) > most_no_data:
            counts.lost_data_pixels += data
            continue
        counts.mapped += 1
        counts.values += int(np.count_nonzero(chip.valid_HW)) * chip.pixels_HWB.shape[2]
        counts.clipped += chip.clipped
        counts.sum_B = counts.sum_B + chip.pixels_HWB[chip.valid_HW].sum(axis=0, dtype=np.float64)
        yield cell, chip


def _no_data_share(chip: SceneChip) -> float:
    return 1 - float(np.count_nonzero(chip.valid_HW)) / chip.valid_HW.size


def _answered(
    bundle: Bundle, scene: Scene, batch: Sequence[tuple[Cell, SceneChip]], look: QuickLook
) -> list[MappedCell]:
    try:
        answers = bundle.predict([chip.pixels_HWB for _, chip in batch])
    except RunError as error:
        raise SceneError(f"{scene.path}, from row {batch[0][0].pixels.row} on: {error}") from error
    cells = []
    for (cell, chip), tags, probabilities_C in zip(batch, answers.tags, answers.probabilities_NC, strict=True):
        likely = dict(zip(bundle.labels, probabilities_C, strict=True))
        rarest = next((label for label in look.ground if label in tags), "")
        weather = max((label for label in look.weather if label in tags), key=likely.__getitem__, default="")
        cells.append(MappedCell(cell, tuple(tags), rarest, weather, probabilities_C, _no_data_share(chip)))
    return cells


def _made_by(bundle: Bundle, scene: Scene, grid: Grid, options: SceneOptions) -> dict[str, Any]:
    """What a map's reader needs to make it again."""
    return {
        "program": f"planet-dist {version('planet-dist')}",
        "bundle_sha256": bundle.digest,
        "scene": scene.path.name,
        "bands": str(scene.bands),
        "values": str(scene.scaling),
        "chip_pixels": f"{grid.chip_height}x{grid.chip_width}",
        "overlap": options.overlap,
        "no_data": scene.no_data_stated_by,
        "most_no_data": options.most_no_data,
    }


def _lines(scene: Scene, grid: Grid, options: SceneOptions, counts: SceneCounts, picture: Picture) -> list[str]:
    cell = grid.cell(0, 0).pixels
    ground = ""
    if picture.metres_per_pixel is not None:
        across, down = picture.metres_per_pixel
        ground = f" ({grid.chip_width * across:,.0f} x {grid.chip_height * down:,.0f} m)"
    clipped = f", {counts.clipped / counts.values:.1%} of them clipped" if scene.scaling.limits else ""
    lost = counts.lost_data_pixels / max(counts.data_pixels, 1)
    return [
        f"{counts.mapped:,} of {counts.cells:,} cells of {cell.width}x{cell.height} pixels are mapped, each by the "
        f"chip of {grid.chip_width}x{grid.chip_height} pixels{ground} around it.",
        f"Left out: {counts.left_out:,} cells, because over {options.most_no_data:.0%} of the chip, or all of the "
        f"cell, has no data; {lost:.1%} of the pixels with data lie in them.",
        f"No data: {1 - counts.data_pixels / counts.pixels:.1%} of the pixels, by {scene.no_data_stated_by}.",
        f"Bands: {scene.bands}. Values: {scene.scaling}{clipped}.",
    ]


def _doubts(description: Description, counts: SceneCounts) -> list[str]:
    """What looks as if bands or values were not those that the model knows."""
    values = counts.values / description.image.bands
    far = []
    member = description.members[0]
    for name, total, mean, deviation in zip(
        description.image.band_order, counts.sum_B, member.mean, member.std, strict=True
    ):
        if abs(total / values - mean) > _FAR_DEVIATIONS * deviation:
            far.append(f"{name} {total / values:,.0f} against {mean:,.0f} +- {deviation:,.0f}")
    return (
        [f"Doubtful: means far from the training chips' ({', '.join(far)}); check --bands and --range."] if far else []
    )
