"""planet_dist.metrics, with scikit-learn as the reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import fbeta_score, log_loss, precision_recall_fscore_support

from planet_dist import metrics
from shards.errors import RunError


@st.composite
def decisions_and_targets(draw):
    shape = (draw(st.integers(1, 12)), draw(st.integers(2, 7)))
    return draw(arrays(np.bool_, shape)), draw(arrays(np.bool_, shape))


@given(decisions_and_targets())
@settings(deadline=None)
def test_sample_averaged_f2_is_that_of_scikit_learn(pair):
    decided_NC, true_NC = pair
    expected = fbeta_score(true_NC, decided_NC, beta=2, average="samples", zero_division=0)
    assert abs(metrics.mean_f2(decided_NC, true_NC) - expected) < 1e-12


@given(decisions_and_targets())
@settings(deadline=None)
def test_label_scores_are_those_of_scikit_learn(pair):
    decided_NC, true_NC = pair
    precision_C, recall_C, f2_C, support_C = precision_recall_fscore_support(
        true_NC, decided_NC, beta=2, average=None, zero_division=0
    )
    scores = metrics.label_scores(decided_NC, true_NC)
    np.testing.assert_allclose(scores.f2_C, f2_C, atol=1e-12)
    np.testing.assert_allclose(scores.precision_C, precision_C, atol=1e-12)
    np.testing.assert_allclose(scores.recall_C, recall_C, atol=1e-12)
    np.testing.assert_array_equal(scores.support_C, support_C)


def test_a_sample_without_true_or_decided_labels_scores_zero():
    nothing_NC = np.zeros((1, 3), dtype=np.uint8)
    assert metrics.sample_f2(nothing_NC, nothing_NC).tolist() == [0.0]


def test_f2_of_a_worked_example():
    # one hit of two true labels, two decided: 5 x 1 / (4 x 2 + 2)
    assert metrics.sample_f2(np.array([[1, 1, 0]]), np.array([[1, 0, 1]])).tolist() == [0.5]


def test_scores_take_floats_booleans_and_integers_alike():
    decided_NC, true_NC = np.array([[1, 0], [1, 1]]), np.array([[1, 1], [0, 1]])
    expected = metrics.mean_f2(decided_NC, true_NC)
    for dtype in (bool, np.uint8, np.float32):
        assert metrics.mean_f2(decided_NC.astype(dtype), true_NC.astype(dtype)) == expected


def test_accuracy_counts_each_label_of_each_sample():
    probabilities_NC = np.array([[0.9, 0.2], [0.5, 0.6]])
    assert metrics.accuracy(probabilities_NC, np.array([[1, 1], [1, 1]])) == 0.5


def test_probabilities_of_extreme_logits_are_zero_and_one_without_warnings():
    logits = np.array([[-1e4, 0.0, 1e4], [-np.inf, 20.0, np.inf]])
    expected = [[0.0, 0.5, 1.0], [0.0, 1 / (1 + np.exp(-20.0)), 1.0]]
    np.testing.assert_array_equal(metrics.probabilities(logits), expected)


def test_half_precision_logits_are_transformed_in_double_precision():
    logits = np.array([[-12.5]], dtype=np.float16)
    assert metrics.probabilities(logits)[0, 0] == pytest.approx(1 / (1 + np.exp(12.5)), rel=1e-14)


def test_cross_entropies_of_logits_and_probabilities_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    logits_NC, true_NC = rng.normal(0, 3, (50, 4)), rng.random((50, 4)) < 0.4
    probabilities_NC = metrics.probabilities(logits_NC)
    expected = log_loss(true_NC.ravel(), probabilities_NC.ravel())
    assert metrics.cross_entropy_of_logits(logits_NC, true_NC) == pytest.approx(expected, rel=1e-12)
    assert metrics.cross_entropy(probabilities_NC, true_NC) == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_stays_finite_when_a_saturated_probability_is_wrong():
    wrong = metrics.cross_entropy(np.array([[0.0]]), np.array([[1]]))
    assert wrong == pytest.approx(-np.log(np.finfo(float).eps))
    assert metrics.cross_entropy_of_logits(np.array([[-800.0]]), np.array([[1]])) == 800.0


def test_bootstrap_has_the_spread_of_a_mean():
    scores_N1 = np.random.default_rng(1).choice([0.0, 0.5, 1.0], size=(4000, 1))
    means_B1 = metrics.bootstrap_means(scores_N1, seed=0, resamples=4000)
    assert means_B1.mean() == pytest.approx(scores_N1.mean(), abs=5e-4)
    assert means_B1.std() == pytest.approx(scores_N1.std() / np.sqrt(4000), rel=0.06)


def test_bootstrap_columns_share_their_draws():
    scores_N = np.random.default_rng(2).choice([0.0, 0.5, 1.0], size=500)
    means_BR = metrics.bootstrap_means(np.stack([scores_N, scores_N + 0.25], axis=1), seed=0)
    np.testing.assert_allclose(means_BR[:, 1] - means_BR[:, 0], 0.25, atol=1e-12)


def test_bootstrap_is_a_function_of_its_seed():
    scores_N1 = np.arange(20.0)[:, None]
    first = metrics.bootstrap_means(scores_N1, seed=5)
    np.testing.assert_array_equal(first, metrics.bootstrap_means(scores_N1, seed=5))
    assert not np.array_equal(first, metrics.bootstrap_means(scores_N1, seed=6))


def test_the_interval_holds_the_f2_and_narrows_with_more_samples():
    rng = np.random.default_rng(3)
    true_NC = rng.random((2000, 5)) < 0.4
    decided_NC = true_NC ^ (rng.random((2000, 5)) < 0.1)
    scores_N1 = metrics.sample_f2(decided_NC, true_NC)[:, None]
    low, high = metrics.interval(metrics.bootstrap_means(scores_N1, seed=0)[:, 0])
    few_low, few_high = metrics.interval(metrics.bootstrap_means(scores_N1[:100], seed=0)[:, 0])
    assert low < metrics.mean_f2(decided_NC, true_NC) < high
    assert high - low < few_high - few_low


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.5, np.inf])
def test_an_unlawful_probability_is_an_error_that_names_its_row(value):
    probabilities_NC = np.full((6, 3), 0.5)
    probabilities_NC[4, 2] = value
    with pytest.raises(RunError, match=r"row 4, label 2: the probability is .*must be in \[0, 1\]"):
        metrics.check_probabilities(probabilities_NC)


def test_empty_and_flat_probabilities_are_errors():
    for values in (np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(3)):
        with pytest.raises(RunError, match="must be"):
            metrics.check_probabilities(values)


def test_targets_other_than_zero_and_one_are_errors():
    with pytest.raises(RunError, match=r"row 1, label 0: the target is 2"):
        metrics.check_targets(np.array([[0], [2]]), (2, 1))
    with pytest.raises(RunError, match="same"):
        metrics.check_targets(np.array([[0], [1]]), (3, 1))


def test_intervals_of_labels_are_those_of_samples_drawn_with_replacement():
    rng = np.random.default_rng(3)
    true_NC = rng.random((300, 3)) < [0.5, 0.1, 0.02]
    decided_NC = true_NC ^ (rng.random((300, 3)) < 0.15)
    low_C, high_C = metrics.label_f2_intervals(decided_NC, true_NC, 0, 4000)
    drawn = [rng.integers(0, 300, 300) for _ in range(2000)]
    f2_BC = np.stack([metrics.label_scores(decided_NC[rows], true_NC[rows]).f2_C for rows in drawn])
    np.testing.assert_allclose(low_C, np.quantile(f2_BC, 0.025, axis=0), atol=0.012)
    np.testing.assert_allclose(high_C, np.quantile(f2_BC, 0.975, axis=0), atol=0.012)
    assert (low_C < metrics.label_scores(decided_NC, true_NC).f2_C).all()
    again_C, _ = metrics.label_f2_intervals(decided_NC[::-1], true_NC[::-1], 0, 4000)
    assert (again_C == low_C).all(), "the order of samples means nothing"


def test_standings_pair_each_way_to_decide_with_the_best_on_the_same_draws() -> None:
    rng = np.random.default_rng(3)
    true_NC = rng.random((400, 5)) < 0.4
    better_NC = true_NC ^ (rng.random((400, 5)) < 0.05)
    worse_NC = better_NC & ~(np.arange(400) % 4 == 0)[:, None]  # a quarter of its samples lose all labels
    worse, better = metrics.standings([worse_NC, better_NC], true_NC, seed=0)
    assert (worse.f2, better.f2) == (metrics.mean_f2(worse_NC, true_NC), metrics.mean_f2(better_NC, true_NC))
    assert worse.low < worse.f2 < worse.high < better.low < better.f2 < better.high
    assert (better.behind_low, better.behind_high) == (0.0, 0.0)
    distance_N = metrics.sample_f2(better_NC, true_NC) - metrics.sample_f2(worse_NC, true_NC)
    deviation = distance_N.std() / 20
    low, high = distance_N.mean() - 1.96 * deviation, distance_N.mean() + 1.96 * deviation
    np.testing.assert_allclose([worse.behind_low, worse.behind_high], [low, high], atol=deviation / 3)
