"""A scene's quick-look: one PNG of bounded size with the tags by colour, the weather, and the scene itself beneath.

Each cell has the colour of its rarest tag, by how many training chips bear it: the commonest labels are nearly
everywhere, and a map of them would show one colour.

Suffixes: R, C rows and columns of the quick-look's grid; H, W rows and columns of the thumbnail.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from planet_dist.bundle_description import Description
from planet_dist.figures_style import GREY, new_figure, styled, write_png
from planet_dist.scene_grid import Grid
from planet_dist.scene_picture import Picture
from planet_dist.scene_write import MappedCell

_MOST_CELLS = 1_000  # a side of the grid that is drawn; of several cells in one place the rarest tag is shown
_MOST_ENTRIES = 16
_NOTHING, _LEFT_OUT = 254, 255
_OTHER_COLOUR, _NOTHING_COLOUR, _GREY_SCENE = "#404040", "#F2F2F2", "#B0B0B0"
_OPACITY = 0.85  # of a cell's colour over the grey scene
_EDGE = [withStroke(linewidth=4.5, foreground="black")]
_ON_PICTURE: Any = {
    "color": "white",
    "fontsize": 9,
    "fontweight": "bold",
    "path_effects": [withStroke(linewidth=2.0, foreground="black")],
}

# What a map's reader expects: water is blue and forest green. Labels of other vocabularies take tab20's colours.
_COLOURS = {
    "agriculture": "#E6C229",
    "artisinal_mine": "#8E44AD",
    "bare_ground": "#C8A27A",
    "blooming": "#FF4FA3",
    "blow_down": "#17A2A2",
    "clear": "#CFE8F7",
    "cloudy": "#3D4B57",
    "conventional_mine": "#4A148C",
    "cultivation": "#A8C33A",
    "habitation": "#D7263D",
    "haze": "#B9A7C9",
    "partly_cloudy": "#7C9CB5",
    "primary": "#1B7837",
    "road": "#6D5A4B",
    "selective_logging": "#F57C00",
    "slash_burn": "#8B1A1A",
    "water": "#2471C8",
}


@dataclass
class QuickLook:
    """What is drawn, gathered cell by cell in memory of a fixed size.

    Attributes:
        grid: of the scene.
        ground: labels that are no weather, the rarest first.
        weather: labels of the vocabulary's first group of those that exclude each other; may be empty.
        group: the group's name.
        ground_RC, weather_RC: uint8, index into `ground` and `weather`; 254 where no such tag was given, 255 where
            there is no prediction.
        counts: cells by the label that they show, on both maps.
    """

    grid: Grid
    ground: tuple[str, ...]
    weather: tuple[str, ...]
    group: str
    ground_RC: NDArray[np.uint8]
    weather_RC: NDArray[np.uint8]
    ground_counts: Counter[str] = field(default_factory=Counter)
    weather_counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, description: Description, grid: Grid) -> QuickLook:
        """An empty one."""
        first = description.exclusive[0] if description.exclusive else None
        weather = () if first is None else tuple(first.labels)
        rows, columns = (min(side, _MOST_CELLS) for side in grid.shape)
        empty_RC = np.full((rows, columns), _LEFT_OUT, np.uint8)
        name = "" if first is None else first.name
        return cls(grid, by_rarity(description), weather, name, empty_RC, empty_RC.copy())

    def add(self, cells: Sequence[MappedCell]) -> None:
        """Takes what cells show."""
        for mapped in cells:
            rows, columns = self.ground_RC.shape
            place = mapped.cell.row * rows // self.grid.shape[0], mapped.cell.column * columns // self.grid.shape[1]
            ground = self.ground.index(mapped.rarest_tag) if mapped.rarest_tag else _NOTHING
            self.ground_RC[place] = min(self.ground_RC[place], ground)
            self.ground_counts[mapped.rarest_tag] += 1
            self.weather_RC[place] = min(
                self.weather_RC[place], self.weather.index(mapped.weather) if mapped.weather else _NOTHING
            )
            self.weather_counts[mapped.weather] += 1


def draw_quick_look(path: Path, look: QuickLook, picture: Picture, title: str, lines: Sequence[str]) -> None:
    """Draws and writes the PNG, whole or not at all.

    Args:
        title: the scene's name.
        lines: what stands beneath.

    Raises:
        RunError: it cannot be written.
    """
    with styled():
        write_png(path, _figure(look, picture, title, lines))


def _figure(look: QuickLook, picture: Picture, title: str, lines: Sequence[str]) -> Figure:
    panels = 3 if look.weather else 2
    side_by_side = picture.width < 2 * picture.height
    width, height = _size(picture, panels, side_by_side)
    text = [part for line in lines for part in textwrap.wrap(line, int(width * 14))]
    entries = 1 + max(len(look.ground_counts), len(look.weather_counts))
    legend_height = 0.21 * math.ceil(min(entries, _MOST_ENTRIES + 3) / 2) if side_by_side else 0
    figure = new_figure(width, height + legend_height + 0.4 + 0.2 * len(text))
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel("\n".join(text), x=0.01, ha="left", fontsize=8.5, color=GREY, linespacing=1.4)
    axes = list(figure.subplots(1, panels) if side_by_side else figure.subplots(panels, 1))
    legend_at = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.01), "ncols": 2}
    if not side_by_side:
        legend_at = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "ncols": 1}
    nothing = f"{look.group} alone" if look.weather else "no tag"
    _draw_classes(axes[0], look.ground_RC, look.ground, look.ground_counts, picture, legend_at, nothing)
    axes[0].set_title("Each cell's rarest tag", loc="left")
    if look.weather:
        _draw_classes(axes[1], look.weather_RC, look.weather, look.weather_counts, picture, legend_at, "none")
        axes[1].set_title(f"Its {look.group}", loc="left")
    _draw_picture(axes[-1], picture)
    axes[-1].set_title("The scene", loc="left")
    return figure


def _size(picture: Picture, panels: int, side_by_side: bool) -> tuple[float, float]:
    """Width and height of the panels with their legends, in inches."""
    ratio = picture.height / picture.width
    if side_by_side:
        return 4.4 * panels, min(4.3 * ratio, 9.0) + 0.3
    return 12.0, panels * (max(9.0 * ratio, 1.6) + 0.3)


def _draw_classes(
    axes: Axes,
    shown_RC: NDArray[np.uint8],
    labels: Sequence[str],
    counts: Mapping[str, int],
    picture: Picture,
    legend_at: Mapping[str, Any],
    nothing: str,
) -> None:
    """A map of labels by colour, with a legend of those that it shows, the commonest first."""
    table = np.ones((256, 4))
    table[_LEFT_OUT] = (0.0, 0.0, 0.0, 0.0)
    table[_NOTHING] = (*to_rgb(_NOTHING_COLOUR), 1.0)
    frequent = [label for label, _ in Counter(counts).most_common() if label][:_MOST_ENTRIES]
    for number, label in enumerate(labels):
        table[number] = (*to_rgb(_colour(label, number) if label in frequent else _OTHER_COLOUR), 1.0)
    grey_HW = 0.6 + 0.4 * picture.colours_HWC.mean(axis=2)
    _show(axes, np.dstack([grey_HW] * 3 + [picture.valid_HW.astype(np.float32)]), picture)
    _show(axes, table[shown_RC], picture, alpha=_OPACITY)
    total = sum(counts.values())
    entries = [(label.replace("_", " "), table[labels.index(label)], counts[label]) for label in frequent]
    others = total - counts.get("", 0) - sum(count for *_, count in entries)
    entries += [("other labels", (*to_rgb(_OTHER_COLOUR), 1.0), others)] if others else []
    entries += [(nothing, table[_NOTHING], counts[""])] if counts.get("") else []
    handles = [
        Patch(facecolor=_over_white(colour), edgecolor=GREY, linewidth=0.5, label=f"{name}  {_share(count, total)}")
        for name, colour, count in entries
    ]
    if (shown_RC == _LEFT_OUT).any():
        handles.append(Patch(facecolor=_GREY_SCENE, edgecolor=GREY, linewidth=0.5, label="left out"))
    axes.legend(
        handles=handles,
        fontsize=8.5,
        borderaxespad=0.3,
        handlelength=1.2,
        handleheight=1.0,
        columnspacing=1.2,
        **legend_at,
    )


def _draw_picture(axes: Axes, picture: Picture) -> None:
    """The scene, with a scale and an arrow to the north where its place is known."""
    _show(axes, np.dstack([picture.colours_HWC, picture.valid_HW.astype(np.float32)]), picture)
    if picture.metres_per_pixel is not None:
        metres = _round_length(picture.metres_per_pixel[0] * picture.width / 4)
        pixels = metres / picture.metres_per_pixel[0]
        text = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
        left, at = picture.width * 0.04, picture.height * 0.95
        axes.plot(
            [left, left + pixels], [at, at], color="white", linewidth=3.0, solid_capstyle="butt", path_effects=_EDGE
        )
        axes.text(left + pixels / 2, at - picture.height * 0.015, text, ha="center", va="bottom", **_ON_PICTURE)
    if picture.north is not None:
        size = 0.1 * min(picture.height, picture.width)
        right, down = (size * part for part in picture.north)
        x, y = picture.width * 0.92, picture.height * 0.1
        axes.annotate(
            "",
            (x + right / 2, y + down / 2),
            (x - right / 2, y - down / 2),
            arrowprops={"arrowstyle": "-|>", "color": "white", "linewidth": 2.0, "path_effects": _EDGE},
        )
        axes.annotate(
            "N",
            (x - right / 2, y - down / 2),
            xytext=(-9 * picture.north[0], 9 * picture.north[1]),
            textcoords="offset points",
            ha="center",
            va="center",
            **_ON_PICTURE,
        )


def _show(axes: Axes, image: NDArray[Any], picture: Picture, alpha: float | None = None) -> None:
    axes.imshow(image, extent=(0, picture.width, picture.height, 0), interpolation="nearest", alpha=alpha)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=GREY, linewidth=0.6)


def _colour(label: str, number: int) -> Any:
    # Its strong colours come first, then their pale neighbours.
    return _COLOURS.get(label) or matplotlib.colormaps["tab20"]((2 * number + number // 10) % 20)


def _over_white(colour: Any) -> tuple[float, float, float]:
    red, green, blue = (1 - _OPACITY * (1 - part) for part in colour[:3])
    return red, green, blue


def _share(count: int, total: int) -> str:
    share = count / total
    return f"{share:.0%}" if share >= 0.01 else f"{count:,} of {total:,}"


def _round_length(metres: float) -> float:
    """The greatest of 1, 2, 5, 10, 20 ... that is no longer."""
    power = 10.0 ** np.floor(np.log10(metres))
    return float(power * max(step for step in (1, 2, 5) if step * power <= metres * (1 + 1e-9)))


def by_rarity(description: Description) -> tuple[str, ...]:
    """The labels outside of the vocabulary's first group of labels that exclude each other, the rarest first."""
    weather = description.exclusive[0].labels if description.exclusive else []
    counts = dict(zip(description.labels, description.training_label_counts, strict=True))
    return tuple(sorted((label for label in description.labels if label not in weather), key=lambda one: counts[one]))
