"""Figures of scores, losses and co-occurrence: pure functions of arrays.

Suffixes: N samples, C labels, E epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from planet_dist.crossfit import cross_fitted, fold_numbers
from planet_dist.figures_style import BLUE, COLOUR_MAP, GREEN, GREY, ORANGE, PALE, VERMILLION, new_figure, styled
from planet_dist.metrics import BETA_SQUARED, Array, Bools, Floats, LabelScores, label_scores
from planet_dist.thresholds import RULES

# As first paper's Figure 6: the naive threshold, the best one for all labels, and one for each label.
THREE_RULES = {"flat-0.5": "0.5", "best-single": "best single threshold", "grid-independent": "threshold per label"}
_FOLDS = 5
_MARKERS = ("o", "s", "D", "^")
_COLOURS = (GREY, ORANGE, BLUE, GREEN)
_WIDEST_LINEAR = 200  # the largest ratio of losses that is drawn on a linear axis
_LEAST_SHARE = 1e-5  # what co-occurs more rarely is drawn as this


@dataclass(frozen=True)
class LossCurve:
    """The losses of one run.

    Attributes:
        name: what its panel is called.
        train_E: mean over each epoch's logged steps, in nats, penalties left out; NaN where none was logged.
        val_E: at each epoch's end, in nats.
        phase_ends: epochs after which another phase begins.
    """

    name: str
    train_E: Sequence[float]
    val_E: Sequence[float]
    phase_ends: Sequence[int] = ()


@styled()
def f2_contour() -> Figure:
    """F2 as a contour over precision and recall (first paper, Figure 4)."""
    precision, recall = np.meshgrid(np.linspace(0, 1, 201), np.linspace(0, 1, 201))
    f2 = (1 + BETA_SQUARED) * precision * recall / np.maximum(BETA_SQUARED * precision + recall, 1e-12)
    figure = new_figure(5.2, 4.4)
    axes = figure.subplots()
    levels = np.linspace(0, 1, 11)
    filled = axes.contourf(precision, recall, f2, levels=levels, cmap=COLOUR_MAP)
    lines = axes.contour(precision, recall, f2, levels=levels[1:-1], colors="white", linewidths=0.8)
    # labels stand along one diagonal, where the lines lie far enough apart
    places = [
        (min(0.35 + 0.6 * level, 0.95), _recall_at(level, min(0.35 + 0.6 * level, 0.95))) for level in levels[1:-1]
    ]
    axes.clabel(lines, fmt="%.1f", fontsize=8, manual=places)
    axes.set(xlabel="precision", ylabel="recall", title="F2 asks for recall more than for precision", aspect="equal")
    figure.colorbar(filled, ax=axes, label="F2")
    return figure


def _recall_at(f2: float, precision: float) -> float:
    return float(BETA_SQUARED * precision * f2 / ((1 + BETA_SQUARED) * precision - f2))


def rule_label_scores(
    probabilities_NC: Floats, true_NC: Bools, labels: Sequence[str], seed: int = 0
) -> dict[str, LabelScores]:
    """Each label's scores under the three rules of the first paper's Figure 6, cross-fitted.

    Args:
        probabilities_NC: float64 (N, C).
        true_NC: bool (N, C).
        labels: C names.
        seed: of the folds.
    """
    fold_of_N = fold_numbers(len(true_NC), min(_FOLDS, len(true_NC)), seed)
    rules = {rule.name: rule for rule in RULES}
    return {
        shown: label_scores(cross_fitted(rules[name], probabilities_NC, true_NC, fold_of_N, labels), true_NC)
        for name, shown in THREE_RULES.items()
    }


@styled()
def label_dots(labels: Sequence[str], series: Mapping[str, LabelScores], title: str) -> Figure:
    """F2, precision and recall of each label, the most frequent on top (first paper, Figure 6).

    Args:
        labels: C names.
        series: scores by what the legend calls them, 1 to 4; all of the same chips.
    """
    support_C = next(iter(series.values())).support_C
    order_C = np.argsort(support_C, kind="stable")
    figure = new_figure(10, 1.5 + 0.27 * len(labels))
    panels = figure.subplots(1, 3, sharey=True)
    height_C = np.arange(len(labels))
    for axes, field in zip(panels, ("f2_C", "precision_C", "recall_C"), strict=True):
        values = np.stack([getattr(scores, field)[order_C] for scores in series.values()])
        values[:, support_C[order_C] == 0] = np.nan  # a label that no chip bears has no score
        axes.hlines(height_C, values.min(axis=0), values.max(axis=0), color=PALE, linewidth=2, zorder=1)
        for i, name in enumerate(series):
            axes.scatter(values[i], height_C, s=26, marker=_MARKERS[i], color=_COLOURS[-len(series) :][i], label=name)
        axes.set(
            xlim=(-0.03, 1.03),
            ylim=(-0.8, len(labels) - 0.2),
            xlabel={"f2_C": "F2", "precision_C": "precision", "recall_C": "recall"}[field],
        )
        axes.grid(axis="x", color=PALE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(height_C, [f"{labels[c]}  ({support_C[c]:,})" for c in order_C])
    figure.suptitle(f"{title}\nlabels by frequency (chips that bear them)", fontsize=10)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(series))
    return figure


def mean_products(values_NC: Array) -> Floats:
    """The mean over samples of the product of each two labels' values, float64 (C, C).

    For truth it is the share of chips that bear both; for probabilities p the second paper's predicted co-occurrence,
    the mean of p_i * p_j (its Table 4).

    Args:
        values_NC: 0 and 1, or probabilities (N, C).
    """
    values = np.asarray(values_NC, dtype=np.float64)
    products: Floats = np.einsum("ni,nj->ij", values, values) / len(values)
    return products


@styled()
def cooccurrence(labels: Sequence[str], panels: Mapping[str, Array], outlined: Sequence[str] = ()) -> Figure:
    """How often labels stand together (second paper, Figures 1 and 6).

    Args:
        labels: C names.
        panels: mean_products() (C, C) by title.
        outlined: labels that exclude each other; they stand first, in a frame.
    """
    chosen = [labels.index(label) for label in outlined if label in labels]
    order = [*chosen, *(i for i in range(len(labels)) if i not in chosen)]
    figure = new_figure(2.8 + 0.235 * len(labels) * len(panels), 2.4 + 0.235 * len(labels))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    norm = LogNorm(_LEAST_SHARE, 1.0)
    ticks = np.arange(len(labels))
    for axes, (title, matrix_CC) in zip(grid, panels.items(), strict=True):
        shown_CC = np.maximum(np.asarray(matrix_CC)[np.ix_(order, order)], _LEAST_SHARE)
        image = axes.imshow(shown_CC, norm=norm, cmap=COLOUR_MAP)
        axes.set_xticks(ticks, [labels[i] for i in order], rotation=90, fontsize=8)
        axes.set_title(title)
        axes.tick_params(length=0)
        if chosen:
            edge = len(chosen) - 0.5
            axes.plot([-0.5, edge, edge, -0.5, -0.5], [-0.5, -0.5, edge, edge, -0.5], color=VERMILLION, linewidth=1.8)
    grid[0].set_yticks(ticks, [labels[i] for i in order], fontsize=8)
    figure.colorbar(image, ax=list(grid), label="mean of the product (share of chips)", shrink=0.9, extend="min")
    if chosen:
        figure.suptitle("In the frame: labels that exclude each other", fontsize=9, color=VERMILLION)
    return figure


@styled()
def losses(curves: Sequence[LossCurve]) -> Figure:
    """Train and validation loss by epoch, a panel for each run (second paper, Figure 4).

    Args:
        curves: at least one.
    """
    figure = new_figure(1.0 + 3.0 * len(curves), 3.2)
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, curve in zip(panels, curves, strict=True):
        _draw_losses(axes, curve)
    panels[0].set_ylabel("loss (nats)")
    values = np.concatenate([[*curve.train_E, *curve.val_E] for curve in curves])
    values = values[np.isfinite(values) & (values > 0)]
    if values.size and values.max() > _WIDEST_LINEAR * values.min():  # a start that exploded would flatten the rest
        panels[0].set_yscale("log")
    else:
        panels[0].set_ylim(bottom=0)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure


def _draw_losses(axes: Axes, curve: LossCurve) -> None:
    epochs = np.arange(1, len(curve.val_E) + 1)
    # a point alone would have no line to be seen by
    train_E = np.asarray(curve.train_E, dtype=np.float64)
    logged_E = np.isfinite(train_E)
    axes.plot(epochs[logged_E], train_E[logged_E], color=ORANGE, marker="o", markersize=3.5, label="training")
    axes.plot(epochs, curve.val_E, color=BLUE, marker="s", markersize=3.5, label="validation")
    for end in curve.phase_ends:
        axes.axvline(end + 0.5, color=GREY, linewidth=0.8, linestyle="--")
    axes.set(title=curve.name, xlabel="epoch" + (" (dashed: next phase)" if curve.phase_ends else ""))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, len(epochs) + 0.5)
    axes.grid(axis="y", color=PALE, linewidth=0.5)
