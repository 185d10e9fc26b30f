"""The best cut through probabilities, when each sample above the cut adds a known gain.

Sorted by probability, the running sum of gains is the score of every cut at once: O(N log N) to sort, once,
then O(N) for each new list of gains. A cut is a threshold in [0, 1]; above it means strictly greater.

Suffixes: N samples, K cuts, S steps of the grid.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from planet_dist.metrics import Floats

GRID_S: Floats = np.arange(100) / 100
LEAST_GAIN = 1e-9  # in samples; below it a gain may be the rounding of a running sum

Indices = NDArray[np.intp]


class Cuts(Protocol):
    """The cuts through one list of probabilities, ready to be scored again and again."""

    def best(self, gains_N: Floats) -> tuple[float, float]:
        """The greatest sum of gains above a cut, and that cut's threshold."""


class EveryCut:
    """Every cut that tells two samples apart, and those above and below all; sorts once."""

    def __init__(self, probabilities_N: Floats) -> None:
        order_N = np.argsort(probabilities_N)[::-1]
        self._order_N: Indices = np.ascontiguousarray(order_N)
        self._sorted_N = probabilities_N[self._order_N]
        below_N = np.append(self._sorted_N[1:], 0.0)
        # a cut after position k needs the next probability to be lower, else it would part equals
        self._ends_K: Indices = np.flatnonzero(self._sorted_N > below_N)

    def best(self, gains_N: Floats) -> tuple[float, float]:
        """The greatest sum of gains (N,) above a cut, and the middle of that cut; the highest of equals."""
        running_K = np.cumsum(gains_N[self._order_N])[self._ends_K]
        # the first of equals is the highest cut, which decides the least
        at = int(running_K.argmax()) if len(running_K) else -1
        if at < 0 or running_K[at] <= 0.0:
            return 0.0, float(self._sorted_N[0] + (1.0 - self._sorted_N[0]) / 2)
        end = int(self._ends_K[at])
        above = float(self._sorted_N[end])
        below = float(self._sorted_N[end + 1]) if end + 1 < len(self._sorted_N) else 0.0
        middle = below + (above - below) / 2
        # between neighbouring floats the middle may round to the upper one, which must exceed the threshold
        return float(running_K[at]), middle if middle < above else below


class GridCuts:
    """Cuts at the steps of a grid."""

    def __init__(self, probabilities_N: Floats) -> None:
        self._bins_N = np.searchsorted(GRID_S, probabilities_N, side="left")

    def above(self, weights_N: Floats) -> Floats:
        """The sums of weights (N,) above each step (S,)."""
        sums = np.bincount(self._bins_N, weights=weights_N, minlength=len(GRID_S) + 1)
        running: Floats = np.cumsum(sums[::-1], dtype=np.float64)[::-1][1:]
        return running

    def best(self, gains_N: Floats) -> tuple[float, float]:
        """The greatest sum of gains (N,) above a step, and that step: the middle of the longest run of equals."""
        sums_S = self.above(gains_N)
        step = middle_of_best(sums_S)
        return float(sums_S[step]), float(GRID_S[step])


def middle_of_best(scores_S: Floats) -> int:
    """The middle of the longest run of steps whose score is the best (within rounding); the first of equals.

    A label whose classes are far apart has a run of equally good steps. Either end of it would decide
    wrongly on the next sample.
    """
    good = np.concatenate([[False], scores_S >= scores_S.max() - LEAST_GAIN, [False]])
    starts, ends = np.flatnonzero(good[1:] > good[:-1]), np.flatnonzero(good[1:] < good[:-1])
    longest = int((ends - starts).argmax())
    return int(starts[longest] + ends[longest] - 1) // 2
