"""The rules that are compared before one is deployed: all kinds of thresholds, and the expected F2.

    the rules of thresholds.RULES, simplest first
    shrunk              each label's exact threshold, drawn towards the best single one (planet_dist/shrinkage.py)
    expected-f2         chip by chip the label set of greatest expected F2, labels taken as independent, probabilities
                        calibrated by the simplest map that is not behind the best by more than noise, on rows inside
                        those given that it wasn't fitted on
    expected-f2-rules   likewise, labels taken as true together by the vocabulary's rules; only where it has rules

Suffixes: N samples, C labels, W ways to make probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planet_dist.calibration import METHODS, Calibration, Method, fit_calibration
from planet_dist.crossfit import fold_numbers
from planet_dist.decision import Decision, DecisionRule, ExpectedF2
from planet_dist.expected_f2 import units_of
from planet_dist.metrics import Bools, Floats
from planet_dist.shrinkage import SHRUNK
from planet_dist.thresholds import RULES, Rule
from shards.errors import ConfigError, RunError
from shards.labels import PLANET, ExclusiveGroup, Vocabulary, read_vocabulary

THRESHOLD_RULES: tuple[Rule, ...] = (*RULES, SHRUNK)
FOLDS = 3


@dataclass(frozen=True)
class ExpectedF2Rule:
    """The rule of the greatest expected F2.

    Attributes:
        name: what reports call it.
        exclusive, alone: label rules, by which labels are true together; none for independent labels.
    """

    name: str
    exclusive: tuple[ExclusiveGroup, ...] = ()
    alone: tuple[str, ...] = ()

    def decision(self, probabilities_NC: Floats, true_NC: Bools, labels: Sequence[str]) -> ExpectedF2:
        """Picks a calibration and fits it; arguments as for decision.DecisionRule."""
        calibration = fit_calibration(best_method(probabilities_NC, true_NC), probabilities_NC, true_NC)
        return ExpectedF2(self.name, tuple(labels), calibration, self.exclusive, self.alone)

    def values_taken(self, decision: ExpectedF2) -> int:
        """How many values a decision of it took from the data: its calibration's, so that without one it's none."""
        return decision.calibration.fitted


EXPECTED_F2 = ExpectedF2Rule("expected-f2")


def rules_for(vocabulary: Vocabulary | None) -> tuple[DecisionRule, ...]:
    """All rules for some labels, simplest first.

    Args:
        vocabulary: the labels' rules. Without it, or without rules in it that expected F2 knows, the last is left out.
    """
    found: tuple[DecisionRule, ...] = (*THRESHOLD_RULES, EXPECTED_F2)
    if vocabulary is None or not (vocabulary.exclusive or vocabulary.alone):
        return found
    try:
        units_of(vocabulary.labels, vocabulary.exclusive, vocabulary.alone)
    except ConfigError:
        return found
    return (*found, ExpectedF2Rule("expected-f2-rules", vocabulary.exclusive, vocabulary.alone))


def vocabulary_of(labels: Sequence[str], path: Path | None) -> Vocabulary | None:
    """The rules of predictions' labels: those of a file, or Planet's where the labels are Planet's.

    Raises:
        ConfigError: the file cannot be read, or names other labels.
    """
    if path is None:
        return PLANET if set(labels) == set(PLANET.labels) else None
    vocabulary = read_vocabulary(path)
    other = sorted(set(labels) ^ set(vocabulary.labels))
    if other:
        raise ConfigError(
            f"vocabulary {path}: it and the predictions differ in {', '.join(other)}; give that of the model"
        )
    return vocabulary


def rule_of(decision: Decision) -> DecisionRule:
    """The rule that gave a decision, to be fitted again on other rows.

    Raises:
        RunError: no rule has its name.
    """
    if isinstance(decision, ExpectedF2):
        return ExpectedF2Rule(decision.rule, decision.exclusive, decision.alone)
    known = {rule.name: rule for rule in THRESHOLD_RULES}
    if decision.rule not in known:
        raise RunError(
            f"decision rule {decision.rule!r} cannot be fitted again; train the run again, or choose one of "
            f"{', '.join(known)}"
        )
    return known[decision.rule]


def best_method(probabilities_NC: Floats, true_NC: Bools) -> Method:
    """The simplest calibration that is not behind the best by more than noise, on rows that it wasn't fitted on.

    Args:
        probabilities_NC: float64 (N, C).
        true_NC: bool (N, C).
    """
    rows = len(true_NC)
    if rows < 2:
        return "none"
    calibrated = [cross_calibrated(method, probabilities_NC, true_NC, min(FOLDS, rows)) for method in METHODS]
    return METHODS[simplest_of_least_error(calibrated, true_NC)]


def simplest_of_least_error(ways: Sequence[Floats], true_NC: Bools) -> int:
    """The place of the first way whose squared error is not behind the least by more than noise.

    Noise is what two standard errors of the mean difference of squared errors, chip by chip, reach. F2 itself tells
    ways apart less surely: it only hears of chips whose label set another way changes.

    Args:
        ways: simplest first, probabilities (N, C) of 2 rows or more, of fits that didn't see the row.
        true_NC: bool (N, C).
    """
    errors_WN = np.stack([np.mean((way_NC - true_NC) ** 2, axis=1) for way_NC in ways])
    behind_WN = errors_WN - errors_WN[np.argmin(errors_WN.mean(axis=1))]
    noise_W = 2.0 * behind_WN.std(axis=1, ddof=1) / np.sqrt(len(true_NC))
    return int(np.argmax(behind_WN.mean(axis=1) <= noise_W))


def cross_calibrated(method: Method, probabilities_NC: Floats, true_NC: Bools, folds: int) -> Floats:
    """Probabilities float64 (N, C), each row's by a map fitted on the rows of the other folds alone.

    Args:
        probabilities_NC: float64 (N, C).
        true_NC: bool (N, C).
        folds: 2 to N.
    """
    fold_of_N = fold_numbers(len(true_NC), folds, seed=0)
    calibrated_NC = np.empty_like(probabilities_NC)
    for fold in range(folds):
        held_out_N = fold_of_N == fold
        fitted: Calibration = fit_calibration(method, probabilities_NC[~held_out_N], true_NC[~held_out_N])
        calibrated_NC[held_out_N] = fitted.apply(probabilities_NC[held_out_N])
    return calibrated_NC
