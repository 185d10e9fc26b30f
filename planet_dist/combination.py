"""Many models' probabilities to one decision. All pure functions of arrays.

    mean        the mean of the members' probabilities, by the decision that was fitted on it
    vote        the members' decisions, each by its own; a label stands where at least half of them say so (first
                paper, section 4.4). An even split says yes: F2 weighs recall over precision
    any-rare    for rare labels any member's decision suffices (first paper, section 6, as future work); "mean"
                for the others

A member speaks for the labels that its loss gave weight to, for all of them in most cases, and has no part in
what is said about the others. A specialist is a run whose loss.label_weights are 0 for every label but its own.
A label that no member speaks for has probability 0, and is never decided.

Suffixes: M members, N samples, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from planet_dist.decision import Decision, DecisionRule
from planet_dist.metrics import Array, Bools, Floats, check_probabilities

CombinationRule = Literal["mean", "vote", "any-rare"]
COMBINATION_RULES: tuple[CombinationRule, ...] = get_args(CombinationRule)


@dataclass(frozen=True)
class Combination:
    """How members decide together.

    Attributes:
        rule: see the module's docstring.
        speaks_MC: bool.
        own: M decisions, each member's own; "mean" does not use them.
        mean: of the mean; "vote" does not use it.
        rare_C: bool; only "any-rare" uses it.
    """

    rule: CombinationRule
    speaks_MC: Bools
    own: tuple[Decision, ...]
    mean: Decision
    rare_C: Bools

    def probabilities(self, probabilities_MNC: Floats) -> Floats:
        """The mean over the members, float64 (N, C)."""
        return mean_probabilities(probabilities_MNC, self.speaks_MC)

    def decide(self, probabilities_MNC: Array) -> Bools:
        """The decisions, bool (N, C), on probabilities of any real dtype (M, N, C).

        Raises:
            RunError: a probability is NaN or outside [0, 1].
        """
        members, _, labels = probabilities_MNC.shape
        assert (members, labels) == self.speaks_MC.shape, (probabilities_MNC.shape, self.speaks_MC.shape)
        checked_MNC = np.stack([check_probabilities(member_NC) for member_NC in probabilities_MNC])
        if self.rule == "mean":
            return self._by_mean(checked_MNC)
        own_MNC = [decision.decide(own_NC) for decision, own_NC in zip(self.own, checked_MNC, strict=True)]
        said_MNC = np.stack(own_MNC) & self.speaks_MC[:, None, :]
        if self.rule == "vote":
            votes_NC = np.count_nonzero(said_MNC, axis=0)
            majority: Bools = (votes_NC > 0) & (2 * votes_NC >= np.count_nonzero(self.speaks_MC, axis=0))
            return majority
        return np.where(self.rare_C, said_MNC.any(axis=0), self._by_mean(checked_MNC))

    def _by_mean(self, probabilities_MNC: Floats) -> Bools:
        return self.mean.decide(mean_probabilities(probabilities_MNC, self.speaks_MC))


def mean_probabilities(probabilities_MNC: Floats, speaks_MC: Bools) -> Floats:
    """The mean, for each label, over the members that speak for it.

    Args:
        probabilities_MNC: float64.
        speaks_MC: bool.

    Returns:
        float64 (N, C); for one member its own probabilities, bit for bit.
    """
    heard_MNC = np.where(speaks_MC[:, None, :], probabilities_MNC, 0.0)
    mean_NC: Floats = heard_MNC.sum(axis=0) / np.maximum(np.count_nonzero(speaks_MC, axis=0), 1)
    return mean_NC


def fit_combination(
    rule: CombinationRule,
    probabilities_MNC: Floats,
    true_NC: Bools,
    *,
    speaks_MC: Bools,
    rare_C: Bools,
    own_rules: Sequence[DecisionRule],
    mean_rule: DecisionRule,
    labels: Sequence[str],
) -> Combination:
    """Fits each member's decision by its own rule, and that of the mean.

    Args:
        probabilities_MNC: float64, checked.
        true_NC: bool.
        own_rules: M rules.
        mean_rule: for the mean.
        labels: C names.
    """
    own = [
        own_rule.decision(others_right(member_NC, true_NC, speaks_C), true_NC, labels)
        for own_rule, member_NC, speaks_C in zip(own_rules, probabilities_MNC, speaks_MC, strict=True)
    ]
    mean = mean_rule.decision(mean_probabilities(probabilities_MNC, speaks_MC), true_NC, labels)
    return Combination(rule, speaks_MC, tuple(own), mean, rare_C)


def others_right(values_NC: Array, true_NC: Array, speaks_C: Bools, low: float = 0.0, high: float = 1.0) -> Any:
    """A specialist's values, with the truth in place of what it says about labels that it doesn't speak for.

    The sample-averaged F2 of one label alone can't be used: a chip without the label counts 0 whatever is decided,
    so that deciding everything would be best. With the others right, it's what the label adds to the real score.

    Args:
        values_NC: probabilities or logits; unchanged where the member speaks for all labels.
        true_NC: 0 and 1 or bool.
        low, high: what stands for a label's absence and presence.
    """
    if speaks_C.all():
        return values_NC
    truth_NC = np.where(np.asarray(true_NC, dtype=bool), high, low).astype(values_NC.dtype)
    return np.where(speaks_C, values_NC, truth_NC)
