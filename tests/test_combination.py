"""Combinations against votes counted by hand, label by label and chip by chip."""

from __future__ import annotations

import numpy as np
import pytest

from planet_dist.calibration import Unchanged
from planet_dist.combination import (
    COMBINATION_RULES,
    Combination,
    CombinationRule,
    fit_combination,
    mean_probabilities,
    others_right,
)
from planet_dist.decision import ExpectedF2
from planet_dist.metrics import Bools, Floats
from planet_dist.thresholds import RULES, Rule, Thresholds
from shards.errors import RunError

BY_NAME = {rule.name: rule for rule in RULES}
LABELS = ["a", "b", "c", "d", "e"]


def above(*values: float) -> Thresholds:
    """Thresholds of so many labels."""
    return Thresholds("made", tuple(LABELS[: len(values)]), values)


def drawn(members: int, seed: int = 0, chips: int = 60, labels: int = 5) -> tuple[Floats, Bools, Combination]:
    """Probabilities on a coarse grid, so that thresholds are met exactly; some members silent on some labels."""
    rng = np.random.default_rng(seed)
    p_MNC = rng.integers(0, 11, (members, chips, labels)) / 10
    speaks_MC = rng.random((members, labels)) < 0.7
    speaks_MC[rng.integers(members, size=labels), np.arange(labels)] = True
    own = tuple(above(*rng.integers(0, 11, labels) / 10) for _ in range(members))
    mean = above(*rng.integers(0, 11, labels) / 10)
    rare_C = np.arange(labels) % 2 == 0
    true_NC = rng.random((chips, labels)) < 0.4
    return p_MNC, true_NC, Combination("mean", speaks_MC, own, mean, rare_C)


def mean_of(combination: Combination) -> Thresholds:
    assert isinstance(combination.mean, Thresholds)
    return combination.mean


def counted_by_hand(combination: Combination, p_MNC: Floats, chip: int, label: int) -> bool:
    members = [m for m in range(len(p_MNC)) if combination.speaks_MC[m, label]]
    yes = [m for m in members if combination.own[m].decide(p_MNC[m])[chip, label]]
    total = 0.0
    for m in members:
        total += p_MNC[m, chip, label]
    by_mean = total / len(members) > mean_of(combination).values[label]
    if combination.rule == "vote":
        return len(yes) >= len(members) - len(yes)
    if combination.rule == "any-rare" and combination.rare_C[label]:
        return bool(yes)
    return bool(by_mean)


@pytest.mark.parametrize("rule", COMBINATION_RULES)
@pytest.mark.parametrize("members", [1, 2, 3, 4, 5])
def test_each_decision_is_the_one_counted_by_hand(rule: CombinationRule, members: int) -> None:
    p_MNC, _, drawn_combination = drawn(members, seed=members)
    combination = Combination(
        rule,
        drawn_combination.speaks_MC,
        drawn_combination.own,
        drawn_combination.mean,
        drawn_combination.rare_C,
    )
    expected = [[counted_by_hand(combination, p_MNC, n, c) for c in range(5)] for n in range(60)]
    assert combination.decide(p_MNC).tolist() == expected


def test_two_of_three_votes_carry_a_label_and_one_does_not() -> None:
    everyone = np.ones((3, 1), dtype=bool)
    vote = Combination("vote", everyone, (above(0.2), above(0.5), above(0.9)), above(0.0), np.zeros(1, dtype=bool))
    chips_MN1 = np.array([[[0.3], [0.3], [0.1]], [[0.6], [0.4], [0.4]], [[0.1], [0.9], [0.91]]])
    assert vote.decide(chips_MN1).tolist() == [[True], [False], [False]]


def test_an_even_split_says_yes() -> None:
    vote = Combination("vote", np.ones((2, 1), dtype=bool), (above(0.5),) * 2, above(1.0), np.zeros(1, dtype=bool))
    assert vote.decide(np.array([[[0.9], [0.1]], [[0.1], [0.1]]])).tolist() == [[True], [False]]


def test_a_specialist_is_heard_on_its_label_alone() -> None:
    speaks_MC = np.array([[True, True], [False, True]])
    p_MNC = np.array([[[0.2, 0.2]], [[1.0, 1.0]]])
    assert mean_probabilities(p_MNC, speaks_MC).tolist() == [[0.2, 0.6]]
    for rule in COMBINATION_RULES:
        combination = Combination(rule, speaks_MC, (above(0.5, 0.5),) * 2, above(0.5, 0.5), np.array([True, True]))
        assert combination.decide(p_MNC).tolist() == [[False, True]]


def test_a_label_that_nobody_speaks_for_is_never_decided() -> None:
    speaks_MC = np.array([[True, False], [True, False]])
    p_MNC = np.ones((2, 1, 2))
    assert mean_probabilities(p_MNC, speaks_MC).tolist() == [[1.0, 0.0]]
    for rule in COMBINATION_RULES:
        combination = Combination(rule, speaks_MC, (above(0.0, 0.0),) * 2, above(0.0, 0.0), np.array([True, True]))
        assert combination.decide(p_MNC).tolist() == [[True, False]]


def test_one_member_keeps_its_probabilities_bit_for_bit() -> None:
    p_1NC = np.random.default_rng(3).random((1, 40, 4))
    assert mean_probabilities(p_1NC, np.ones((1, 4), dtype=bool)).tobytes() == p_1NC[0].tobytes()


@pytest.mark.parametrize("rule", COMBINATION_RULES)
def test_members_and_mean_may_decide_by_expected_f2(rule: CombinationRule) -> None:
    p_MNC = np.random.default_rng(5).random((3, 50, 5))
    by_expected = ExpectedF2("expected-f2", tuple(LABELS), Unchanged())
    speaks_MC, rare_C = np.ones((3, 5), dtype=bool), np.array([True, False, True, False, False])
    decided_NC = Combination(rule, speaks_MC, (by_expected,) * 3, by_expected, rare_C).decide(p_MNC)
    said_MNC = np.stack([by_expected.decide(p_NC) for p_NC in p_MNC])
    by_mean_NC = by_expected.decide(p_MNC.mean(axis=0))
    expected = {
        "mean": by_mean_NC,
        "vote": said_MNC.sum(axis=0) >= 2,
        "any-rare": np.where(rare_C, said_MNC.any(axis=0), by_mean_NC),
    }
    assert np.array_equal(decided_NC, expected[rule])


def test_a_probability_that_is_none_is_an_error() -> None:
    p_MNC, _, combination = drawn(2)
    p_MNC[1, 7, 2] = np.nan
    with pytest.raises(RunError, match="row 7, label 2: the probability is nan"):
        combination.decide(p_MNC)


@pytest.mark.parametrize("rule", COMBINATION_RULES)
def test_members_and_mean_are_fitted_each_by_its_own_rule(rule: CombinationRule) -> None:
    p_MNC, true_NC, given = drawn(2, seed=4)
    everyone = np.ones((2, 5), dtype=bool)
    own: list[Rule] = [BY_NAME["best-single"], BY_NAME["flat-0.2"]]
    fitted = fit_combination(
        rule,
        p_MNC,
        true_NC,
        speaks_MC=everyone,
        rare_C=given.rare_C,
        own_rules=own,
        mean_rule=BY_NAME["grid-independent"],
        labels=LABELS,
    )
    assert fitted.own[0] == BY_NAME["best-single"].decision(p_MNC[0], true_NC, LABELS)
    assert fitted.own[1] == Thresholds("flat-0.2", tuple(LABELS), (0.2,) * 5)
    mean_NC = (p_MNC[0] + p_MNC[1]) / 2
    assert fitted.mean == BY_NAME["grid-independent"].decision(mean_NC, true_NC, LABELS)
    assert (fitted.rule, fitted.rare_C.tolist()) == (rule, given.rare_C.tolist())


def test_a_specialists_threshold_is_fitted_as_if_the_other_labels_were_right() -> None:
    rng = np.random.default_rng(0)
    true_NC = rng.random((400, 3)) < [0.1, 0.5, 0.5]
    p_NC = np.clip(rng.normal(np.where(true_NC, 0.7, 0.3), 0.1), 0, 1)
    speaks_C = np.array([True, False, False])
    heard_NC = others_right(p_NC, true_NC, speaks_C)
    assert heard_NC[:, 0].tolist() == p_NC[:, 0].tolist()
    assert heard_NC[:, 1:].tolist() == true_NC[:, 1:].astype(float).tolist()
    # One label's sample-averaged F2 alone would be greatest where everything is decided.
    alone = BY_NAME["exact"].fit(p_NC[:, :1], true_NC[:, :1])[0]
    assert alone < p_NC[true_NC[:, 0], 0].min()
    assert 0.4 < BY_NAME["exact"].fit(heard_NC, true_NC)[0] < 0.6


def test_a_member_of_all_labels_keeps_its_values() -> None:
    p_NC = np.random.default_rng(1).random((4, 3))
    assert others_right(p_NC, p_NC > 0.5, np.ones(3, dtype=bool)) is p_NC
