"""What the members of an ensemble and the ways to combine them are worth, on rows that they were not fitted on.

Suffixes: M members, N samples, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from planet_dist.bundle_description import Description
from planet_dist.combination import (
    COMBINATION_RULES,
    CombinationRule,
    fit_combination,
    mean_probabilities,
    others_right,
)
from planet_dist.crossfit import evaluate_rules, fold_numbers
from planet_dist.decision import Decision, DecisionRule
from planet_dist.decision_rules import rule_of, rules_for
from planet_dist.metrics import (
    Array,
    Bools,
    Floats,
    LabelScores,
    label_scores,
    mean_f2,
    standings,
)

_FOLDS = 5


@dataclass(frozen=True)
class Contender:
    """How a member alone, or a way to combine them, did.

    Attributes:
        name: a member's name or a combination rule.
        same_rows_f2: sample-averaged F2, fitted and scored on all rows.
        cross_fitted_f2: sample-averaged F2, each row decided by a fit without its fold.
        low, high: bootstrap interval (95%) of cross_fitted_f2.
        behind_low, behind_high: paired bootstrap interval (95%) of how far it is behind the best contender.
    """

    name: str
    same_rows_f2: float
    cross_fitted_f2: float
    low: float
    high: float
    behind_low: float
    behind_high: float


@dataclass(frozen=True)
class EnsembleEvaluation:
    """Members and combinations compared.

    Attributes:
        labels: C names.
        members: names of the M members.
        speaks_MC: bool, the labels that each was trained on.
        contenders: the members that were trained on all labels, then the combinations.
        rule: the combination that was asked for.
        rare: labels for which "any-rare" takes any member's word.
        label_scores: of the combination, cross-fitted.
        member_f2_MC: float64, each member's own F2 of each label, cross-fitted; NaN where it doesn't speak.
        thresholds: the decision of the mean, fitted on all rows.
        rows, folds, seed: what the figures come from.
    """

    labels: list[str]
    members: list[str]
    speaks_MC: Bools
    contenders: list[Contender]
    rule: CombinationRule
    rare: list[str]
    label_scores: LabelScores
    member_f2_MC: Floats
    thresholds: Decision
    rows: int
    folds: int
    seed: int

    @property
    def f2(self) -> float:
        """The cross-fitted F2 of the combination."""
        return next(one.cross_fitted_f2 for one in self.contenders if one.name == self.rule)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain numbers, lists and strings."""
        scores = self.label_scores
        return {
            "rows": self.rows,
            "folds": self.folds,
            "seed": self.seed,
            "rule": self.rule,
            "rare": self.rare,
            "f2": self.f2,
            "contenders": [asdict(contender) for contender in self.contenders],
            "labels": [
                {
                    "label": label,
                    "f2": float(scores.f2_C[c]),
                    "precision": float(scores.precision_C[c]),
                    "recall": float(scores.recall_C[c]),
                    "support": int(scores.support_C[c]),
                    "members": {
                        name: float(self.member_f2_MC[m, c])
                        for m, name in enumerate(self.members)
                        if self.speaks_MC[m, c]
                    },
                }
                for c, label in enumerate(self.labels)
            ],
        }


def evaluate_ensemble(
    bundle: Description,
    probabilities_MNC: Floats,
    true_NC: Bools,
    ids_N: Array,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> EnsembleEvaluation:
    """Judges members and combinations on rows that their decisions were not fitted on.

    Args:
        bundle: members, rule and rare labels are used.
        probabilities_MNC: float64 in [0, 1].
        true_NC: bool.
        ids_N: unique; the figures don't depend on the rows' order.
        seed: of folds and resamples.
        resamples: of the bootstrap.
    """
    order_N = np.argsort(ids_N)
    probabilities_MNC, true_NC = probabilities_MNC[:, order_N], true_NC[order_N]
    combination = bundle.member_combination()
    speaks_MC = combination.speaks_MC
    of_mean = evaluate_rules(
        mean_probabilities(probabilities_MNC, speaks_MC),
        true_NC,
        bundle.labels,
        seed=seed,
        folds=_FOLDS,
        rules=rules_for(bundle.vocabulary),
    )
    judge = _Judge(bundle, probabilities_MNC, true_NC, speaks_MC, rule_of(of_mean.chosen), seed)
    names = [member.name for member in bundle.members]
    alone = [judge.member(m) for m in range(len(names))]
    together = {rule: judge.together(rule) for rule in COMBINATION_RULES}
    contending = {names[m]: alone[m] for m in range(len(names)) if speaks_MC[m].all()} | together
    return EnsembleEvaluation(
        labels=bundle.labels,
        members=names,
        speaks_MC=speaks_MC,
        contenders=_compare(contending, true_NC, seed, resamples),
        rule=combination.rule,
        rare=bundle.rare,
        label_scores=label_scores(together[combination.rule].cross_fitted_NC, true_NC),
        member_f2_MC=np.where(
            speaks_MC, np.stack([label_scores(one.cross_fitted_NC, true_NC).f2_C for one in alone]), np.nan
        ),
        thresholds=of_mean.chosen,
        rows=len(true_NC),
        folds=_FOLDS,
        seed=seed,
    )


@dataclass(frozen=True)
class _Decisions:
    same_rows_NC: Bools
    cross_fitted_NC: Bools


class _Judge:
    """Decisions of members and combinations, fitted on all rows and without each row's fold."""

    def __init__(
        self,
        bundle: Description,
        probabilities_MNC: Floats,
        true_NC: Bools,
        speaks_MC: Bools,
        mean_rule: DecisionRule,
        seed: int,
    ) -> None:
        self._probabilities_MNC, self._true_NC, self._speaks_MC = probabilities_MNC, true_NC, speaks_MC
        self._rare_C = bundle.member_combination().rare_C
        self._own_rules = [rule_of(member.thresholds) for member in bundle.members]
        self._labels = bundle.labels
        self._mean_rule = mean_rule
        self._fold_of_N = fold_numbers(len(true_NC), _FOLDS, seed)

    def together(self, rule: CombinationRule) -> _Decisions:
        """Those of a combination."""
        return self._decide(rule, self._probabilities_MNC, self._speaks_MC, self._own_rules, self._mean_rule)

    def member(self, m: int) -> _Decisions:
        """Those of a member by its own rule, the labels that it doesn't speak for taken as answered rightly."""
        heard_1NC = others_right(self._probabilities_MNC[m], self._true_NC, self._speaks_MC[m])[None]
        rule, everything_1C = self._own_rules[m], np.ones((1, heard_1NC.shape[2]), dtype=bool)
        return self._decide("mean", heard_1NC, everything_1C, [rule], rule)

    def _decide(
        self,
        rule: CombinationRule,
        probabilities_MNC: Floats,
        speaks_MC: Bools,
        own_rules: Sequence[DecisionRule],
        mean_rule: DecisionRule,
    ) -> _Decisions:
        def fitted_on(rows_N: Bools, decided_N: Bools) -> Bools:
            combination = fit_combination(
                rule,
                probabilities_MNC[:, rows_N],
                self._true_NC[rows_N],
                speaks_MC=speaks_MC,
                rare_C=self._rare_C,
                own_rules=own_rules,
                mean_rule=mean_rule,
                labels=self._labels,
            )
            return combination.decide(probabilities_MNC[:, decided_N])

        cross_fitted_NC = np.zeros(self._true_NC.shape, dtype=bool)
        for fold in range(_FOLDS):
            held_out_N = self._fold_of_N == fold
            cross_fitted_NC[held_out_N] = fitted_on(~held_out_N, held_out_N)
        all_N = np.ones(len(self._true_NC), dtype=bool)
        return _Decisions(fitted_on(all_N, all_N), cross_fitted_NC)


def _compare(contending: dict[str, _Decisions], true_NC: Bools, seed: int, resamples: int) -> list[Contender]:
    stand = standings([one.cross_fitted_NC for one in contending.values()], true_NC, seed, resamples)
    return [
        Contender(name, mean_f2(one.same_rows_NC, true_NC), *standing)
        for (name, one), standing in zip(contending.items(), stand, strict=True)
    ]
