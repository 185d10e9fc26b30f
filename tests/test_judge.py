"""What an epoch's figures say, and what a run leaves behind when it is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from sklearn.metrics import fbeta_score, log_loss

from planet_dist.bundle_files import load_bundle
from planet_dist.config import Config, LossConfig, load_config
from planet_dist.data import Data, open_data
from planet_dist.decision import read_decision
from planet_dist.evaluate import Logits
from planet_dist.judge import conclude, validate, weighted_labels
from planet_dist.predictions import read_predictions
from planet_dist.runfolder import RunFolder
from planet_dist.thresholds import Thresholds
from shards.errors import TrainingError
from shards.reader import Dataset
from tests.made_runs import TINY, random_weights

ALL = np.ones(5, bool)


@pytest.fixture
def answers() -> tuple[Any, Any]:
    """Logits (300, 5) that are better than chance, of labels that every chip has at least one of."""
    rng = np.random.default_rng(0)
    targets_NC = (rng.random((300, 5)) < [0.9, 0.5, 0.3, 0.1, 0.2]).astype(np.uint8)
    targets_NC[targets_NC.sum(axis=1) == 0, 0] = 1
    return rng.normal(2.0 * targets_NC - 1.5, 1.0).astype(np.float32), targets_NC


def f2(logits_NC: Any, targets_NC: Any, threshold: float) -> float:
    decided_NC = 1 / (1 + np.exp(-logits_NC.astype(np.float64))) > threshold
    return float(fbeta_score(targets_NC, decided_NC, beta=2, average="samples", zero_division=0))


def test_an_epochs_figures_are_those_of_scikit_learn(answers: tuple[Any, Any]) -> None:
    logits_NC, targets_NC = answers
    figures = validate(logits_NC, targets_NC, "f2", ALL).figures
    assert figures["f2_at_0.5"] == pytest.approx(f2(logits_NC, targets_NC, 0.5), abs=1e-12)
    assert figures["f2_at_0.2"] == pytest.approx(f2(logits_NC, targets_NC, 0.2), abs=1e-12)
    assert figures["accuracy"] == pytest.approx(float(((logits_NC > 0) == targets_NC).mean()), abs=1e-12)
    probabilities_NC = 1 / (1 + np.exp(-logits_NC.astype(np.float64)))
    loss = np.mean([log_loss(targets_NC[:, c], probabilities_NC[:, c]) for c in range(5)])
    assert figures["loss"] == pytest.approx(float(loss), rel=1e-6)


def test_the_best_single_threshold_is_behind_no_other(answers: tuple[Any, Any]) -> None:
    logits_NC, targets_NC = answers
    best = validate(logits_NC, targets_NC, "f2", ALL).figures["f2"]
    others = [f2(logits_NC, targets_NC, threshold) for threshold in np.linspace(0.01, 0.99, 99)]
    assert max(others) - 1e-12 <= best < max(others) + 0.01


@pytest.mark.parametrize(("best_by", "sign"), [("f2", 1), ("accuracy", 1), ("loss", -1)])
def test_the_score_is_the_figure_that_was_chosen_and_larger_is_better(
    answers: tuple[Any, Any], best_by: str, sign: int
) -> None:
    logits_NC, targets_NC = answers
    found = validate(logits_NC, targets_NC, best_by, ALL)
    assert found.score == sign * found.figures[best_by]
    better = validate(logits_NC + 2 * targets_NC.astype(np.float32), targets_NC, best_by, ALL)
    assert better.score > found.score


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error_not_a_figure(answers: tuple[Any, Any], value: float) -> None:
    logits_NC, targets_NC = answers
    logits_NC[17, 3] = value
    with pytest.raises(TrainingError, match="not finite: training diverged; lower the learning rate"):
        validate(logits_NC, targets_NC, "f2", ALL)


def test_a_specialist_is_judged_by_its_own_labels_alone(answers: tuple[Any, Any]) -> None:
    logits_NC, targets_NC = answers
    speaks_C = np.array([False, False, True, False, False])
    found = validate(logits_NC, targets_NC, "f2", speaks_C).figures
    noise_NC = np.where(speaks_C, logits_NC, np.float32(-3.0))
    assert validate(noise_NC, targets_NC, "f2", speaks_C).figures == found
    right = ((logits_NC[:, 2] > 0) == targets_NC[:, 2]).mean()
    assert found["accuracy"] == pytest.approx((4 + right) / 5)


def test_labels_without_weight_are_not_spoken_for() -> None:
    loss = LossConfig(label_weights={"haze": 0.0, "clear": 2.0})
    assert weighted_labels(loss, ["haze", "clear", "water"]).tolist() == [False, True, True]


@pytest.fixture
def judged(dataset: Dataset, tmp_path: Path) -> tuple[Config, Data, RunFolder, Logits, Path]:
    """A run whose answers are good and whose weights are random, not yet judged."""
    config = load_config("small-resnet-32", ["data.split=tail:60", f"model.width={TINY.width}", "model.dropout=0"])
    data = open_data(config, dataset.root)
    run = RunFolder(tmp_path / "run")
    run.create(config)
    ids_N = data.split.val_ids
    noise_NC = np.random.default_rng(1).normal(0, 1, (len(ids_N), len(data.labels)))
    logits_NC = (4.0 * data.targets_NC[ids_N] - 2.0 + noise_NC).astype(np.float32)
    weights = random_weights(tmp_path / "ema.safetensors", config.model, dataset, seed=1)
    return config, data, run, Logits(ids_N, logits_NC), weights


def test_a_judged_run_leaves_predictions_thresholds_and_scores_that_agree(
    judged: tuple[Config, Data, RunFolder, Logits, Path],
) -> None:
    config, data, run, logits, weights = judged
    evaluation = conclude(config, data, run, logits, weights)
    predictions = read_predictions(run.evaluation / "predictions.npz")
    assert predictions.labels == tuple(data.labels)
    assert np.array_equal(predictions.ids_N, data.split.val_ids)
    assert np.array_equal(predictions.targets_NC, data.targets_NC[data.split.val_ids])
    assert np.allclose(predictions.probabilities_NC, 1 / (1 + np.exp(-logits.logits_NC.astype(np.float64))))
    assert read_decision(run.evaluation / "thresholds.json") == evaluation.chosen
    scores = json.loads((run.evaluation / "metrics.json").read_text())
    assert scores == json.loads(json.dumps(evaluation.to_json()))
    assert scores["rows"] == 60 and scores["f2"] > 0.8


def test_a_judged_runs_bundle_holds_the_weights_that_were_judged(
    judged: tuple[Config, Data, RunFolder, Logits, Path],
) -> None:
    config, data, run, logits, weights = judged
    evaluation = conclude(config, data, run, logits, weights)
    bundle, (tensors,) = load_bundle(run.bundle)
    expected = load_file(weights)
    assert tensors.keys() == expected.keys()
    assert all(tensors[name].equal(expected[name]) for name in expected)
    assert bundle.labels == data.labels
    assert bundle.thresholds == evaluation.chosen
    assert bundle.dataset_digest == data.dataset.digest
    assert bundle.members[0].speaks_for == data.labels
    protocol = bundle.members[0].protocol
    assert protocol["split"].startswith(config.data.split) and protocol["seed"] == str(config.seed)
    card = (run.bundle / "MODEL_CARD.md").read_text()
    assert f"{evaluation.chosen.rule} (this bundle) | {evaluation.chosen_score.cross_fitted_f2:.4f} |" in card


def test_a_specialist_is_given_thresholds_whatever_would_score_best(
    judged: tuple[Config, Data, RunFolder, Logits, Path],
) -> None:
    config, data, run, logits, weights = judged
    everything = conclude(config, data, run, logits, weights)
    assert [score.rule for score in everything.rules][-2:] == ["expected-f2", "expected-f2-rules"]
    others = {label: 0.0 for label in data.labels if label != "water"}
    special = config.model_copy(update={"loss": config.loss.model_copy(update={"label_weights": others})})
    evaluation = conclude(special, data, run, logits, weights)
    assert [score.rule for score in evaluation.rules][-1] == "shrunk"
    assert isinstance(evaluation.chosen, Thresholds)


def test_judging_twice_leaves_the_same_bytes(judged: tuple[Config, Data, RunFolder, Logits, Path]) -> None:
    config, data, run, logits, weights = judged

    def written() -> dict[str, bytes]:
        conclude(config, data, run, logits, weights)
        files = [path for folder in (run.evaluation, run.bundle) for path in folder.rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in files}

    first = written()
    assert len(first) >= 5
    assert written() == first
