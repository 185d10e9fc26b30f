"""Ways to combine recipes: held to libraries and to plain loops on small cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from planet_dist.metrics import Bools, Floats, probabilities
from planet_dist.stack import (
    Stack,
    StackedCombination,
    columns,
    logits,
    mean_weights,
    own_label_weights,
    recipe_answers,
    recipe_mean,
)
from planet_dist.stack_fits import COMBINERS, Combiner, fit_ridge, fit_weighted, row_losses
from planet_dist.stack_logistic import fit_logistic
from planet_dist.thresholds import Thresholds
from shards.errors import RunError

BY_NAME = {combiner.name: combiner for combiner in COMBINERS}


def made(recipes: int, count: int, labels: int, seed: int = 0) -> tuple[Floats, Bools]:
    """Answers of recipes that know something, and that hear the label beside a bit, and the truth."""
    rng = np.random.default_rng(seed)
    truth_NC = rng.random((count, labels)) < np.linspace(0.5, 0.15, labels)
    noise_RNC = rng.normal(size=(recipes, count, labels)) * (1 + np.arange(recipes))[:, None, None]
    logits_RNC = 2.5 * truth_NC - 1.2 + noise_RNC + 0.5 * np.roll(truth_NC, 1, axis=1)
    return probabilities(logits_RNC), truth_NC


def everyone(recipes: int, labels: int) -> Bools:
    return np.ones((recipes, labels), dtype=bool)


def test_a_stack_adds_up_what_every_recipe_says_about_every_label() -> None:
    answers_RNC, _ = made(2, 5, 3)
    rng = np.random.default_rng(1)
    weights_DC, bias_C = rng.normal(size=(6, 3)), rng.normal(size=3)
    expected = np.zeros((5, 3))
    for n, c in itertools.product(range(5), range(3)):
        total = bias_C[c]
        for r, other in itertools.product(range(2), range(3)):
            total += weights_DC[r * 3 + other, c] * np.log(answers_RNC[r, n, other] / (1 - answers_RNC[r, n, other]))
        expected[n, c] = 1 / (1 + np.exp(-total))
    np.testing.assert_allclose(Stack("logits", weights_DC, bias_C).probabilities(answers_RNC), expected)
    sums_NC = np.einsum("rnk,rkc->nc", answers_RNC, weights_DC.reshape(2, 3, 3)) + bias_C
    linear = Stack("probabilities", weights_DC, bias_C).probabilities(answers_RNC)
    np.testing.assert_allclose(linear, np.clip(sums_NC, 0, 1))
    assert ((sums_NC < 0) | (sums_NC > 1)).any()


def test_a_chip_is_combined_alike_in_any_company() -> None:
    answers_RNC, _ = made(6, 200, 17)
    stack = Stack("logits", np.random.default_rng(0).normal(size=(102, 17)), np.zeros(17))
    together = stack.probabilities(answers_RNC)
    for size in (1, 3, 16, 128):
        parts = [stack.probabilities(answers_RNC[:, at : at + size]) for at in range(0, 200, size)]
        assert (np.concatenate(parts) == together).all(), size


def test_certain_answers_stay_finite() -> None:
    answers_RNC = np.array([[[0.0, 1.0]], [[1.0, 1.0]]])
    combined = Stack("logits", mean_weights(everyone(2, 2)), np.zeros(2)).probabilities(answers_RNC)
    np.testing.assert_allclose(combined, [[0.5, 1.0]], atol=1e-4)
    assert np.isfinite(logits(answers_RNC)).all()


def test_means_are_taken_over_the_recipes_that_speak_for_a_label() -> None:
    answers_RNC, _ = made(3, 40, 2)
    speaks_RC = np.array([[True, True], [True, False], [False, True]])
    mean_NC = recipe_mean(answers_RNC, speaks_RC)
    np.testing.assert_allclose(mean_NC[:, 0], (answers_RNC[0, :, 0] + answers_RNC[1, :, 0]) / 2)
    np.testing.assert_allclose(mean_NC[:, 1], (answers_RNC[0, :, 1] + answers_RNC[2, :, 1]) / 2)


def test_a_recipe_answers_by_the_mean_of_its_networks() -> None:
    answers_MNC, _ = made(5, 30, 3)
    answers_RNC = recipe_answers(answers_MNC, [(0, 1, 4), (2, 3)])
    np.testing.assert_allclose(answers_RNC[0], (answers_MNC[0] + answers_MNC[1] + answers_MNC[4]) / 3)
    np.testing.assert_allclose(answers_RNC[1], (answers_MNC[2] + answers_MNC[3]) / 2)


def test_a_stacked_combination_averages_combines_and_decides() -> None:
    answers_MNC, _ = made(4, 50, 2)
    stack = Stack("probabilities", own_label_weights(np.array([[0.25, 0.5], [0.75, 0.5]])), np.array([0.1, 0.0]))
    decision = Thresholds("flat-0.2", ("a", "b"), (0.6, 0.3))
    combination = StackedCombination(((0, 1), (2, 3)), stack, decision)
    first, second = recipe_answers(answers_MNC, [(0, 1), (2, 3)])
    expected = np.clip(first * [0.25, 0.5] + second * [0.75, 0.5] + [0.1, 0.0], 0, 1)
    np.testing.assert_allclose(combination.probabilities(answers_MNC), expected)
    assert (combination.decide(answers_MNC) == (expected > [0.6, 0.3])).all()
    with pytest.raises(RunError, match="nan"):
        combination.decide(np.full((4, 1, 2), np.nan))


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 50.0])
def test_ridge_is_least_squares_on_rows_that_pull_each_weight_to_the_means(penalty: float) -> None:
    answers_RNC, true_NC = made(2, 60, 3)
    inputs_ND = columns(answers_RNC, "probabilities")
    (stack,) = fit_ridge(inputs_ND, true_NC, everyone(2, 3), [penalty])
    mean_DC = mean_weights(everyone(2, 3))
    # one row more for each weight: sqrt(penalty) x (weight - its mean's)
    rows = np.vstack([np.column_stack([inputs_ND, np.ones(60)]), np.sqrt(penalty) * np.eye(6, 7)])
    wanted = np.vstack([true_NC, np.sqrt(penalty) * mean_DC])
    expected = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    np.testing.assert_allclose(stack.weights_DC, expected[:-1], atol=1e-9)
    np.testing.assert_allclose(stack.bias_C, expected[-1], atol=1e-9)


def test_logistic_stacking_without_a_penalty_is_scikit_learns_regression() -> None:
    answers_RNC, true_NC = made(2, 300, 3)
    inputs_ND = columns(answers_RNC, "logits")
    (stack,) = fit_logistic(inputs_ND, true_NC, everyone(2, 3), penalties=[1e-9])
    for c in range(3):
        expected = LogisticRegression(C=np.inf, tol=1e-10, max_iter=5000).fit(inputs_ND, true_NC[:, c])
        np.testing.assert_allclose(stack.weights_DC[:, c], expected.coef_[0], rtol=1e-3, atol=1e-4)
        assert stack.bias_C[c] == pytest.approx(expected.intercept_[0], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("penalty", [0.1, 3.0, 100.0])
def test_a_logistic_fit_is_where_its_stated_sum_has_no_slope(penalty: float) -> None:
    answers_RNC, true_NC = made(2, 150, 3)
    inputs_ND = columns(answers_RNC, "logits")
    stack = fit_logistic(inputs_ND, true_NC, everyone(2, 3), penalties=[1e4, penalty])[1]
    mean_DC = mean_weights(everyone(2, 3))

    def stated(c: int, weights_D: Floats, bias: float) -> float:
        entropy = row_losses("logits", probabilities(inputs_ND @ weights_D + bias), true_NC[:, c])
        return float(entropy.sum() + penalty / 2 * ((weights_D - mean_DC[:, c]) ** 2).sum())

    for c in range(3):
        weights_D, bias, step = stack.weights_DC[:, c], float(stack.bias_C[c]), 1e-4
        for d in range(6):
            aside_D = step * (np.arange(6) == d)
            slope = (stated(c, weights_D + aside_D, bias) - stated(c, weights_D - aside_D, bias)) / (2 * step)
            assert abs(slope) < 0.01, "of sums whose slope at the mean is tens"
        assert abs(stated(c, weights_D, bias + step) - stated(c, weights_D, bias - step)) / (2 * step) < 0.01
    at_mean = [stated(c, mean_DC[:, c], 0.0) for c in range(3)]
    assert sum(at_mean) - sum(stated(c, stack.weights_DC[:, c], float(stack.bias_C[c])) for c in range(3)) > 1


@pytest.mark.parametrize("missing", [False, True])
def test_logistic_stacking_ends_where_all_rows_or_none_bear_a_label(missing: bool) -> None:
    answers_RNC, true_NC = made(2, 80, 3)
    true_NC[:, 1] = not missing
    stacks = fit_logistic(columns(answers_RNC, "logits"), true_NC, everyone(2, 3), penalties=[1e3, 1.0])
    for stack in stacks:
        given_N = stack.probabilities(answers_RNC)[:, 1]
        assert (given_N < 1e-3).all() if missing else (given_N > 1 - 1e-3).all()


def test_label_weights_are_the_best_of_a_grid_of_weighted_means() -> None:
    answers_RNC, true_NC = made(3, 400, 2)
    (stack,) = fit_weighted(columns(answers_RNC, "probabilities"), true_NC, everyone(3, 2))
    weights_RCC = stack.weights_DC.reshape(3, 2, 2)
    assert (weights_RCC[:, 0, 1] == 0).all() and (weights_RCC[:, 1, 0] == 0).all() and (stack.bias_C == 0).all()
    for c in range(2):
        own_R = weights_RCC[:, c, c]
        assert own_R.sum() == pytest.approx(1) and (own_R >= 0).all() and own_R[0] > own_R[2]
        best = min(
            float(row_losses("logits", np.array(grid) @ answers_RNC[:, :, c], true_NC[:, c]).mean())
            for i, j in itertools.product(range(41), range(41))
            if i + j <= 40
            for grid in [(i / 40, j / 40, (40 - i - j) / 40)]
        )
        found = float(row_losses("logits", own_R @ answers_RNC[:, :, c], true_NC[:, c]).mean())
        assert found <= best + 1e-5


@pytest.mark.parametrize("name", ["ridge", "logistic"])
def test_a_great_penalty_gives_the_mean_back(name: str) -> None:
    answers_RNC, true_NC = made(2, 100, 3)
    combiner = BY_NAME[name]
    first = combiner.fit(columns(answers_RNC, combiner.scale), true_NC, everyone(2, 3))[0]
    np.testing.assert_allclose(first.weights_DC, mean_weights(everyone(2, 3)), atol=1e-3)


@pytest.mark.parametrize("combiner", COMBINERS, ids=lambda one: one.name)
def test_what_a_recipe_says_about_labels_that_it_was_not_trained_on_is_not_heard(combiner: Combiner) -> None:
    answers_RNC, true_NC = made(3, 200, 4)
    speaks_RC = everyone(3, 4)
    speaks_RC[2, 1:] = False
    changed_RNC = answers_RNC.copy()
    changed_RNC[2, :, 1:] = 0.5
    for stack in combiner.fit(columns(answers_RNC, combiner.scale), true_NC, speaks_RC):
        np.testing.assert_allclose(stack.probabilities(answers_RNC), stack.probabilities(changed_RNC), atol=1e-12)


def test_simpler_ways_stand_first_and_take_fewer_values() -> None:
    taken = [combiner.fitted(6, 17) for combiner in COMBINERS]
    assert taken == sorted(taken) and taken[:2] == [0, 0]
    for combiner in COMBINERS:
        given = [penalty for penalty in combiner.penalties if penalty is not None]
        assert given == sorted(given, reverse=True)
        answers_RNC, true_NC = made(2, 50, 3)
        fits = combiner.fit(columns(answers_RNC, combiner.scale), true_NC, everyone(2, 3))
        assert len(fits) == len(combiner.penalties)
