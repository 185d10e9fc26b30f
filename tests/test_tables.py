"""planet_dist.tables."""

import io

import numpy as np
from rich.console import Console

from planet_dist.crossfit import evaluate_rules
from planet_dist.decision_rules import EXPECTED_F2
from planet_dist.metrics import probabilities
from planet_dist.tables import print_evaluation


def test_tables_show_every_rule_and_label_whole_in_eighty_columns():
    labels = ["selective_logging", "conventional_mine"]
    rng = np.random.default_rng(0)
    targets_NC = rng.random((1500, 2)) < 0.4
    given_NC = probabilities(rng.normal(np.where(targets_NC, 1.0, -1.0), 1.0))
    evaluation = evaluate_rules(given_NC, targets_NC, labels)
    file = io.StringIO()
    print_evaluation(evaluation, Console(file=file, width=80))
    lines = file.getvalue().splitlines()
    assert any("threshold" in line for line in lines)
    for score in evaluation.rules:
        row = next(line for line in lines if score.rule in line)
        assert f"{score.same_rows_f2:.4f}" in row
        assert f"{score.cross_fitted_f2:.4f}" in row
        assert f"{score.low:.4f}-{score.high:.4f}" in row
        assert ("*" in row) == (score.rule == evaluation.chosen.rule)
    for i, label in enumerate(labels):
        row = next(line for line in lines if label in line)
        assert f"{evaluation.chosen.values[i]:.3f}" in row
        assert f"{evaluation.label_scores.f2_C[i]:.3f}" in row
        assert str(evaluation.label_scores.support_C[i]) in row


def test_labels_have_no_threshold_where_the_chosen_rule_has_none():
    labels = ["selective_logging", "conventional_mine"]
    rng = np.random.default_rng(0)
    targets_NC = rng.random((300, 2)) < 0.4
    given_NC = probabilities(rng.normal(np.where(targets_NC, 1.0, -1.0), 1.0))
    evaluation = evaluate_rules(given_NC, targets_NC, labels, rules=[EXPECTED_F2])
    file = io.StringIO()
    print_evaluation(evaluation, Console(file=file, width=80))
    shown = file.getvalue()
    assert "Labels under expected-f2" in shown and "threshold" not in shown
    assert all(f"{f2:.3f}" in shown for f2 in evaluation.label_scores.f2_C)
