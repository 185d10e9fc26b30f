"""planet_dist.thresholds: each fit against a slow, plain search of the same thing."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import fbeta_score

from planet_dist import thresholds
from planet_dist.cuts import GRID_S
from planet_dist.metrics import mean_f2, probabilities
from planet_dist.thresholds import RULES, Thresholds, decide
from shards.errors import RunError

# few distinct values, so that ties within a sample and within a label are the common case
TIED = st.sampled_from([0.0, 0.1, 0.125, 0.4, 0.75, 1.0])
BY_NAME = {rule.name: rule for rule in RULES}


@st.composite
def rows(draw, values=TIED):
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 4)))
    return draw(arrays(np.float64, shape, elements=values)), draw(arrays(np.bool_, shape))


def made(count, labels, seed):
    rng = np.random.default_rng(seed)
    true_NC = rng.random((count, labels)) < np.linspace(0.05, 0.8, labels)
    return probabilities(rng.normal(np.where(true_NC, 1.0, -1.0), 1.2)), true_NC


def _score(probabilities_NC, true_NC, values_C):
    return mean_f2(decide(probabilities_NC, values_C), true_NC)


def _cuts_of(values_N):
    return np.append(np.unique(values_N), 0.0)


@given(rows())
@settings(deadline=None)
def test_best_single_equals_trying_every_threshold(given_rows):
    probabilities_NC, true_NC = given_rows
    tried = [_score(probabilities_NC, true_NC, value) for value in _cuts_of(probabilities_NC)]
    fitted_C = thresholds.fit_single(probabilities_NC, true_NC)
    assert len(set(fitted_C.tolist())) == 1
    assert _score(probabilities_NC, true_NC, fitted_C) == pytest.approx(max(tried), abs=1e-12)


@given(rows())
@settings(deadline=None)
def test_no_single_label_can_better_the_exact_sweep(given_rows):
    probabilities_NC, true_NC = given_rows
    fitted_C = thresholds.fit_exact(probabilities_NC, true_NC)
    reached = _score(probabilities_NC, true_NC, fitted_C)
    for label in range(true_NC.shape[1]):
        for value in _cuts_of(probabilities_NC[:, label]):
            other_C = fitted_C.copy()
            other_C[label] = value
            assert _score(probabilities_NC, true_NC, other_C) <= reached + 1e-9


@given(rows())
@settings(deadline=None)
def test_no_single_label_can_better_the_joint_grid(given_rows):
    probabilities_NC, true_NC = given_rows
    fitted_C = thresholds.fit_joint_grid(probabilities_NC, true_NC)
    assert set(fitted_C.tolist()) <= set(GRID_S.tolist())
    reached = _score(probabilities_NC, true_NC, fitted_C)
    for label, step in itertools.product(range(true_NC.shape[1]), GRID_S[::5]):
        other_C = fitted_C.copy()
        other_C[label] = step
        assert _score(probabilities_NC, true_NC, other_C) <= reached + 1e-9


@given(rows())
@settings(deadline=None, max_examples=30)
def test_independent_grid_gives_each_label_the_best_f2_of_its_own(given_rows):
    probabilities_NC, true_NC = given_rows
    fitted_C = thresholds.fit_independent_grid(probabilities_NC, true_NC)
    for label, value in enumerate(fitted_C):
        truth_N = true_NC[:, label]
        scores = [
            fbeta_score(truth_N, probabilities_NC[:, label] > step, beta=2, zero_division=0)
            for step in (value, *GRID_S[::7])
        ]
        assert scores[0] == pytest.approx(max(scores), abs=1e-12)


def test_independent_grid_counts_the_truth_that_no_step_reaches():
    # four bear the label, two of them at probability 0. Deciding only the first scores 5 x 1 / (4 x 4 + 1);
    # the first 20, with two hits, 5 x 2 / (4 x 4 + 20), which is less, but more if the support were 5
    probabilities_N1 = np.array([0.9] + [0.5] * 19 + [0.0] * 2)[:, None]
    true_N1 = np.array([True] * 2 + [False] * 18 + [True] * 2)[:, None]
    assert 0.5 <= thresholds.fit_independent_grid(probabilities_N1, true_N1)[0] < 0.9


def test_exact_finds_the_best_of_all_combinations_of_two_labels():
    # not promised of coordinate ascent in general; on these it holds, and would not if a label were skipped
    for seed in range(5):
        probabilities_NC, true_NC = made(40, 2, seed)
        cuts = [_cuts_of(values_N) for values_N in probabilities_NC.T]
        best = max(_score(probabilities_NC, true_NC, np.array(pair)) for pair in itertools.product(*cuts))
        fitted_C = thresholds.fit_exact(probabilities_NC, true_NC)
        assert _score(probabilities_NC, true_NC, fitted_C) == pytest.approx(best, abs=1e-12)


def test_finer_searches_score_no_worse_on_their_own_rows():
    probabilities_NC, true_NC = made(800, 6, seed=1)
    score = {rule.name: _score(probabilities_NC, true_NC, rule.fit(probabilities_NC, true_NC)) for rule in RULES}
    assert score["best-single"] >= max(score["flat-0.5"], score["flat-0.2"]) - 1e-12
    assert score["exact"] >= score["best-single"] - 1e-12
    assert score["exact"] > score["flat-0.5"] + 0.01


def test_every_rule_survives_rows_and_labels_without_truth():
    probabilities_NC = np.array([[0.3, 0.6], [0.2, 0.7]])
    for true_NC in (np.zeros((2, 2), bool), np.ones((2, 2), bool), np.array([[False, True]] * 2)):
        for rule in RULES:
            values_C = rule.fit(probabilities_NC, true_NC)
            assert values_C.shape == (2,)
            assert ((values_C >= 0) & (values_C <= 1)).all()


def test_a_label_that_no_sample_bears_is_not_decided_by_the_exact_sweep():
    probabilities_NC, true_NC = made(200, 3, seed=2)
    true_NC[:, 1] = False
    values_C = thresholds.fit_exact(probabilities_NC, true_NC)
    assert not decide(probabilities_NC, values_C)[:, 1].any()


def test_saturated_half_precision_probabilities_are_fitted():
    logits_NC = np.random.default_rng(3).normal(0, 15, (300, 4)).astype(np.float16)
    true_NC = logits_NC > 3
    given_NC = probabilities(logits_NC).astype(np.float16)
    fitted = BY_NAME["exact"].decision(given_NC.astype(np.float64), true_NC, list("abcd"))
    assert mean_f2(fitted.decide(given_NC), true_NC) > 0.99 * mean_f2(true_NC, true_NC)


def test_many_labels_are_fitted():
    probabilities_NC, true_NC = made(60, 64, seed=4)
    values_C = thresholds.fit_exact(probabilities_NC, true_NC)
    single_C = thresholds.fit_single(probabilities_NC, true_NC)
    assert _score(probabilities_NC, true_NC, values_C) > _score(probabilities_NC, true_NC, single_C)


def test_a_decision_needs_a_probability_strictly_above_the_threshold():
    rule = Thresholds("flat-0.5", ("a", "b"), (0.5, 1.0))
    assert rule.decide(np.array([[0.5, 1.0], [0.75, 1.0]])).tolist() == [[False, False], [True, False]]


def test_single_precision_probabilities_are_compared_in_double_precision():
    # float32(0.1) exceeds 0.1; rounding the threshold to float32 would lose that
    assert decide(np.array([[np.float32(0.1)]]), np.array([0.1])).all()


def test_probabilities_of_another_number_of_labels_are_refused():
    rule = Thresholds("flat-0.5", ("a", "b"), (0.5, 0.5))
    with pytest.raises(RunError, match="of 1 labels for a rule of 2"):
        rule.decide(np.array([[0.5]]))


def test_the_constant_rule_is_the_best_of_all_label_sets_when_one_label_is_common():
    rng = np.random.default_rng(0)
    true_NC = rng.random((200, 5)) < np.array([0.95, 0.6, 0.3, 0.05, 0.01])
    values_C = BY_NAME["constant"].fit(np.full(true_NC.shape, 0.5), true_NC)
    answers = [np.array(answer, dtype=bool) for answer in itertools.product([0, 1], repeat=5)]
    best = max(answers, key=lambda answer: mean_f2(np.tile(answer, (200, 1)), true_NC))
    assert np.array_equal(values_C == 0.0, best)
    assert set(values_C) == {0.0, 1.0}
