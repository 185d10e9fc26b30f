"""Two runs compared: the intervals against plain resampling, and what can't be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from planet_dist.calibration import Unchanged
from planet_dist.cli import main
from planet_dist.compare import (
    Comparison,
    Difference,
    common_chips,
    compare,
    label_difference,
    sample_difference,
    verdict,
)
from planet_dist.config import load_config
from planet_dist.crossfit import cross_fitted, fold_numbers
from planet_dist.decision import ExpectedF2, write_decision
from planet_dist.decision_rules import rule_of
from planet_dist.finished import open_run
from planet_dist.metrics import Bools, mean_f2
from planet_dist.predictions import Predictions
from planet_dist.runfolder import differences
from planet_dist.runlogs import read_logs
from planet_dist.thresholds import Thresholds
from shards.errors import RunError
from shards.labels import PLANET
from shards.reader import Dataset
from tests.made_runs import made_run

CHIPS, LABELS, DRAWS = 400, 5, 4000


def made(seed: int, wrong: float) -> tuple[Bools, Bools]:
    """Truth and decisions, of which a share is wrong."""
    rng = np.random.default_rng(7)
    true_NC = rng.random((CHIPS, LABELS)) < [0.9, 0.5, 0.3, 0.1, 0.02]
    flipped_NC = np.random.default_rng(seed).random(true_NC.shape) < wrong
    return true_NC, true_NC ^ flipped_NC


def f2(true: Bools, decided: Bools) -> float:
    """By the formula with precision and recall, unlike the code under test."""
    hits = int((true & decided).sum())
    if not hits:
        return 0.0
    precision, recall = hits / int(decided.sum()), hits / int(true.sum())
    return 5 * precision * recall / (4 * precision + recall)


@pytest.mark.parametrize("wrong", [0.1, 0.13])
def test_the_interval_of_the_averaged_f2_is_that_of_plain_paired_resampling(wrong: float) -> None:
    true_NC, first_NC = made(1, 0.1)
    _, second_NC = made(2, wrong)
    found = sample_difference(first_NC, second_NC, true_NC, seed=0)
    assert found.first == pytest.approx(mean_f2(first_NC, true_NC))
    leads_N = np.array([f2(t, b) - f2(t, a) for t, a, b in zip(true_NC, first_NC, second_NC, strict=True)])
    assert found.lead == pytest.approx(leads_N.mean())
    rng = np.random.default_rng(0)
    drawn = np.array([leads_N[rng.integers(0, CHIPS, CHIPS)].mean() for _ in range(DRAWS)])
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.08 * (high - low))


@pytest.mark.parametrize("label", range(LABELS))
def test_the_interval_of_a_labels_f2_is_that_of_plain_paired_resampling(label: int) -> None:
    true_NC, first_NC = made(1, 0.05)
    _, second_NC = made(2, 0.1)
    true_N, first_N, second_N = true_NC[:, label], first_NC[:, label], second_NC[:, label]
    found = label_difference(first_N, second_N, true_N, seed=0)
    assert (found.first, found.second) == pytest.approx((f2(true_N, first_N), f2(true_N, second_N)))
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        rows = rng.integers(0, CHIPS, CHIPS)
        drawn.append(f2(true_N[rows], second_N[rows]) - f2(true_N[rows], first_N[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_pairing_sees_a_small_lead_that_two_separate_intervals_would_not() -> None:
    true_NC, first_NC = made(1, 0.1)
    second_NC = first_NC.copy()
    second_NC[:20] = true_NC[:20]  # better on a few chips, the same on all others
    found = sample_difference(first_NC, second_NC, true_NC, seed=0)
    assert found.significant and found.low > 0
    assert found.high - found.low < 0.02 < 2 * 1.96 * 0.2 / np.sqrt(CHIPS)


def test_a_run_against_itself_is_level() -> None:
    true_NC, first_NC = made(1, 0.1)
    found = sample_difference(first_NC, first_NC, true_NC, seed=0)
    assert (found.lead, found.low, found.high, found.significant) == (0, 0, 0, False)


def test_chips_are_matched_by_id_in_any_order_and_only_common_ones_count() -> None:
    rng = np.random.default_rng(0)
    ids = np.arange(60)
    p_NC, true_NC = rng.random((60, 2)), rng.random((60, 2)) < 0.5
    first = Predictions(("a", "b"), ids[:50], p_NC[:50], true_NC[:50])
    order = rng.permutation(np.arange(10, 60))
    second = Predictions(("a", "b"), order, p_NC[order], true_NC[order])
    ours, theirs = common_chips(first, second, ("x", "y"))
    assert ours.ids_N.tolist() == list(range(10, 50))
    np.testing.assert_array_equal(ours.probabilities_NC, theirs.probabilities_NC)
    np.testing.assert_array_equal(theirs.targets_NC, true_NC[10:50])


def test_other_chips_other_labels_and_other_truths_are_refused_with_the_reason() -> None:
    p_NC, true_NC = np.full((30, 1), 0.5), np.ones((30, 1), dtype=bool)
    first = Predictions(("a",), np.arange(30), p_NC, true_NC)
    with pytest.raises(RunError, match=r"x validates on 30 chips and y on 30, 10 of them in common; 20 are needed"):
        common_chips(first, Predictions(("a",), np.arange(20, 50), p_NC, true_NC), ("x", "y"))
    with pytest.raises(RunError, match="know other labels"):
        common_chips(first, Predictions(("b",), np.arange(30), p_NC, true_NC), ("x", "y"))
    with pytest.raises(RunError, match=r"have other labels for 30 chip\(s\), such as id 0"):
        common_chips(first, Predictions(("a",), np.arange(30), p_NC, ~true_NC), ("x", "y"))


def test_differences_name_every_key_that_differs_and_no_other() -> None:
    base = load_config("small-resnet-32").model_dump(mode="json")
    other = load_config("small-resnet-32", ["seed=3", "phases.0.epochs=9"]).model_dump(mode="json")
    assert differences(base, other) == [("phases.0.epochs", base["phases"][0]["epochs"], 9), ("seed", 0, 3)]
    assert differences({"a": 1}, {"b": 2}) == [("a", 1, None), ("b", None, 2)]


def test_the_verdict_says_how_many_chips_were_common_and_whether_it_may_be_noise() -> None:
    even, ahead = Difference(0.8, 0.81, -0.01, 0.03), Difference(0.8, 0.9, 0.05, 0.15)
    whole = Comparison(("x", "y"), (), 50, 50, 50, ("exact", "flat-0.2"), ahead, {"a": even}, ())
    assert verdict(whole).startswith("On 50 validation chips, ") and "more than noise" in verdict(whole)
    part = Comparison(("x", "y"), (), 40, 50, 60, ("exact", "flat-0.2"), even, {"a": even}, ())
    assert "the 40 validation chips that both have (of 50 and 60)" in verdict(part) and "may be noise" in verdict(part)


def finished(folder: Path, dataset: Dataset, seed: int, *overrides: str, noise: float = 1.5) -> Path:
    """A made run with the files that a finished one has."""
    run = made_run(folder, dataset, seed, noise=noise)
    config = load_config("small-resnet-32", overrides)
    (run / "config.toml").write_text(config.to_toml())
    epoch = {"kind": "epoch", "phase": 0, "epoch": 0, "step": 5, "f2": 0.8, "loss": 0.2, "best": True}
    (run / "metrics.jsonl").write_text(json.dumps(epoch) + "\n")
    timing = {"kind": "train", "phase": 0, "epoch": 0, "step": 5, "images_per_second": 100.0, "seconds": 60.0}
    (run / "timing.jsonl").write_text(json.dumps(timing) + "\n")
    labels = dataset.manifest.labels
    write_decision(run / "evaluation" / "thresholds.json", Thresholds("flat-0.2", tuple(labels), (0.2,) * len(labels)))
    scores = {"rules": [], "labels": [], "chosen": "flat-0.2", "f2": 0.8, "accuracy": 0.9, "loss": 0.2}
    (run / "evaluation" / "metrics.json").write_text(json.dumps(scores))
    return run


def test_a_run_that_decides_by_expected_f2_is_compared_by_that_rule(dataset: Dataset, tmp_path: Path) -> None:
    first, second = (finished(tmp_path / name, dataset, 1) for name in "ab")
    labels = tuple(dataset.manifest.labels)
    decision = ExpectedF2("expected-f2-rules", labels, Unchanged(), PLANET.exclusive, PLANET.alone)
    write_decision(second / "evaluation" / "thresholds.json", decision)
    found = compare(open_run(first), open_run(second), (read_logs(first), read_logs(second)))
    assert found.rules == ("flat-0.2", "expected-f2-rules")
    given = open_run(second).predictions
    order_N = np.argsort(given.ids_N)
    rule, p_NC, true_NC = rule_of(decision), given.probabilities_NC[order_N], given.targets_NC[order_N]
    decided_NC = cross_fitted(rule, p_NC, true_NC, fold_numbers(len(p_NC), 5, 0), labels)
    assert found.f2.second == pytest.approx(mean_f2(decided_NC, true_NC))


def test_the_command_compares_two_runs_and_refuses_what_differs_in_kind(dataset: Dataset, tmp_path: Path) -> None:
    first = finished(tmp_path / "a", dataset, 1, "seed=1")
    second = finished(tmp_path / "b", dataset, 2, "seed=2", noise=3.0)
    done = CliRunner().invoke(main, ["compare", str(first), str(second)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert f"A  {first}" in done.output and "more than noise" in done.output
    assert "On 80 validation chips" in done.output
    done = CliRunner().invoke(main, ["compare", str(first), str(second), "--json"])
    table = json.loads(done.output)
    assert table["settings"] == [["seed", 1, 2]]
    assert table["f2"]["significant"] and table["f2"]["high"] < 0
    assert table["chips"] == 80 and set(table["labels"]) <= set(dataset.manifest.labels)
    bundle = second / "bundle" / "bundle.json"
    bundle.write_text(bundle.read_text().replace(dataset.digest, "f" * 64))
    done = CliRunner().invoke(main, ["compare", str(first), str(second)])
    assert done.exit_code == 1 and "their chips' ids do not mean the same" in done.output
    shutil.rmtree(second / "bundle")
    done = CliRunner().invoke(main, ["compare", str(first), str(second)])
    assert done.exit_code == 1 and "not a finished run" in done.output
