"""How a scene is cut: cells that cover each of its pixels exactly once, and around each the chip that is predicted.

    +-----------------+
    |      chip       |   what the network sees, chip_height x chip_width pixels
    |   +---------+   |
    |   |  cell   |   |   what the prediction is written for: the middle of the chip
    |   +---------+   |
    +-----------------+

Neighbouring chips overlap by the stated share of their side, or by a little more, so that cells of one row (or column)
differ in size by a pixel at most and no sliver is left at the edge. A chip that would reach over the scene's edge is
moved inward; its cell stays where it is. All pure functions of whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from shards.errors import ConfigError

MOST_OVERLAP = 0.9


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: its first row and column, and its size."""

    row: int
    column: int
    height: int
    width: int


@dataclass(frozen=True)
class Cell:
    """A place in the grid.

    Attributes:
        row, column: in the grid, from 0.
        pixels: of the scene, for which the prediction stands.
        chip: of the scene, which the network sees. It reaches over the scene's edge only where the scene is smaller
            than a chip.
    """

    row: int
    column: int
    pixels: Window
    chip: Window


@dataclass(frozen=True)
class Grid:
    """A scene's cells.

    Attributes:
        height, width: of the scene in pixels.
        chip_height, chip_width: of a chip in pixels.
        row_edges, column_edges: where the cells begin, and where the last one ends.
    """

    height: int
    width: int
    chip_height: int
    chip_width: int
    row_edges: tuple[int, ...]
    column_edges: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return len(self.row_edges) - 1, len(self.column_edges) - 1

    @property
    def count(self) -> int:
        """The number of cells."""
        return self.shape[0] * self.shape[1]

    def cells(self) -> Iterator[Cell]:
        """All cells, row by row."""
        for row in range(self.shape[0]):
            for column in range(self.shape[1]):
                yield self.cell(row, column)

    def cell(self, row: int, column: int) -> Cell:
        """The cell at a place of the grid, counted from 0."""
        top, bottom = self.row_edges[row : row + 2]
        left, right = self.column_edges[column : column + 2]
        chip = Window(
            _chip_start(top, bottom, self.chip_height, self.height),
            _chip_start(left, right, self.chip_width, self.width),
            self.chip_height,
            self.chip_width,
        )
        return Cell(row, column, Window(top, left, bottom - top, right - left), chip)


def lay_grid(height: int, width: int, chip_height: int, chip_width: int, overlap: float) -> Grid:
    """Cuts a scene.

    Args:
        height, width: of the scene in pixels.
        chip_height, chip_width: in pixels.
        overlap: the least share of a chip's side that it has in common with the next one, 0 to 0.9.

    Raises:
        ConfigError: the overlap is out of range.
    """
    if not 0 <= overlap <= MOST_OVERLAP:
        raise ConfigError(f"overlap {overlap}: neighbouring chips share 0 to {MOST_OVERLAP} of their side; give that")
    rows, columns = _edges(height, chip_height, overlap), _edges(width, chip_width, overlap)
    return Grid(height, width, chip_height, chip_width, rows, columns)


def _edges(length: int, chip: int, overlap: float) -> tuple[int, ...]:
    stride = max(1, round(chip * (1 - overlap)))
    cells = math.ceil(length / stride) if length > chip else 1
    return tuple(length * i // cells for i in range(cells + 1))


def _chip_start(start: int, end: int, chip: int, length: int) -> int:
    if length <= chip:
        return (length - chip) // 2
    return min(max((start + end - chip) // 2, 0), length - chip)
