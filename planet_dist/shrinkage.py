"""Thresholds between the best single one and each label's own.

A label's exact threshold is fitted to few chips where the label is rare, and then says more about those chips than
about others. It's drawn towards the best single threshold, along the line between their logits, and a label of n
positives keeps n / (n + strength) of the way. The strength is the one of a list that does best on rows that the
thresholds were not fitted on, inside the rows given.

Suffixes: N samples, C labels.
"""

from __future__ import annotations

import numpy as np

from planet_dist.crossfit import fold_numbers
from planet_dist.metrics import Bools, Floats, probabilities, sample_f2
from planet_dist.thresholds import Rule, decide, fit_exact, fit_single

STRENGTHS = (0.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, np.inf)
_FOLDS = 5
_LEAST_THRESHOLD = 1e-6  # of a logit


def fit_shrunk(probabilities_NC: Floats, true_NC: Bools) -> Floats:
    """Exact thresholds drawn towards the best single one, as far as inner cross-validation says, (C,).

    Args:
        probabilities_NC: float64 (N, C).
        true_NC: bool (N, C).
    """
    rows = len(true_NC)
    if rows < 2:
        return fit_single(probabilities_NC, true_NC)
    fold_of_N = fold_numbers(rows, min(_FOLDS, rows), seed=0)
    totals = np.zeros(len(STRENGTHS))
    for fold in range(fold_of_N.max() + 1):
        held_out_N = fold_of_N == fold
        given_NC, given_true_NC = probabilities_NC[~held_out_N], true_NC[~held_out_N]
        single_C, exact_C = fit_single(given_NC, given_true_NC), fit_exact(given_NC, given_true_NC)
        support_C = np.count_nonzero(given_true_NC, axis=0)
        for place, strength in enumerate(STRENGTHS):
            values_C = drawn_together(single_C, exact_C, support_C, strength)
            totals[place] += sample_f2(decide(probabilities_NC[held_out_N], values_C), true_NC[held_out_N]).sum()
    # Of equally good ones the greatest: the first from the end.
    strength = STRENGTHS[len(totals) - 1 - int(totals[::-1].argmax())]
    support_C = np.count_nonzero(true_NC, axis=0)
    single_C, exact_C = fit_single(probabilities_NC, true_NC), fit_exact(probabilities_NC, true_NC)
    return drawn_together(single_C, exact_C, support_C, strength)


def drawn_together(single_C: Floats, exact_C: Floats, support_C: np.ndarray, strength: float) -> Floats:
    """Thresholds (C,) on the way from the single one to the exact ones.

    Args:
        single_C, exact_C: in [0, 1].
        support_C: positives of each label.
        strength: at how many positives a threshold lies halfway; 0 leaves the exact ones, infinity the single one.
    """
    if strength == 0.0:
        return exact_C
    kept_C = support_C / (support_C + strength)
    low_C, high_C = (np.clip(ends_C, _LEAST_THRESHOLD, 1 - _LEAST_THRESHOLD) for ends_C in (single_C, exact_C))
    single_logit_C, exact_logit_C = np.log(low_C / (1 - low_C)), np.log(high_C / (1 - high_C))
    drawn_C: Floats = probabilities(single_logit_C + kept_C * (exact_logit_C - single_logit_C))
    return drawn_C


SHRUNK = Rule("shrunk", lambda labels: labels + 2, fit_shrunk)
