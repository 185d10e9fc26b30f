"""Which decision rule to deploy: each rule judged on rows that it was not fitted on.

Thresholds fitted per label look better on their own rows than they are, and on new rows may lose to a flat
0.2. So every rule is reported two ways: fitted and scored on the same rows, as both papers do, and
cross-fitted, where each row is decided by a fit without its fold. A rule that cross-validates to fit itself
does so inside the rows that it's given.

Suffixes: N samples, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planet_dist.decision import Decision, DecisionRule
from planet_dist.metrics import (
    Array,
    Bools,
    Floats,
    LabelScores,
    accuracy,
    check_probabilities,
    check_targets,
    cross_entropy,
    label_scores,
    mean_f2,
    standings,
)
from planet_dist.thresholds import RULES, Thresholds
from shards.errors import ConfigError, RunError

_FOLDS_STREAM = 2  # beside the seed; metrics.py draws its resamples from another stream


@dataclass(frozen=True)
class RuleScore:
    """How one rule did.

    Attributes:
        rule: its name.
        fitted: how many values it took from the data.
        same_rows_f2: sample-averaged F2, fitted and scored on all rows.
        cross_fitted_f2: sample-averaged F2, each row decided by a fit without its fold.
        low, high: bootstrap interval (95%) of cross_fitted_f2.
        behind_low, behind_high: paired bootstrap interval (95%) of how far it is behind the best rule.
    """

    rule: str
    fitted: int
    same_rows_f2: float
    cross_fitted_f2: float
    low: float
    high: float
    behind_low: float
    behind_high: float


@dataclass(frozen=True)
class Evaluation:
    """The rules compared, and the one to deploy.

    Attributes:
        rules: one score for each rule, in the order given.
        chosen: the rule to deploy, refitted on all rows.
        label_scores: each label's scores under the chosen rule, cross-fitted.
        accuracy: element-wise, at 0.5 (the second paper's).
        loss: mean binary cross-entropy in nats.
        rows, folds, seed: what the figures come from.
    """

    rules: tuple[RuleScore, ...]
    chosen: Decision
    label_scores: LabelScores
    accuracy: float
    loss: float
    rows: int
    folds: int
    seed: int

    @property
    def chosen_score(self) -> RuleScore:
        """The score of the chosen rule."""
        return next(score for score in self.rules if score.rule == self.chosen.rule)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain numbers, lists and strings; labels have a threshold where the chosen rule has them."""
        scores = self.label_scores
        columns: dict[str, Sequence[Any]] = {"label": self.chosen.labels}
        if isinstance(self.chosen, Thresholds):
            columns["threshold"] = self.chosen.values
        columns |= {
            "f2": scores.f2_C.tolist(),
            "precision": scores.precision_C.tolist(),
            "recall": scores.recall_C.tolist(),
            "support": scores.support_C.tolist(),
        }
        return {
            "rows": self.rows,
            "folds": self.folds,
            "seed": self.seed,
            "accuracy": self.accuracy,
            "loss": self.loss,
            "f2": self.chosen_score.cross_fitted_f2,
            "chosen": self.chosen.rule,
            "rules": [asdict(score) for score in self.rules],
            "labels": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        }


def evaluate_rules(
    probabilities_NC: Array,
    targets_NC: Array,
    labels: Sequence[str],
    *,
    ids_N: Array | None = None,
    seed: int = 0,
    folds: int = 5,
    resamples: int = 1000,
    rules: Sequence[DecisionRule] = RULES,
) -> Evaluation:
    """Judges rules, chooses one and refits it on all rows.

    Chosen is the rule that takes the fewest values from the data among those that are not behind the best by
    more than noise: whose paired bootstrap interval of the distance reaches 0. Of equally simple ones it's
    the one with the higher cross-fitted F2.

    Args:
        probabilities_NC: any real dtype (N, C) in [0, 1].
        targets_NC: 0 and 1 or bool (N, C).
        labels: C names.
        ids_N: unique ids (N,), integers or strings. With them the figures don't depend on the rows' order.
        seed: not negative, for folds and resamples.
        folds: 2 to N.
        resamples: of the bootstrap.
        rules: at least one, simplest first; their names differ.

    Raises:
        RunError: unlawful probabilities or targets, shapes that don't match, or a repeated id.
        ConfigError: a number of folds or a seed that can't be used.
    """
    checked_NC = check_probabilities(probabilities_NC)
    true_NC = check_targets(targets_NC, checked_NC.shape)
    count, label_count = checked_NC.shape
    if len(labels) != label_count:
        raise RunError(f"{len(labels)} label names for {label_count} columns of probabilities")
    if ids_N is not None:
        order_N = _order(np.asarray(ids_N), count)
        checked_NC, true_NC = checked_NC[order_N], true_NC[order_N]
    fold_of_N = fold_numbers(count, folds, seed)
    fitted = [rule.decision(checked_NC, true_NC, labels) for rule in rules]
    decisions = [cross_fitted(rule, checked_NC, true_NC, fold_of_N, labels) for rule in rules]
    compared = tuple(
        RuleScore(rule.name, rule.values_taken(fit), mean_f2(fit.decide(checked_NC), true_NC), *standing)
        for rule, fit, standing in zip(rules, fitted, standings(decisions, true_NC, seed, resamples), strict=True)
    )
    chosen = choose(compared)
    return Evaluation(
        rules=compared,
        chosen=fitted[chosen],
        label_scores=label_scores(decisions[chosen], true_NC),
        accuracy=accuracy(checked_NC, true_NC),
        loss=cross_entropy(checked_NC, true_NC),
        rows=count,
        folds=folds,
        seed=seed,
    )


def choose(scores: Sequence[RuleScore]) -> int:
    """The place of the simplest rule that is not behind the best by more than noise."""
    level = [r for r, score in enumerate(scores) if score.behind_low <= 0.0]
    return min(level, key=lambda r: (scores[r].fitted, -scores[r].cross_fitted_f2))


def fold_numbers(count: int, folds: int, seed: int) -> NDArray[np.int64]:
    """A random fold for each row, int64 (N,); sizes differ by 1 at most.

    Raises:
        ConfigError: fewer than 2 folds, more than rows, or a negative seed.
    """
    if not 2 <= folds <= count:
        raise ConfigError(f"{folds} folds of {count} rows: one is scored, the rest fitted on; give 2 to {count}")
    if seed < 0:
        raise ConfigError(f"seed {seed} is negative; give 0 or more")
    rng = np.random.default_rng([seed, _FOLDS_STREAM])
    numbers_N: NDArray[np.int64] = rng.permutation(np.arange(count, dtype=np.int64) % folds)
    return numbers_N


def cross_fitted(
    rule: DecisionRule, probabilities_NC: Floats, true_NC: Bools, fold_of_N: NDArray[np.int64], labels: Sequence[str]
) -> Bools:
    """Decisions (N, C), each row's by a fit on the rows of the other folds alone.

    Args:
        probabilities_NC: float64 (N, C), checked.
        true_NC: bool (N, C).
        fold_of_N: each row's fold.
        labels: C names.
    """
    decided_NC = np.zeros(probabilities_NC.shape, dtype=bool)
    for fold in np.unique(fold_of_N):
        held_out_N = fold_of_N == fold
        decision = rule.decision(probabilities_NC[~held_out_N], true_NC[~held_out_N], labels)
        decided_NC[held_out_N] = decision.decide(probabilities_NC[held_out_N])
    return decided_NC


def _order(ids_N: Array, count: int) -> NDArray[np.intp]:
    if ids_N.shape != (count,):
        raise RunError(f"ids have shape {ids_N.shape} for {count} rows of probabilities; each row needs one")
    distinct, times = np.unique(ids_N, return_counts=True)
    if len(distinct) < count:
        raise RunError(
            f"id {distinct[times.argmax()]!s} comes {times.max()} times; each sample must come once "
            f"({count} rows, {len(distinct)} distinct ids)"
        )
    return np.argsort(ids_N)
