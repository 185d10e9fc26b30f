"""How often each label is true, by the probability that it's given: pure functions of arrays.

Suffixes: N samples, C labels, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from planet_dist.calibration import Reliability, reliability
from planet_dist.figures_style import BLUE, GREY, ORANGE, PALE, new_figure, styled
from planet_dist.metrics import Bools, Floats

_COLUMNS = 5
_TICKS = (0.0, 0.05, 0.2, 0.5, 1.0)
_LOOKS = ((ORANGE, "o"), (BLUE, "s"))
_Z = 1.96  # standard deviations of a 95% interval


@styled()
def reliability_panels(labels: Sequence[str], true_NC: Bools, given: Mapping[str, Floats]) -> Figure:
    """A panel a label: the share of chips that bear it over its mean probability, in bins of equally many chips.

    Both axes are square roots: what decides F2 lies between 0.05 and 0.5.

    Args:
        labels: C names.
        true_NC: bool (N, C).
        given: probabilities float64 (N, C) by what the legend calls them, 1 or 2.
    """
    columns = min(_COLUMNS, len(labels))
    rows = math.ceil(len(labels) / columns)
    figure = new_figure(0.6 + 2.0 * columns, 0.9 + 2.1 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for place, axes in enumerate(panels.flat):
        if place >= len(labels):
            axes.set_axis_off()
            continue
        errors = []
        for (name, p_NC), look in zip(given.items(), _LOOKS, strict=False):
            found = reliability(p_NC[:, place], true_NC[:, place])
            _draw(axes, found, look, name)
            errors.append(f"{found.error:.4f}")
        chips = np.count_nonzero(true_NC[:, place])
        axes.set_title(f"{labels[place]} ({chips:,})\n{', '.join(errors)}", fontsize=8)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        axes.set_xticks(np.sqrt(_TICKS), [f"{tick:g}" for tick in _TICKS])
        axes.set_yticks(np.sqrt(_TICKS), [f"{tick:g}" for tick in _TICKS])
        axes.tick_params(labelsize=7)
        if place + columns >= len(labels):  # the lowest of its column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("mean probability")
        axes.grid(color=PALE, linewidth=0.5)
        axes.set_axisbelow(True)
    figure.suptitle(
        f"Reliability on {len(true_NC):,} chips; above each panel the label, the chips that bear it, and the expected "
        "calibration error",
        fontsize=9,
    )
    figure.supylabel("share of a bin's chips that bear the label, with 95% intervals", fontsize=9)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(given))
    return figure


def _draw(axes: Axes, found: Reliability, look: tuple[str, str], name: str) -> None:
    colour, marker = look
    across_B = np.sqrt(found.mean_B)
    low_B, high_B = share_interval(found.true_B, found.count_B)
    axes.vlines(across_B, np.sqrt(low_B), np.sqrt(high_B), color=colour, linewidth=0.8, alpha=0.6)
    axes.plot(across_B, np.sqrt(found.true_B), color=colour, marker=marker, markersize=3, linewidth=0.8, label=name)


def share_interval(share_B: Floats, count_B: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Wilson's 95% intervals of shares, low and high (B,).

    Args:
        share_B: in [0, 1].
        count_B: int64, of how many chips each is.
    """
    middle_B = (share_B * count_B + _Z**2 / 2) / (count_B + _Z**2)
    half_B = _Z * np.sqrt(share_B * (1 - share_B) * count_B + _Z**2 / 4) / (count_B + _Z**2)
    return np.maximum(middle_B - half_B, 0.0), np.minimum(middle_B + half_B, 1.0)
