"""What the search for related chips keeps of every chip: a digest, a small picture, and its four edges.

Pixels count in standard deviations of their band over the dataset, so that one set of thresholds serves 8-bit JPEG
and 16-bit TIFF.

Letters in array names: N chips, H rows, W columns, C bands, S the four sides, F an edge's points times its bands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.reader import Dataset
from shards.workers import map_in_order

Floats = NDArray[np.float32]

SMALL_SIDE: Final = 32  # pixels of the small picture
EDGE_POINTS: Final = 32  # of an edge; fewer where the chip's side is shorter
SIDES: Final = ("top", "bottom", "left", "right")
OUTWARD: Final = 0.25  # rows by which an edge is carried on beyond the chip, towards the border with a neighbour
_CHUNK = 256


@dataclass(frozen=True)
class Edges:
    """One edge of every chip.

    Attributes:
        line_NF: float32 (N, F), the outermost row or column carried on outward.
        step_N: float32 (N,), the squared distance between that row, as it is, and the one behind it.
        points: of an edge; F is these times the bands.
    """

    line_NF: Floats
    step_N: Floats
    points: int


@dataclass(frozen=True)
class Views:
    """All chips as the search sees them.

    Attributes:
        digests: of the decoded pixels, 16 bytes each.
        small_NHW: float32 (N, 32, 32), the mean of the bands, shrunk by averaging.
        edges: per side; those that can meet have equal points.
    """

    digests: list[bytes]
    small_NHW: Floats
    edges: dict[str, Edges]


def view_chips(
    dataset: Dataset, ids: Sequence[int], workers: int, progress: Callable[[int], None] = lambda done: None
) -> Views:
    """Decodes chips, each once, and keeps what the search needs of them.

    Args:
        ids: in the order of the result.
        workers: threads that decode.
        progress: called with the chips done.

    Raises:
        DatasetError: a chip is damaged.
    """
    camera = _Camera(dataset)
    views = camera.blank(len(ids))
    chunks = [range(start, min(start + _CHUNK, len(ids))) for start in range(0, len(ids), _CHUNK)]

    def shoot(chunk: range) -> list[bytes]:
        return [camera.shoot(ids[place], place, views) for place in chunk]

    with ThreadPoolExecutor(workers) as pool:
        for digests in map_in_order(pool, shoot, chunks, 2 * workers):
            views.digests.extend(digests)
            progress(len(views.digests))
    return views


class _Camera:
    """Takes the views of one dataset's chips."""

    def __init__(self, dataset: Dataset) -> None:
        form = dataset.manifest.image
        self._dataset, self._bands = dataset, form.bands
        # A band that is the same everywhere tells nothing, and must not be divided by.
        self._scale_C = np.array([1 / std if std > 0 else 0.0 for std in dataset.manifest.std], np.float32)
        self._shrink = averaging(form.height, SMALL_SIDE), averaging(form.width, SMALL_SIDE)
        self._down, self._across = (averaging(side, min(EDGE_POINTS, side)) for side in (form.height, form.width))

    def blank(self, count: int) -> Views:
        """Views of so many chips, to be filled in."""
        edges = {}
        for side in SIDES:
            points = len(self._across if side in ("top", "bottom") else self._down)
            line_NF = np.zeros((count, points * self._bands), np.float32)
            edges[side] = Edges(line_NF, np.zeros(count, np.float32), points)
        return Views([], np.zeros((count, SMALL_SIDE, SMALL_SIDE), np.float32), edges)

    def shoot(self, chip_id: int, place: int, views: Views) -> bytes:
        """Fills in the views of a chip, and gives its digest."""
        pixels_HWC = self._dataset.pixels(chip_id)
        down, across = self._shrink
        gray_HW = np.dot(pixels_HWC.astype(np.float32), self._scale_C / np.float32(self._bands))
        views.small_NHW[place] = down @ gray_HW @ across.T
        columns_WHC = pixels_HWC.swapaxes(0, 1)
        for side, shrink, lines in (
            ("top", self._across, pixels_HWC[:2]),
            ("bottom", self._across, pixels_HWC[:-3:-1]),
            ("left", self._down, columns_WHC[:2]),
            ("right", self._down, columns_WHC[:-3:-1]),
        ):
            outer_PC, inner_PC = (shrink @ (line * self._scale_C) for line in (lines[0], lines[-1]))
            views.edges[side].line_NF[place] = (outer_PC + OUTWARD * (outer_PC - inner_PC)).reshape(-1)
            views.edges[side].step_N[place] = ((outer_PC - inner_PC) ** 2).sum()
        return xxhash.xxh3_128_digest(np.ascontiguousarray(pixels_HWC).data)


def averaging(length: int, points: int) -> Floats:
    """The matrix (points, length) that averages a line of pixels over equal stretches, parts of pixels included."""
    ends = np.arange(points + 1) * (length / points)
    pixels = np.arange(length)
    first, last = ends[:-1, None], ends[1:, None]
    covered = np.minimum(last, pixels + 1) - np.maximum(first, pixels)
    weights: Floats = (np.clip(covered, 0, None) * (points / length)).astype(np.float32)
    return weights
