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

from shards.pixels import Pixels
from shards.reader import Dataset
from shards.workers import map_in_order

Floats = NDArray[np.float32]

SMALL_SIDE: Final = 32  # pixels of the small picture
EDGE_POINTS: Final = 64  # of an edge; fewer where the chip's side is shorter
SIDES: Final = ("top", "bottom", "left", "right")
OUTWARD: Final = 0.25  # rows by which an edge is carried on beyond the chip, towards the border with a neighbour
_CHUNK = 256


@dataclass(frozen=True)
class Views:
    """All chips as the search sees them.

    Attributes:
        digests: of the decoded pixels, 16 bytes each.
        small_NHW: float32 (N, 32, 32), the mean of the bands, shrunk by averaging.
        edges: per side float32 (N, F), the chip's outermost row or column carried on outward; left and right edges
            have equal F, top and bottom too.
        edge_points: per side the points of an edge; F is these times the bands.
    """

    digests: list[bytes]
    small_NHW: Floats
    edges: dict[str, Floats]
    edge_points: dict[str, int]


def view_chips(
    dataset: Dataset, ids: Sequence[int], workers: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> Views:
    """Decodes chips, each once, and keeps what the search needs of them.

    Args:
        ids: in the order of the result.
        workers: threads that decode.
        progress: called with the chips done and their number.

    Raises:
        DatasetError: a chip is damaged.
    """
    camera = _Camera(dataset)
    count = len(ids)
    digests: list[bytes] = []
    small_NHW = np.empty((count, SMALL_SIDE, SMALL_SIDE), np.float32)
    edges = {side: np.empty((count, length), np.float32) for side, length in camera.edge_lengths().items()}
    chunks = [ids[start : start + _CHUNK] for start in range(0, count, _CHUNK)]
    progress(0, count)
    dataset.prefetch(ids)
    with ThreadPoolExecutor(workers) as pool:
        for chunk_digests, chunk_small, chunk_edges in map_in_order(pool, camera.shoot, chunks, 2 * workers):
            place = slice(len(digests), len(digests) + len(chunk_digests))
            digests += chunk_digests
            small_NHW[place] = chunk_small
            for side in SIDES:
                edges[side][place] = chunk_edges[side]
            progress(len(digests), count)
    points = {side: edges[side].shape[1] // dataset.manifest.image.bands for side in SIDES}
    return Views(digests, small_NHW, edges, points)


class _Camera:
    """Takes the views of one dataset's chips."""

    def __init__(self, dataset: Dataset) -> None:
        form = dataset.manifest.image
        self._dataset, self._bands = dataset, form.bands
        # A band that is the same everywhere tells nothing, and must not be divided by.
        self._scale_C = np.array([1 / std if std > 0 else 0.0 for std in dataset.manifest.std], np.float32)
        self._shrink = averaging(form.height, SMALL_SIDE), averaging(form.width, SMALL_SIDE)
        self._along = (
            averaging(form.width, min(EDGE_POINTS, form.width)),
            averaging(form.height, min(EDGE_POINTS, form.height)),
        )

    def edge_lengths(self) -> dict[str, int]:
        across, down = (len(rows) * self._bands for rows in self._along)
        return {"top": across, "bottom": across, "left": down, "right": down}

    def shoot(self, ids: Sequence[int]) -> tuple[list[bytes], Floats, dict[str, Floats]]:
        digests = []
        small_NHW = np.empty((len(ids), SMALL_SIDE, SMALL_SIDE), np.float32)
        edges = {side: np.empty((len(ids), length), np.float32) for side, length in self.edge_lengths().items()}
        for place, chip_id in enumerate(ids):
            pixels_HWC = self._dataset.pixels(chip_id)
            digests.append(xxhash.xxh3_128_digest(np.ascontiguousarray(pixels_HWC).data))
            down, across = self._shrink
            gray_HW = (pixels_HWC @ (self._scale_C / self._bands)).astype(np.float32)
            small_NHW[place] = down @ gray_HW @ across.T
            for side, line in self._edges(pixels_HWC).items():
                edges[side][place] = line
        return digests, small_NHW, edges

    def _edges(self, pixels_HWC: Pixels) -> dict[str, Floats]:
        across, down = self._along
        columns_WHC = pixels_HWC.swapaxes(0, 1)
        return {
            "top": self._carried_on(across, pixels_HWC[:2]),
            "bottom": self._carried_on(across, pixels_HWC[:-3:-1]),
            "left": self._carried_on(down, columns_WHC[:2]),
            "right": self._carried_on(down, columns_WHC[:-3:-1]),
        }

    def _carried_on(self, shrink: Floats, lines: Pixels) -> Floats:
        """An edge's line (F,) of the chip's outermost line of pixels and the one behind it."""
        outer_PC, inner_PC = (shrink @ (line * self._scale_C) for line in (lines[0], lines[-1]))
        carried_F: Floats = (outer_PC + OUTWARD * (outer_PC - inner_PC)).reshape(-1).astype(np.float32)
        return carried_F


def averaging(length: int, points: int) -> Floats:
    """The matrix (points, length) that averages a line of pixels over equal stretches, parts of pixels included."""
    ends = np.arange(points + 1) * (length / points)
    pixels = np.arange(length)
    first, last = ends[:-1, None], ends[1:, None]
    covered = np.minimum(last, pixels + 1) - np.maximum(first, pixels)
    weights: Floats = (np.clip(covered, 0, None) * (points / length)).astype(np.float32)
    return weights
