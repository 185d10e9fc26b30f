"""Figures that show chips: galleries, augmentation, class-activation maps. Pure functions of arrays.

Suffixes: H and W pixels, N chips.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from planet_dist.figures_style import BLACK, BLUE, COLOUR_MAP, GREY, VERMILLION, styled

_SHOWN_PIXELS = 240
_TILE, _GAP, _LINE, _MARGIN, _HEADING = 1.6, 0.22, 0.135, 0.15, 0.5  # inches
_LINE_LETTERS = 27
_HEAT_OPACITY = 0.75  # where the heat is greatest; where there is none, the chip shows as it is


@dataclass(frozen=True)
class Line:
    """A part of a caption; it's wrapped."""

    text: str
    colour: str = BLACK


@dataclass(frozen=True)
class Tile:
    """A picture with its caption.

    Attributes:
        image: uint8 (H, W, 3).
        lines: below it.
        heat: float (H, W) from 0 to 1, laid over it.
    """

    image: NDArray[np.uint8]
    lines: Sequence[Line] = ()
    heat: NDArray[Any] | None = field(default=None)


def compared(truth: Sequence[str], predicted: Sequence[str]) -> list[Line]:
    """A caption of what is right, missed (in the truth alone) and added (in the prediction alone)."""
    right = [label for label in truth if label in predicted]
    missed = [label for label in truth if label not in predicted]
    added = [label for label in predicted if label not in truth]
    lines = [Line("right: " + (", ".join(right) or "nothing"), GREY)]
    if missed:
        lines.append(Line("missed: " + ", ".join(missed), VERMILLION))
    if added:
        lines.append(Line("added: " + ", ".join(added), BLUE))
    return lines


@styled()
def gallery(title: str, tiles: Sequence[Tile], columns: int = 4) -> Figure:
    """Pictures in rows with their captions below, each row as high as its longest caption asks.

    Args:
        title: stands above.
        tiles: at least one.
        columns: pictures in a row.
    """
    assert tiles, "a gallery shows something"
    columns = min(columns, len(tiles))
    wrapped = [_wrap(tile.lines) for tile in tiles]
    rows = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    heights = [_TILE + _GAP + _LINE * max(len(wrapped[i]) for i in row) for row in rows]
    width = max(2 * _MARGIN + columns * (_TILE + _GAP) - _GAP, 4.2)
    heading = textwrap.wrap(title, int(width * 13))
    top = _HEADING + 0.17 * (len(heading) - 1)
    height = top + sum(heights) + _MARGIN
    figure = Figure(figsize=(width, height))
    figure.text(0.5, 1 - 0.12 / height, "\n".join(heading), ha="center", va="top", fontsize=10)
    left = (width - columns * (_TILE + _GAP) + _GAP) / 2
    for number, row in enumerate(rows):
        down = top + sum(heights[:number]) + _TILE
        for column, i in enumerate(row):
            across = left + column * (_TILE + _GAP)
            axes = figure.add_axes((across / width, 1 - down / height, _TILE / width, _TILE / height))
            axes.set_axis_off()
            axes.imshow(_enlarged(tiles[i]), interpolation="antialiased")
            for depth, line in enumerate(wrapped[i]):
                y = 1 - (down + 0.05 + depth * _LINE) / height
                figure.text(across / width, y, line.text, color=line.colour, fontsize=7.5, va="top")
    return figure


def _wrap(lines: Sequence[Line]) -> list[Line]:
    return [Line(part, line.colour) for line in lines for part in textwrap.wrap(line.text, _LINE_LETTERS)]


def _enlarged(tile: Tile) -> NDArray[Any]:
    """The tile's picture at the size in which it's shown: smooth, since a chip's pixels aren't squares of forest."""
    side = (_SHOWN_PIXELS, _SHOWN_PIXELS)
    image = np.asarray(Image.fromarray(tile.image).resize(side, Image.Resampling.LANCZOS))
    if tile.heat is None:
        return image
    heat = np.asarray(Image.fromarray(tile.heat.astype(np.float32)).resize(side, Image.Resampling.BILINEAR))
    colours = matplotlib.colormaps[COLOUR_MAP](heat)[:, :, :3]
    opacity = _HEAT_OPACITY * heat[:, :, None]
    blended: NDArray[Any] = (1 - opacity) * image / 255 + opacity * colours
    return blended


def augmentation(originals: Sequence[NDArray[np.uint8]], changed: Sequence[Sequence[NDArray[np.uint8]]]) -> Figure:
    """Chips as they are, each followed by what augmentation makes of it (first paper, Figure 5).

    Args:
        originals: N chips uint8 (H, W, 3).
        changed: for each of them as many uint8 (S, S, 3).
    """
    tiles = []
    for original, drawn in zip(originals, changed, strict=True):
        tiles.append(Tile(original, [Line("as it is")]))
        tiles += [Tile(image, [Line(f"epoch {epoch}", GREY)]) for epoch, image in enumerate(drawn)]
    return gallery("What augmentation makes of chips", tiles, columns=1 + len(changed[0]))
