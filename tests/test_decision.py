"""planet_dist.decision and decision_rules: fitted decisions of every kind, written, read back and fitted again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planet_dist.calibration import METHODS, Logistic, Unchanged, fit_calibration
from planet_dist.crossfit import evaluate_rules, fold_numbers
from planet_dist.decision import Decision, ExpectedF2, read_decision, write_decision
from planet_dist.decision_rules import (
    EXPECTED_F2,
    best_method,
    rule_of,
    rules_for,
    simplest_of_least_error,
    vocabulary_of,
)
from planet_dist.expected_f2 import most_expected, units_of
from planet_dist.metrics import Bools, Floats, mean_f2, probabilities
from planet_dist.thresholds import Thresholds
from shards.errors import ConfigError, RunError
from shards.labels import PLANET, ExclusiveGroup, Vocabulary

LABELS = ("clear", "haze", "cloudy", "road", "water")
WEATHER = (ExclusiveGroup("weather", LABELS[:3], required=True),)
WORDS = Vocabulary(LABELS, WEATHER, alone=("cloudy",))


def made(count: int, seed: int, slope: float = 1.0, shift: float = 0.0) -> tuple[Floats, Bools]:
    """Calibrated probabilities of labels that keep the rules, with their logits then changed."""
    rng = np.random.default_rng(seed)
    weather_N = rng.choice(3, count, p=[0.6, 0.3, 0.1])
    true_NC = np.stack([*(weather_N == w for w in range(3)), *(rng.random((2, count)) < [[0.4], [0.2]])], axis=1)
    true_NC[weather_N == 2, 3:] = False
    frequency_C = np.array([0.6, 0.3, 0.1, 0.36, 0.18])
    logits_NC = 2 * rng.normal(np.where(true_NC, 1, -1), 1.0) + np.log(frequency_C / (1 - frequency_C))
    return probabilities(slope * logits_NC + shift), true_NC


def every_kind() -> list[Decision]:
    p_NC, true_NC = made(300, seed=0)
    found: list[Decision] = [rule.decision(p_NC, true_NC, LABELS) for rule in rules_for(WORDS)]
    return [*found, *(ExpectedF2("made", LABELS, fit_calibration(method, p_NC, true_NC)) for method in METHODS)]


@pytest.mark.parametrize("decision", every_kind(), ids=lambda one: one.rule)
def test_a_written_decision_decides_the_same_when_read_back(tmp_path: Path, decision: Decision) -> None:
    path = tmp_path / "thresholds.json"
    write_decision(path, decision)
    assert read_decision(path) == decision
    p_NC, _ = made(200, seed=1)
    assert np.array_equal(read_decision(path).decide(p_NC), decision.decide(p_NC))
    table = json.loads(path.read_text())
    assert (table["rule"], table["labels"]) == (decision.rule, list(LABELS))


def test_thresholds_written_before_there_were_other_decisions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    table = {"format": "planet-dist-thresholds", "version": 1, "rule": "exact", "labels": ["a"], "thresholds": [0.3]}
    path.write_text(json.dumps(table))
    assert read_decision(path) == Thresholds("exact", ("a",), (0.3,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2; this program reads version 1"),
        ({"version": None}, "version None"),
        ({"format": "other"}, "not a thresholds file"),
        ({"thresholds": [0.5]}, "1 thresholds for 2 labels"),
        ({"thresholds": [0.5, 1.5]}, "threshold of b is 1.5"),
        ({"thresholds": [0.5, float("nan")]}, "threshold of b is nan"),
        ({"thresholds": [0.5, True]}, "needs a rule"),
        ({"thresholds": "0.5"}, "needs a rule"),
        ({"labels": [1, 2]}, "needs a rule"),
        ({"labels": [], "thresholds": []}, "0 thresholds for 0 labels"),
        ({"rule": None}, "needs a rule"),
    ],
)
def test_thresholds_that_cannot_be_used_are_an_error_that_names_the_file(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text(json.dumps(Thresholds("flat-0.5", ("a", "b"), (0.5, 0.5)).to_json() | change))
    with pytest.raises(RunError, match=message) as caught:
        read_decision(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "planet-dist-expected-f2 version 2; this program reads version 1"),
        ({"calibration": {"method": "platt", "slopes": [1.0], "offsets": [0.0]}}, "a calibration of 1 labels for 5"),
        ({"calibration": None}, "calibration None"),
        ({"labels": None}, "needs a rule, labels"),
        ({"labels": [1, 2]}, "needs a rule, labels"),
        ({"labels": []}, "needs a rule, labels"),
        ({"rule": None}, "needs a rule, labels"),
        ({"alone": ["lava"]}, "names lava"),
        ({"exclusive": [{"name": "weather"}]}, "needs a rule, labels"),
        ({"exclusive": [{"name": "a", "labels": ["road", "lava"], "required": True}]}, "names lava"),
    ],
)
def test_an_expected_f2_that_cannot_be_used_is_an_error_that_names_the_file(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text(json.dumps(ExpectedF2("expected-f2", LABELS, Unchanged(), WEATHER).to_json() | change))
    with pytest.raises(RunError, match=message) as caught:
        read_decision(path)
    assert str(path) in str(caught.value)


def test_missing_and_malformed_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No such file"):
        read_decision(tmp_path / "none.json")
    broken = tmp_path / "broken.json"
    broken.write_text("[1,")
    with pytest.raises(RunError, match=r"broken\.json"):
        read_decision(broken)
    broken.write_text("[1]")
    with pytest.raises(RunError, match="not a thresholds file"):
        read_decision(broken)


def test_probabilities_that_are_none_or_of_other_labels_are_refused() -> None:
    decision = ExpectedF2("expected-f2", LABELS, Unchanged())
    with pytest.raises(RunError, match="of 2 labels for a rule of 5"):
        decision.decide(np.array([[0.5, 0.5]]))
    with pytest.raises(RunError, match=r"row 1, label 4: the probability is 1\.5"):
        decision.decide(np.array([[0.5] * 5, [0.5] * 4 + [1.5]]))


def test_expected_f2_is_decided_on_calibrated_probabilities_by_the_label_rules() -> None:
    p_NC, _ = made(300, seed=2)
    calibration = Logistic("platt", (0.5,) * 5, (-1.0,) * 5)
    decided_NC = ExpectedF2("made", LABELS, calibration, WEATHER, ("cloudy",)).decide(p_NC)
    units = units_of(LABELS, WEATHER, ("cloudy",))
    assert np.array_equal(decided_NC, most_expected(calibration.apply(p_NC), units, units_of(LABELS)))
    assert not np.array_equal(decided_NC, ExpectedF2("made", LABELS, calibration).decide(p_NC))
    assert not np.array_equal(decided_NC, ExpectedF2("made", LABELS, Unchanged(), WEATHER, ("cloudy",)).decide(p_NC))


@pytest.mark.parametrize(
    ("seed", "slope", "shift", "least", "chosen"),
    [
        (3, 2.0, 1.5, "platt", "platt"),
        (0, 2.0, 0.0, "platt", "temperature"),
        (2, 1.3, 0.0, "temperature", "none"),
        (4, 1.0, 0.0, "temperature", "none"),
    ],
)
def test_the_calibration_is_the_simplest_that_noise_may_have_put_behind(
    seed: int, slope: float, shift: float, least: str, chosen: str
) -> None:
    p_NC, true_NC = made(1000, seed, slope, shift)
    fold_of_N = fold_numbers(1000, 3, seed=0)
    errors = {}
    for method in METHODS:
        said_NC = np.zeros_like(p_NC)
        for fold in range(3):
            rest_N = fold_of_N != fold
            said_NC[~rest_N] = fit_calibration(method, p_NC[rest_N], true_NC[rest_N]).apply(p_NC[~rest_N])
        errors[method] = ((said_NC - true_NC) ** 2).mean(axis=1)
    best_N = min(errors.values(), key=np.mean)
    level = [
        method for method in METHODS if np.mean(errors[method] - best_N) <= 2 * _standard_error(errors[method] - best_N)
    ]
    assert min(errors, key=lambda method: float(np.mean(errors[method]))) == least
    assert best_method(p_NC, true_NC) == level[0] == chosen


def _standard_error(values_N: Floats) -> float:
    return float(np.std(values_N, ddof=1) / len(values_N) ** 0.5)


def test_expected_f2_takes_from_the_data_what_its_calibration_takes() -> None:
    shifted_NC, true_NC = made(1000, seed=3, slope=2.0, shift=1.5)
    decision = EXPECTED_F2.decision(shifted_NC, true_NC, LABELS)
    assert decision.calibration == fit_calibration("platt", shifted_NC, true_NC)
    assert EXPECTED_F2.values_taken(decision) == 10
    assert EXPECTED_F2.values_taken(EXPECTED_F2.decision(*made(1000, seed=3), LABELS)) == 0
    assert EXPECTED_F2.values_taken(EXPECTED_F2.decision(*made(1, seed=3), LABELS)) == 0


def test_of_rules_that_take_nothing_from_the_data_the_better_is_chosen_without_more_than_noise_between() -> None:
    p_NC, true_NC = made(100, seed=4)
    evaluation = evaluate_rules(p_NC, true_NC, LABELS, rules=rules_for(WORDS))
    scores = {score.rule: score for score in evaluation.rules}
    flat, ruled = scores["flat-0.2"], scores["expected-f2-rules"]
    assert flat.behind_low <= 0 < ruled.cross_fitted_f2 - flat.cross_fitted_f2
    assert evaluation.chosen.rule == "expected-f2-rules" and (flat.fitted, ruled.fitted) == (0, 0)


def test_expected_f2_is_chosen_and_judged_where_it_gains_more_than_noise() -> None:
    p_NC, true_NC = made(6000, seed=4)
    evaluation = evaluate_rules(p_NC, true_NC, LABELS, rules=rules_for(WORDS))
    scores = {score.rule: score for score in evaluation.rules}
    assert evaluation.chosen.rule == "expected-f2-rules"
    assert scores["expected-f2-rules"].cross_fitted_f2 > scores["expected-f2"].cross_fitted_f2
    assert scores["expected-f2"].cross_fitted_f2 > scores["flat-0.2"].cross_fitted_f2
    same_rows = mean_f2(evaluation.chosen.decide(p_NC), true_NC)
    assert scores["expected-f2-rules"].same_rows_f2 == pytest.approx(same_rows)
    table = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert table["chosen"] == "expected-f2-rules"
    assert list(table["labels"][0]) == ["label", "f2", "precision", "recall", "support"], "it has no thresholds"


def test_no_rules_figures_depend_on_the_order_of_the_rows() -> None:
    p_NC, true_NC = made(200, seed=7)
    ids_N, shuffled_N = np.arange(200), np.random.default_rng(0).permutation(200)
    first = evaluate_rules(p_NC, true_NC, LABELS, ids_N=ids_N, rules=rules_for(WORDS))
    second = evaluate_rules(
        p_NC[shuffled_N], true_NC[shuffled_N], LABELS, ids_N=ids_N[shuffled_N], rules=rules_for(WORDS)
    )
    assert first.to_json() == second.to_json()
    assert first.chosen == second.chosen


def test_label_rules_are_compared_only_where_there_are_some_that_it_knows() -> None:
    assert [rule.name for rule in rules_for(WORDS)][-2:] == ["expected-f2", "expected-f2-rules"]
    shared = Vocabulary(LABELS, (*WEATHER, ExclusiveGroup("other", ("haze", "road"))))
    for vocabulary in (None, Vocabulary(LABELS), shared):
        assert [rule.name for rule in rules_for(vocabulary)][-2:] == ["shrunk", "expected-f2"]


@pytest.mark.parametrize("place", range(len(rules_for(WORDS))))
def test_a_decision_gives_its_rule_back_to_be_fitted_on_other_rows(place: int) -> None:
    rule, rows = rules_for(WORDS)[place], made(300, seed=5)
    again = rule_of(rule.decision(*rows, LABELS))
    assert again.decision(*made(200, seed=6), LABELS) == rule.decision(*made(200, seed=6), LABELS)


def test_a_decision_of_an_unknown_rule_cannot_be_fitted_again() -> None:
    with pytest.raises(RunError, match="'guess' cannot be fitted again; train the run again, or choose one of const"):
        rule_of(Thresholds("guess", ("a",), (0.5,)))


def test_predictions_of_planets_labels_get_planets_rules_and_others_those_of_a_file(tmp_path: Path) -> None:
    assert vocabulary_of(PLANET.labels[::-1], None) == PLANET
    assert vocabulary_of(LABELS, None) is None
    path = tmp_path / "words.toml"
    path.write_text('labels = ["b", "a"]\nalone = ["b"]\n')
    assert vocabulary_of(("a", "b"), path) == Vocabulary(("b", "a"), alone=("b",))
    with pytest.raises(ConfigError, match=r"words\.toml: it and the predictions differ in b, c"):
        vocabulary_of(("a", "c"), path)


def test_the_simplest_way_is_taken_that_is_not_behind_in_squared_error_by_more_than_noise() -> None:
    rng = np.random.default_rng(0)
    p_NC = rng.random((2000, 5))
    true_NC = rng.random(p_NC.shape) < p_NC
    worse_NC = np.clip(p_NC + 0.2 * rng.normal(size=p_NC.shape), 0, 1)
    as_good_NC = np.clip(p_NC + 0.001 * rng.normal(size=p_NC.shape), 0, 1)
    assert simplest_of_least_error([worse_NC, as_good_NC, p_NC], true_NC) == 1
    assert simplest_of_least_error([p_NC, as_good_NC, worse_NC], true_NC) == 0
    assert simplest_of_least_error([p_NC, p_NC], true_NC) == 0
