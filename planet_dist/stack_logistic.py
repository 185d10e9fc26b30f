"""Logistic regression of every label on all recipes' logits, for several penalties, all labels at a time.

Newton's method whose second derivatives are kept over the steps, and over the penalties, as long as the steps gain:
they cost as much as ten steps, and change little where the fit is near the mean that it starts from. Steps that do not
gain are halved; where too many are taken, the second derivatives are taken anew. So each label ends at the one minimum
that its convex sum has.

Suffixes: R recipes, N samples, C labels, A labels that have not ended yet, D = R x C columns, E = D + 1 with the bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planet_dist.metrics import Bools, Floats, probabilities
from planet_dist.stack import Stack, mean_weights
from shards.errors import RunError

_ENOUGH = 1e-9  # nats a row that a last step could still gain
_STEPS_PER_CURVATURE, _MOST_STEPS, _LEAST_STEP = 8, 200, 2.0**-30


def fit_logistic(columns_ND: Floats, true_NC: Bools, speaks_RC: Bools, *, penalties: Sequence[float]) -> list[Stack]:
    """Minimises, for each label and penalty, the sum over rows of the cross-entropy in nats, and half the penalty times
    the squared distance of the weights from the mean's; the bias has no penalty.

    Args:
        columns_ND: float64 logits, finite.
        speaks_RC: bool, the labels that each recipe was trained on.
        penalties: from the greatest to the least; each fit begins where the one before ended.

    Raises:
        RunError: a fit doesn't end.
    """
    heard_ND = np.where(speaks_RC.ravel(), columns_ND, 0.0)  # what is not heard keeps the mean's weight, which is 0
    mean_DC = mean_weights(speaks_RC)
    fit = _Fit(np.column_stack([heard_ND, np.ones(len(heard_ND))]), true_NC, heard_ND @ mean_DC)
    stacks = []
    for penalty in penalties:
        change_EC = fit.descend(penalty)
        stacks.append(Stack("logits", mean_DC + change_EC[:-1], change_EC[-1].copy()))
    return stacks


class _Fit:
    """Where all labels' fits have come to: weights' distances from the mean's, and the logits that they give."""

    def __init__(self, inputs_NE: Floats, true_NC: Bools, mean_NC: Floats) -> None:
        self._inputs_NE, self._true_NC = inputs_NE, true_NC
        self._single_NE = inputs_NE.astype(np.float32)  # precise enough to say which way to go
        self._logits_NC = mean_NC.copy()
        self._change_EC = np.zeros((inputs_NE.shape[1], true_NC.shape[1]))
        self._curvature_CEE = self._curvature(np.arange(true_NC.shape[1]))

    def descend(self, penalty: float) -> Floats:
        """The weights' distances from the mean's (E, C) at the minimum."""
        penalty_E = np.full(len(self._change_EC), penalty)
        penalty_E[-1] = 0.0
        active_A = np.arange(self._true_NC.shape[1])
        inverse_AEE = _inverses(self._curvature_CEE, penalty_E)
        for step in range(1, _MOST_STEPS + 1):
            gradient_AE = self._gradient(active_A, penalty_E)
            way_AE = np.einsum("aef,af->ae", inverse_AEE, gradient_AE)
            open_A = (way_AE * gradient_AE).sum(axis=1) > 2 * _ENOUGH * len(self._inputs_NE)
            active_A, inverse_AEE = active_A[open_A], inverse_AEE[open_A]
            if not len(active_A):
                return self._change_EC.copy()
            stuck_A = ~self._step(active_A, way_AE[open_A], gradient_AE[open_A], penalty_E)
            active_A, inverse_AEE = active_A[~stuck_A], inverse_AEE[~stuck_A]
            if step % _STEPS_PER_CURVATURE == 0 and len(active_A):
                self._curvature_CEE[active_A] = self._curvature(active_A)
                inverse_AEE = _inverses(self._curvature_CEE[active_A], penalty_E)
        raise RunError(
            f"logistic stacking of {len(self._inputs_NE)} rows with penalty {penalty:g} did not end in {_MOST_STEPS} "
            "steps: look at the members' predictions for labels that no row bears"
        )

    def _gradient(self, active_A: NDArray[np.intp], penalty_E: Floats) -> Floats:
        wrong_NA = probabilities(self._logits_NC[:, active_A]) - self._true_NC[:, active_A]
        gradient_EA: Floats = self._inputs_NE.T @ wrong_NA + penalty_E[:, None] * self._change_EC[:, active_A]
        return gradient_EA.T

    def _step(self, active_A: NDArray[np.intp], way_AE: Floats, gradient_AE: Floats, penalty_E: Floats) -> Bools:
        """Goes as far along each label's way as it gains; False for those that cannot gain in floating point."""
        old_EA, old_NA = self._change_EC[:, active_A], self._logits_NC[:, active_A]
        along_NA = self._inputs_NE @ way_AE.T
        before_A = self._cost(old_NA, old_EA, active_A, penalty_E)
        slope_A = (way_AE * gradient_AE).sum(axis=1)
        length_A = np.ones(len(active_A))
        while True:
            new_EA, new_NA = old_EA - length_A * way_AE.T, old_NA - length_A * along_NA
            gained_A = before_A - self._cost(new_NA, new_EA, active_A, penalty_E) >= 1e-4 * length_A * slope_A
            hopeless_A = ~gained_A & (length_A <= _LEAST_STEP)
            if (gained_A | hopeless_A).all():
                break
            length_A = np.where(gained_A | hopeless_A, length_A, length_A / 2)
        moved_A: Bools = ~hopeless_A
        self._change_EC[:, active_A[moved_A]] = new_EA[:, moved_A]
        self._logits_NC[:, active_A[moved_A]] = new_NA[:, moved_A]
        return moved_A

    def _cost(self, logits_NA: Floats, change_EA: Floats, active_A: NDArray[np.intp], penalty_E: Floats) -> Floats:
        against_NA = np.where(self._true_NC[:, active_A], -logits_NA, logits_NA)
        # log(1 + exp(x)) by the faster of its forms; neither end of x overflows
        entropy_NA = np.maximum(against_NA, 0.0) + np.log1p(np.exp(-np.abs(against_NA)))
        cost_A: Floats = entropy_NA.sum(axis=0) + 0.5 * (penalty_E @ change_EA**2)
        return cost_A

    def _curvature(self, active_A: NDArray[np.intp]) -> Floats:
        """Second derivatives (A, E, E) of the cross-entropy."""
        sure_NA = probabilities(self._logits_NC[:, active_A])
        spread_NA = np.sqrt(sure_NA * (1.0 - sure_NA)).astype(np.float32)
        products = []
        for spread_N in spread_NA.T:
            weighed_NE = self._single_NE * spread_N[:, None]
            products.append(weighed_NE.T @ weighed_NE)
        return np.stack(products).astype(np.float64)


def _inverses(curvature_AEE: Floats, penalty_E: Floats) -> Floats:
    # a share of the largest entry keeps it invertible where no row bears a label, or float32 has rounded
    least_A = 1e-7 * curvature_AEE.max(axis=(1, 2)) + 1e-9
    size = len(penalty_E)
    return np.linalg.inv(curvature_AEE + np.diag(penalty_E) + least_A[:, None, None] * np.eye(size))
