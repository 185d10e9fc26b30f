"""planet_dist.shrinkage: thresholds between the best single one and each label's own."""

from __future__ import annotations

import numpy as np
import pytest

from planet_dist.crossfit import cross_fitted, fold_numbers
from planet_dist.metrics import Bools, Floats, mean_f2, probabilities, sample_f2
from planet_dist.shrinkage import SHRUNK, STRENGTHS, drawn_together, fit_shrunk
from planet_dist.thresholds import RULES, decide, fit_exact, fit_single


def made(count: int, seed: int, shift_C: float | list[float] = 0.0) -> tuple[Floats, Bools]:
    """Calibrated probabilities of four labels, one of them rare, with their logits then shifted."""
    rng = np.random.default_rng(seed)
    frequency_C = np.array([0.7, 0.4, 0.2, 0.01])
    true_NC = rng.random((count, 4)) < frequency_C
    score_NC = rng.normal(np.where(true_NC, 1.2, -1.2), 1.0)
    return probabilities(2.4 * score_NC + np.log(frequency_C / (1 - frequency_C)) + shift_C), true_NC


def test_the_strength_is_the_best_on_rows_that_thresholds_were_not_fitted_on() -> None:
    p_NC, true_NC = made(400, seed=0)
    fold_of_N = fold_numbers(400, 5, seed=0)
    scores = []
    for strength in STRENGTHS:
        f2_N = np.zeros(400)
        for fold in range(5):
            rest_N = fold_of_N != fold
            ends = fit_single(p_NC[rest_N], true_NC[rest_N]), fit_exact(p_NC[rest_N], true_NC[rest_N])
            values_C = drawn_together(*ends, true_NC[rest_N].sum(axis=0), strength)
            f2_N[~rest_N] = sample_f2(decide(p_NC[~rest_N], values_C), true_NC[~rest_N])
        scores.append(f2_N.mean())
    best = max(np.flatnonzero(np.isclose(scores, max(scores), atol=1e-12)))
    ends = fit_single(p_NC, true_NC), fit_exact(p_NC, true_NC)
    expected_C = drawn_together(*ends, true_NC.sum(axis=0), STRENGTHS[best])
    np.testing.assert_allclose(fit_shrunk(p_NC, true_NC), expected_C)


def test_a_label_with_more_positives_keeps_more_of_its_own_threshold() -> None:
    single_C, exact_C = np.full(3, 0.2), np.full(3, 0.6)
    drawn_C = drawn_together(single_C, exact_C, np.array([1, 100, 10_000]), 100.0)
    assert 0.2 < drawn_C[0] < drawn_C[1] < drawn_C[2] < 0.6
    # halfway between the logits of 0.2 and 0.6
    assert drawn_C[1] == pytest.approx(probabilities(np.array(np.log(0.25) + np.log(1.5)) / 2))


def test_no_strength_leaves_the_exact_thresholds_and_infinite_strength_the_single_one() -> None:
    single_C, exact_C = np.full(3, 0.25), np.array([0.0, 0.4, 1.0])
    assert drawn_together(single_C, exact_C, np.array([0, 5, 5]), 0.0).tolist() == exact_C.tolist()
    np.testing.assert_allclose(drawn_together(single_C, exact_C, np.array([0, 5, 5]), np.inf), single_C)


def test_labels_that_need_thresholds_of_their_own_get_them() -> None:
    p_NC, true_NC = made(3000, seed=1, shift_C=[-3.0, 0.0, 3.0, 1.0])
    shrunk, single = (mean_f2(decide(p_NC, fit(p_NC, true_NC)), true_NC) for fit in (fit_shrunk, fit_single))
    assert shrunk > single + 0.01


def test_on_few_rows_it_loses_much_less_than_exact_thresholds_do() -> None:
    exact, names = next(rule for rule in RULES if rule.name == "exact"), [str(c) for c in range(12)]
    frequency_C = np.geomspace(0.6, 0.02, 12)
    gains = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        true_NC = rng.random((150, 12)) < frequency_C
        score_NC = rng.normal(np.where(true_NC, 1.2, -1.2), 1.0)
        p_NC = probabilities(2.4 * score_NC + np.log(frequency_C / (1 - frequency_C)))
        folds = fold_numbers(150, 5, seed=seed)
        f2 = [mean_f2(cross_fitted(rule, p_NC, true_NC, folds, names), true_NC) for rule in (SHRUNK, exact)]
        gains.append(f2[0] - f2[1])
    assert np.mean(gains) > 0.005


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_handful_of_rows_is_enough(rows: int) -> None:
    p_NC, true_NC = made(rows, seed=2)
    values_C = fit_shrunk(p_NC, true_NC)
    assert ((values_C >= 0) & (values_C <= 1)).all()
