"""planet_dist.crossfit: rules are judged on rows they never saw, and the simplest good one is chosen."""

import json

import numpy as np
import pytest

from planet_dist.crossfit import RuleScore, choose, cross_fitted, evaluate_rules, fold_numbers
from planet_dist.metrics import mean_f2, probabilities
from planet_dist.thresholds import RULES, Rule
from shards.errors import ConfigError, RunError

LABELS = ("a", "b", "c", "d")
BY_NAME = {rule.name: rule for rule in RULES}


def made(count, seed, shift=0.0):
    """Calibrated probabilities, as training aims at, with their logits then shifted."""
    rng = np.random.default_rng(seed)
    frequency_C = np.array([0.8, 0.4, 0.3, 0.1])
    true_NC = rng.random((count, len(LABELS))) < frequency_C
    score_NC = rng.normal(np.where(true_NC, 1.2, -1.2), 1.0)
    return probabilities(2.4 * score_NC + np.log(frequency_C / (1 - frequency_C)) + shift), true_NC


def test_no_row_is_decided_by_a_rule_fitted_on_it():
    # each row has its own probability, by which the rule tells which rows it was given
    count = 23
    probabilities_NC = ((np.arange(count) + 0.5) / count)[:, None]
    true_NC = np.ones((count, 1), dtype=bool)
    fold_of_N = fold_numbers(count, 4, seed=0)
    fits = []

    def remember(given_NC, given_true_NC):
        assert len(given_NC) == len(given_true_NC)
        fits.append(set(given_NC[:, 0].tolist()))
        return np.zeros(1)

    decided_NC = cross_fitted(Rule("spy", lambda labels: 0, remember), probabilities_NC, true_NC, fold_of_N, ["a"])
    assert decided_NC.all()
    everything = set(probabilities_NC[:, 0].tolist())
    held_out = [everything - seen for seen in fits]
    assert len(fits) == 4
    assert set.union(*held_out) == everything
    assert sum(len(part) for part in held_out) == count


def test_a_rule_that_remembers_its_rows_scores_nothing_when_cross_fitted():
    # decides exactly the rows it was fitted on: perfect on them, useless on any other
    count = 40
    probabilities_NC = np.where(np.arange(count) % 2 == 0, 0.25, 0.75)[:, None]
    fold_of_N = np.arange(count) % 2
    true_NC = np.ones((count, 1), dtype=bool)
    memorise = Rule("memory", lambda labels: 1, lambda given_NC, _: np.full(1, 1.0 - given_NC.min()))
    # fold 0 is fitted on 0.75 (threshold 0.25, not exceeded by 0.25), fold 1 on 0.25 (threshold 0.75)
    assert not cross_fitted(memorise, probabilities_NC, true_NC, fold_of_N, ["a"]).any()


def test_folds_hold_every_row_once_and_differ_by_one_at_most():
    for count, folds in ((10, 2), (11, 3), (7, 7), (1000, 5)):
        sizes = np.bincount(fold_numbers(count, folds, seed=1))
        assert len(sizes) == folds
        assert sizes.sum() == count
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("folds", [-1, 0, 1, 11])
def test_a_number_of_folds_that_cannot_be_is_an_error(folds):
    with pytest.raises(ConfigError, match="give 2 to 10"):
        fold_numbers(10, folds, seed=0)


def test_a_negative_seed_is_an_error():
    with pytest.raises(ConfigError, match="seed -1 is negative"):
        fold_numbers(10, 2, seed=-1)


def test_figures_do_not_depend_on_the_order_of_the_rows():
    probabilities_NC, true_NC = made(300, seed=0)
    ids_N = np.random.default_rng(1).permutation(10_000)[:300]
    shuffled_N = np.random.default_rng(2).permutation(300)
    first = evaluate_rules(probabilities_NC, true_NC, LABELS, ids_N=ids_N)
    second = evaluate_rules(probabilities_NC[shuffled_N], true_NC[shuffled_N], LABELS, ids_N=ids_N[shuffled_N])
    assert first.to_json() == second.to_json()
    assert first.chosen == second.chosen


def test_same_rows_figures_are_those_of_a_fit_on_all_rows():
    probabilities_NC, true_NC = made(300, seed=3)
    evaluation = evaluate_rules(probabilities_NC, true_NC, LABELS)
    for rule, score in zip(RULES, evaluation.rules, strict=True):
        decided_NC = probabilities_NC > rule.fit(probabilities_NC, true_NC)
        assert score.same_rows_f2 == pytest.approx(mean_f2(decided_NC, true_NC), abs=1e-12)
        assert score.low < score.cross_fitted_f2 < score.high
        if score.fitted == 0:
            assert score.cross_fitted_f2 == pytest.approx(score.same_rows_f2, abs=1e-12)


def test_fitting_per_label_looks_better_on_its_own_rows_than_on_others():
    probabilities_NC, true_NC = made(60, seed=4)
    scores = {score.rule: score for score in evaluate_rules(probabilities_NC, true_NC, LABELS).rules}
    assert scores["exact"].same_rows_f2 > scores["exact"].cross_fitted_f2 + 0.01


def test_a_flat_rule_is_chosen_where_fitting_gains_nothing():
    probabilities_NC, true_NC = made(200, seed=5)
    evaluation = evaluate_rules(
        probabilities_NC, true_NC, LABELS, rules=[BY_NAME["flat-0.2"], BY_NAME["best-single"], BY_NAME["exact"]]
    )
    assert evaluation.chosen.rule == "flat-0.2"


def test_one_fitted_value_is_chosen_where_all_probabilities_are_shifted():
    probabilities_NC, true_NC = made(1000, seed=6, shift=-5.0)
    assert evaluate_rules(probabilities_NC, true_NC, LABELS).chosen.rule == "best-single"


def test_a_fit_per_label_is_chosen_where_each_label_is_shifted_otherwise():
    probabilities_NC, true_NC = made(2000, seed=7, shift=np.array([-4.0, 0.0, 3.0, -2.0]))
    evaluation = evaluate_rules(probabilities_NC, true_NC, LABELS)
    assert evaluation.chosen_score.fitted == len(LABELS)
    decided_NC = evaluation.chosen.decide(probabilities_NC)
    assert mean_f2(decided_NC, true_NC) == pytest.approx(evaluation.chosen_score.same_rows_f2, abs=1e-12)


def _scored(name, fitted, f2, behind_low):
    return RuleScore(name, fitted, f2, f2, f2 - 0.01, f2 + 0.01, behind_low, behind_low + 0.01)


def test_the_simplest_of_the_rules_within_noise_of_the_best_is_chosen():
    worse, flat, single, best = (
        _scored("worse", 0, 0.80, 0.05),
        _scored("flat", 0, 0.89, -0.001),
        _scored("single", 1, 0.895, -0.001),
        _scored("best", 17, 0.90, 0.0),
    )
    assert choose([worse, flat, single, best]) == 1
    assert choose([worse, single, best]) == 1
    assert choose([worse, best]) == 1


def test_of_equally_simple_rules_the_better_is_chosen():
    assert choose([_scored("first", 0, 0.89, -0.01), _scored("second", 0, 0.90, 0.0)]) == 1


def test_a_repeated_id_is_an_error_that_names_it():
    probabilities_NC, true_NC = made(4, seed=8)
    with pytest.raises(RunError, match="id 7 comes 2 times"):
        evaluate_rules(probabilities_NC, true_NC, LABELS, ids_N=np.array([3, 7, 1, 7]), folds=2)
    with pytest.raises(RunError, match=r"ids have shape \(3,\) for 4 rows"):
        evaluate_rules(probabilities_NC, true_NC, LABELS, ids_N=np.array([3, 7, 1]), folds=2)


def test_a_probability_that_is_none_is_an_error_that_names_its_row():
    probabilities_NC, true_NC = made(10, seed=5)
    probabilities_NC[7, 1] = np.nan
    with pytest.raises(RunError, match="row 7, label 1"):
        evaluate_rules(probabilities_NC, true_NC, LABELS)


def test_label_names_must_match_the_columns():
    probabilities_NC, true_NC = made(10, seed=9)
    with pytest.raises(RunError, match="3 label names for 4 columns"):
        evaluate_rules(probabilities_NC, true_NC, LABELS[:3])


def test_the_report_is_plain_json():
    probabilities_NC, true_NC = made(100, seed=10)
    table = evaluate_rules(probabilities_NC, true_NC, LABELS).to_json()
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert [row["label"] for row in table["labels"]] == list(LABELS)
    assert [row["support"] for row in table["labels"]] == true_NC.sum(axis=0).tolist()
