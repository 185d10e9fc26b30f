"""What an epoch says in detail: held against scikit-learn and against figures counted by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import fbeta_score, precision_score, recall_score

from planet_dist.epoch_detail import BINS, SHOWN_MISTAKES, calibration, confusion, epoch_detail
from planet_dist.metrics import mean_f2, probabilities
from planet_dist.thresholds import RULES
from shards.labels import ExclusiveGroup, Vocabulary

WORDS = Vocabulary(("clear", "haze", "road", "water", "mine"), (ExclusiveGroup("weather", ("clear", "haze")),))


def keys_of(ids_N: NDArray[np.int64]) -> Sequence[str]:
    return [f"chip_{i}" for i in ids_N]


@pytest.fixture(scope="module")
def chips() -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    targets_NC = (rng.random((400, 5)) < [0.5, 0.5, 0.3, 0.2, 0.02]).astype(np.uint8)
    targets_NC[:, 1] = 1 - targets_NC[:, 0]
    logits_NC = rng.normal(np.where(targets_NC, 1.0, -1.5), 1.2).astype(np.float32)
    return logits_NC, targets_NC, np.arange(400) * 3


def detail(chips: Any, speaks: Sequence[bool] = (True,) * 5) -> dict[str, Any]:
    logits_NC, targets_NC, ids_N = chips
    return epoch_detail(logits_NC, targets_NC, ids_N, keys_of, WORDS, np.array(speaks))


def test_each_label_is_scored_at_its_own_threshold(chips: Any) -> None:
    logits_NC, targets_NC, _ = chips
    found = detail(chips)["labels"]
    assert list(found) == list(WORDS.labels)
    for c, label in enumerate(WORDS.labels):
        decided = probabilities(logits_NC[:, c]) > found[label]["threshold"]
        assert found[label]["f2"] == pytest.approx(fbeta_score(targets_NC[:, c], decided, beta=2))
        assert found[label]["precision"] == pytest.approx(precision_score(targets_NC[:, c], decided))
        assert found[label]["recall"] == pytest.approx(recall_score(targets_NC[:, c], decided))


def test_every_rule_is_scored_and_more_freedom_scores_no_less_on_its_own_chips(chips: Any) -> None:
    rules = detail(chips)["rules"]
    assert list(rules) == [rule.name for rule in RULES]
    logits_NC, targets_NC, _ = chips
    assert rules["flat-0.2"] == mean_f2(probabilities(logits_NC) > 0.2, targets_NC)
    assert rules["constant"] < rules["flat-0.2"] <= rules["best-single"] <= rules["exact"]


def test_calibration_is_the_distance_of_what_is_said_from_what_is_true() -> None:
    found = calibration(np.array([0.9, 0.9, 0.9, 0.9, 0.1, 1.0]), np.array([True, True, True, False, False, True]))
    assert found["error"] == pytest.approx((4 * 0.15 + 1 * 0.1 + 1 * 0.0) / 6)
    assert len(found["bins"]) == BINS
    assert found["bins"][13] == pytest.approx([4, 0.9, 0.75])
    assert found["bins"][14] == [1, 1.0, 1.0]
    assert found["bins"][7] == [0, 0.0, 0.0]


def test_confusion_counts_chips_of_one_label_by_the_most_probable() -> None:
    given = np.array([[0.9, 0.1], [0.2, 0.3], [0.4, 0.6], [0.9, 0.8]])
    true = np.array([[True, False], [True, False], [False, True], [True, True]])
    assert confusion(given, true).tolist() == [[1, 1], [0, 1]]


def test_cooccurrence_counts_chips_that_bear_two_labels(chips: Any) -> None:
    _, targets_NC, _ = chips
    found = detail(chips)["cooccurrence"]
    assert found["labels"] == list(WORDS.labels)
    assert found["true"][2][3] == int((targets_NC[:, 2] & targets_NC[:, 3]).sum())
    assert [found["true"][c][c] for c in range(5)] == targets_NC.sum(axis=0).tolist()
    assert np.array_equal(found["decided"], np.transpose(found["decided"]))


def test_the_worst_chips_come_first_with_what_was_missed_and_added(chips: Any) -> None:
    _, targets_NC, ids_N = chips
    worst = detail(chips)["mistakes"]
    assert len(worst) == SHOWN_MISTAKES
    assert [one["f2"] for one in worst] == sorted(one["f2"] for one in worst)
    for one in worst:
        row = ids_N.tolist().index(one["id"])
        assert one["key"] == f"chip_{one['id']}"
        assert one["truth"] == [label for c, label in enumerate(WORDS.labels) if targets_NC[row, c]]
        assert set(one["missed"]) <= set(one["truth"]) and not set(one["added"]) & set(one["truth"])
        assert one["missed"] or one["added"]


def test_a_specialist_has_figures_of_its_own_labels_alone(chips: Any) -> None:
    found = detail(chips, (False, False, True, False, False))
    assert list(found["labels"]) == ["road"]
    assert found["confusion"] == {}
    assert all(set(one["missed"] + one["added"]) == {"road"} for one in found["mistakes"])
    whole = detail(chips)
    assert found["calibration"]["error"] != whole["calibration"]["error"]
    assert whole["confusion"]["weather"]["labels"] == ["clear", "haze"]


def test_it_is_plain_json_and_the_same_for_the_same_chips(chips: Any) -> None:
    assert json.dumps(detail(chips), allow_nan=False) == json.dumps(detail(chips), allow_nan=False)
