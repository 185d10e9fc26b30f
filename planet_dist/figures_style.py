"""How every figure looks: colours that survive colour blindness, sizes in inches, and bytes that repeat.

Colours are those of Okabe and Ito (2008), told apart under every common colour blindness; maps are viridis, whose
lightness rises evenly. Figures are made without pyplot, so that drawing leaves no global state behind.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from shards.errors import RunError
from shards.schema import write_whole

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY, PALE = "#595959", "#D9D9D9"
COLOUR_MAP = "viridis"
DOTS_PER_INCH = 150

_STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that a figure's bytes don't hang on the machine's fonts
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@contextmanager
def styled() -> Iterator[None]:
    """The settings to draw under, whatever the user's own matplotlibrc says; also a decorator, `@styled()`."""
    with matplotlib.rc_context():
        matplotlib.rcParams.update(matplotlib.rcParamsDefault)
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, whose axes are laid out so that no text overlaps another's."""
    return Figure(figsize=(width, height), layout="constrained")


def png_bytes(figure: Figure) -> bytes:
    """A figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def write_png(path: Path, figure: Figure) -> None:
    """Writes a figure whole or not at all.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        write_whole(path, png_bytes(figure))
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error}); give another --out") from error
