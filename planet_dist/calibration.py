"""Probabilities made frequencies, label by label: maps that keep the order of chips, and how far off they are.

    none         as they are
    temperature  the logit times one factor a label
    platt        the logit times one factor a label, plus one summand a label (Platt, 1999)
    isotonic     the non-decreasing steps nearest to the truth, joined by straight lines

The logistic ones are fitted to targets of (positives + 1) / (positives + 2) and 1 / (negatives + 2) instead of 1 and 0,
as Platt did: a label that no chip bears, or every one, or that is told apart without a mistake, gets finite values too.
Chips of equal probabilities stay equal.

Suffixes: N chips, C labels, B bins, K pooled chips, D distinct probabilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from planet_dist.metrics import Bools, Floats, logits, probabilities
from shards.errors import RunError

Method = Literal["none", "temperature", "platt", "isotonic"]
METHODS: tuple[Method, ...] = get_args(Method)

_MOST_STEPS = 100
_LEAST_DESCENT = 1e-13  # of the mean cross-entropy, in nats: Newton's method ends below it
_LEAST_SIZE = 1e-9  # of a step that was halved again and again
_LEAST_CURVATURE = 1e-12


@dataclass(frozen=True)
class Unchanged:
    """Probabilities as they are."""

    method: Literal["none"] = "none"

    @property
    def labels(self) -> None:
        """How many labels it's for: any."""
        return None

    @property
    def fitted(self) -> int:
        """How many values it takes from the data."""
        return 0

    def apply(self, probabilities_NC: Floats) -> Floats:
        """The probabilities themselves."""
        return probabilities_NC

    def to_json(self) -> dict[str, Any]:
        """As it stands in a file."""
        return {"method": self.method}


@dataclass(frozen=True)
class Logistic:
    """p becomes sigmoid(slope * logit(p) + offset), by label.

    Attributes:
        method: "temperature" (offsets are 0; the slope is 1 / temperature) or "platt".
        slopes, offsets: C each; slopes are not negative.

    Raises:
        RunError: their numbers differ, or one cannot be used.
    """

    method: Literal["temperature", "platt"]
    slopes: tuple[float, ...]
    offsets: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.slopes) != len(self.offsets) or not self.slopes:
            raise RunError(f"{len(self.slopes)} slopes and {len(self.offsets)} offsets; each label needs one of both")
        if not all(math.isfinite(slope) and slope >= 0 for slope in self.slopes):
            raise RunError(f"slopes {list(self.slopes)}; each must be 0 or more, or labels would be turned round")
        if not all(map(math.isfinite, self.offsets)):
            raise RunError(f"offsets {list(self.offsets)}; each must be a finite number")

    @property
    def labels(self) -> int:
        """How many labels it's for."""
        return len(self.slopes)

    @property
    def fitted(self) -> int:
        """How many values it takes from the data."""
        return len(self.slopes) * (1 if self.method == "temperature" else 2)

    def apply(self, probabilities_NC: Floats) -> Floats:
        """Calibrated probabilities float64 (N, C) of float64 ones in [0, 1]."""
        return probabilities(np.array(self.slopes) * logits(probabilities_NC) + np.array(self.offsets))

    def to_json(self) -> dict[str, Any]:
        """As it stands in a file."""
        return {"method": self.method, "slopes": list(self.slopes), "offsets": list(self.offsets)}


@dataclass(frozen=True)
class Isotonic:
    """p becomes what a broken line has at it, by label; beyond the line's ends what it has there.

    Attributes:
        points: for each label its corners' probabilities, rising.
        values: what they become, in [0, 1] and never falling.

    Raises:
        RunError: a line that is none, or falls.
    """

    points: tuple[tuple[float, ...], ...]
    values: tuple[tuple[float, ...], ...]
    method: Literal["isotonic"] = "isotonic"

    def __post_init__(self) -> None:
        if len(self.points) != len(self.values) or not self.points:
            raise RunError(f"isotonic points of {len(self.points)} labels and values of {len(self.values)}")
        for label, (points, values) in enumerate(zip(self.points, self.values, strict=True)):
            rising = len(points) > 0 and all(np.diff(points) > 0) and all(np.diff(values) >= 0)
            if len(points) != len(values) or not rising or not all(0 <= value <= 1 for value in (*points, *values)):
                raise RunError(f"label {label}: isotonic points must rise, their values never fall, all within [0, 1]")

    @property
    def labels(self) -> int:
        """How many labels it's for."""
        return len(self.points)

    @property
    def fitted(self) -> int:
        """How many values it takes from the data."""
        return sum(map(len, self.values))

    def apply(self, probabilities_NC: Floats) -> Floats:
        """Calibrated probabilities float64 (N, C) of float64 ones in [0, 1]."""
        lines = zip(probabilities_NC.T, self.points, self.values, strict=True)
        return np.stack([np.interp(given_N, points, values) for given_N, points, values in lines], axis=1)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a file."""
        return {
            "method": self.method,
            "points": [list(points) for points in self.points],
            "values": [list(values) for values in self.values],
        }


Calibration = Unchanged | Logistic | Isotonic


def fit_calibration(method: Method, probabilities_NC: Floats, true_NC: Bools) -> Calibration:
    """Fits a map a label.

    Args:
        method: one of METHODS.
        probabilities_NC: float64 in [0, 1] (N, C).
        true_NC: bool (N, C).
    """
    if method == "none":
        return Unchanged()
    if method == "isotonic":
        columns = zip(probabilities_NC.T, true_NC.T, strict=True)
        lines = [_isotonic(given_N, true_N) for given_N, true_N in columns]
        return Isotonic(tuple(points for points, _ in lines), tuple(values for _, values in lines))
    slopes_C, offsets_C = _logistic(logits(probabilities_NC), true_NC, offset=method == "platt")
    return Logistic(method, tuple(slopes_C.tolist()), tuple(offsets_C.tolist()))


def calibration_from_json(table: object, where: str) -> Calibration:
    """The calibration in a parsed file; `where` names it in errors.

    Raises:
        RunError: it's none, or inconsistent in itself.
    """
    method = table.get("method") if isinstance(table, dict) else None
    if not isinstance(table, dict) or method not in METHODS:
        raise RunError(f"{where}: calibration {method!r}; it must be one of {', '.join(METHODS)}")
    try:
        if method == "none":
            return Unchanged()
        if method == "isotonic":
            points, values = (tuple(map(_floats, table[name])) for name in ("points", "values"))
            return Isotonic(points, values)
        return Logistic(method, _floats(table["slopes"]), _floats(table["offsets"]))
    except (KeyError, TypeError, RunError) as error:
        raise RunError(f"{where}: {method} calibration: {error}; fit it again") from error


def _floats(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise TypeError("needs lists of numbers")
    return tuple(map(float, values))


def _logistic(logits_NC: Floats, true_NC: Bools, *, offset: bool) -> tuple[Floats, Floats]:
    """Slopes (not negative) and offsets, (C,) each, of the least cross-entropy.

    Args:
        offset: whether there is one; they are 0 otherwise.
    """
    positives_C = np.count_nonzero(true_NC, axis=0)
    negatives_C = len(true_NC) - positives_C
    target_NC = np.where(true_NC, (positives_C + 1.0) / (positives_C + 2.0), 1.0 / (negatives_C + 2.0))
    slopes_C, offsets_C = _least_cross_entropy(logits_NC, target_NC, offset=offset)
    # The loss is convex: where its least lies beyond a slope of 0, the least of those allowed has that slope.
    mean_C = target_NC.mean(axis=0)
    flat_C = np.log(mean_C) - np.log1p(-mean_C) if offset else np.zeros_like(mean_C)
    return np.maximum(slopes_C, 0.0), np.where(slopes_C < 0, flat_C, offsets_C)


def _least_cross_entropy(logits_NC: Floats, target_NC: Floats, *, offset: bool) -> tuple[Floats, Floats]:
    """Slopes and offsets of the least mean cross-entropy, by Newton's method from 1 and 0, all labels at once.

    Where a step doesn't descend, half of it is tried next, for that label alone.
    """
    labels = logits_NC.shape[1]
    slopes_C, offsets_C, lowest_C = np.ones(labels), np.zeros(labels), np.full(labels, np.inf)
    step_2C, size_C, promise_C = np.zeros((2, labels)), np.ones(labels), np.full(labels, np.inf)
    for _ in range(_MOST_STEPS):
        tried_2C = np.stack([slopes_C, offsets_C]) - size_C * step_2C
        given_NC = tried_2C[0] * logits_NC + tried_2C[1]
        small_NC = np.exp(-np.abs(given_NC))
        loss_C = (np.maximum(given_NC, 0.0) - target_NC * given_NC + np.log1p(small_NC)).mean(axis=0)
        worse_C = loss_C > lowest_C
        slopes_C, offsets_C = np.where(worse_C, (slopes_C, offsets_C), tried_2C)
        lowest_C = np.minimum(loss_C, lowest_C)
        said_NC = np.where(given_NC >= 0, 1.0, small_NC) / (1.0 + small_NC)
        new_2C, new_promise_C = _newton_step(logits_NC, said_NC, target_NC, offset=offset)
        step_2C, promise_C = np.where(worse_C, step_2C, new_2C), np.where(worse_C, promise_C, new_promise_C)
        size_C = np.where(worse_C, size_C / 2.0, 1.0)
        if np.all((promise_C < _LEAST_DESCENT) | (size_C < _LEAST_SIZE)):
            break
    return slopes_C, offsets_C


def _newton_step(logits_NC: Floats, said_NC: Floats, target_NC: Floats, *, offset: bool) -> tuple[Floats, Floats]:
    """What to take from slopes and offsets (2, C), and by how much the loss would fall if it were a parabola (C,)."""
    error_NC, weight_NC = said_NC - target_NC, said_NC * (1.0 - said_NC)
    weighted_NC = weight_NC * logits_NC
    by_slope_C, by_offset_C = (error_NC * logits_NC).mean(axis=0), error_NC.mean(axis=0) * offset
    # A little is added to the curvature: chips that all have one probability have none along a line.
    ss_C = (weighted_NC * logits_NC).mean(axis=0) + _LEAST_CURVATURE
    so_C = weighted_NC.mean(axis=0) * offset
    oo_C = weight_NC.mean(axis=0) + _LEAST_CURVATURE
    area_C = np.maximum(ss_C * oo_C - so_C**2, _LEAST_CURVATURE * ss_C * oo_C)
    slope_C = (oo_C * by_slope_C - so_C * by_offset_C) / area_C
    offset_C = (ss_C * by_offset_C - so_C * by_slope_C) / area_C
    return np.stack([slope_C, offset_C]), (by_slope_C * slope_C + by_offset_C * offset_C) / 2.0


def _isotonic(given_N: Floats, true_N: Bools) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Corners of the steps nearest to the truth: pairs of neighbours that fall are pooled until none does."""
    points_D, group_N = np.unique(given_N, return_inverse=True)
    count_K = np.bincount(group_N).astype(np.float64)
    hits_K = np.bincount(group_N, weights=true_N.astype(np.float64))
    starts_K = np.arange(len(points_D))
    while True:
        value_K = hits_K / count_K
        # Whole runs at once: neighbours that don't rise end in one step, in whatever order they are pooled.
        first_K = np.flatnonzero(np.concatenate([[True], np.diff(value_K) > 0]))
        if len(first_K) == len(value_K):
            break
        count_K, hits_K = np.add.reduceat(count_K, first_K), np.add.reduceat(hits_K, first_K)
        starts_K = starts_K[first_K]
    ends_K = np.append(starts_K[1:], len(points_D)) - 1
    corners = np.unique(np.concatenate([starts_K, ends_K]))
    values = value_K[np.searchsorted(starts_K, corners, side="right") - 1]
    return tuple(points_D[corners].tolist()), tuple(values.tolist())


@dataclass(frozen=True)
class Reliability:
    """Probabilities beside what came true, in bins of about equally many chips.

    Attributes:
        count_B: int64, chips of each bin.
        mean_B: their mean probability, float64, rising.
        true_B: the share of them that is true, float64.
        error: the expected calibration error: the mean distance of the two, weighted by chips.
    """

    count_B: NDArray[np.int64]
    mean_B: Floats
    true_B: Floats
    error: float


def reliability(given_N: Floats, true_N: Bools, bins: int = 15) -> Reliability:
    """How far probabilities are from frequencies.

    Chips of equal probability are never parted, so that bins may be fewer, and of other sizes.

    Args:
        given_N: float64 in [0, 1] (N,).
        true_N: bool (N,).
        bins: at most so many.
    """
    sorted_N = np.sort(given_N)
    below_N = np.searchsorted(sorted_N, given_N, side="left")
    _, bin_N = np.unique(below_N * bins // len(given_N), return_inverse=True)
    count_B = np.bincount(bin_N).astype(np.int64)
    mean_B = np.bincount(bin_N, weights=given_N) / count_B
    true_B = np.bincount(bin_N, weights=true_N.astype(np.float64)) / count_B
    error = float(np.sum(count_B * np.abs(mean_B - true_B)) / len(given_N))
    return Reliability(count_B, mean_B, true_B, error)
