"""Many recipes' answers to one by a linear map: what every way to combine out-of-fold answers comes to.

    mean of probabilities, weighted mean, ridge    probabilities = clip(sum of weights x probabilities + bias, 0, 1)
    mean of logits, logistic                       probabilities = sigmoid(sum of weights x logits + bias)

The sum goes over all recipes and all their labels: a recipe's answer on "clear" may speak about "road". A recipe's
answer on a new chip is the mean of the probabilities of its folds' networks. Logits are finite for all probabilities:
they're bounded by those of 1e-12 and its complement.

Suffixes: R recipes, M members, N samples, C labels, D = R x C columns, the first recipe's labels first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planet_dist.decision import Decision
from planet_dist.metrics import Array, Bools, Floats, check_probabilities, logits, probabilities

Scale = Literal["probabilities", "logits"]


@dataclass(frozen=True)
class Stack:
    """A linear map of recipes' answers.

    Attributes:
        scale: what is added up; the sum is on the same scale.
        weights_DC: float64, of each recipe's answer on each label in each label's sum.
        bias_C: float64.
    """

    scale: Scale
    weights_DC: Floats
    bias_C: Floats

    def probabilities(self, answers_RNC: Floats) -> Floats:
        """Each label's probability, float64 (N, C).

        Args:
            answers_RNC: float64 probabilities.
        """
        return self.of_columns(columns(answers_RNC, self.scale))

    def of_columns(self, columns_ND: Floats) -> Floats:
        """The same from columns() of this scale, which many maps may share."""
        # not a BLAS product, whose last digits depend on how many rows there are: a chip answers alike in any company
        sums_NC = np.einsum("nd,dc->nc", columns_ND, self.weights_DC) + self.bias_C
        return np.clip(sums_NC, 0.0, 1.0) if self.scale == "probabilities" else probabilities(sums_NC)


@dataclass(frozen=True)
class StackedCombination:
    """How the members of a bundle decide together where they're networks of several recipes and folds.

    Attributes:
        members: for each recipe the places of its members.
        stack: of the recipes' answers.
        decision: of what the stack gives.
    """

    members: tuple[tuple[int, ...], ...]
    stack: Stack
    decision: Decision

    def probabilities(self, probabilities_MNC: Array) -> Floats:
        """Each label's probability, float64 (N, C), of the members' probabilities of any real dtype (M, N, C).

        Raises:
            RunError: a probability is NaN or outside [0, 1].
        """
        checked_MNC = np.stack([check_probabilities(member_NC) for member_NC in probabilities_MNC])
        return self.stack.probabilities(recipe_answers(checked_MNC, self.members))

    def decide(self, probabilities_MNC: Array) -> Bools:
        """The decisions, bool (N, C); arguments and errors as those of probabilities()."""
        return self.decision.decide(self.probabilities(probabilities_MNC))


def recipe_answers(probabilities_MNC: Floats, members: Sequence[Sequence[int]]) -> Floats:
    """Each recipe's probabilities (R, N, C), the mean of its members'.

    A stack and its decision are fitted to the answers of single networks. This mean keeps how often they expect each
    label; that of their logits would lower it for rare labels.
    """
    return np.stack([probabilities_MNC[list(places)].mean(axis=0) for places in members])


def columns(answers_RNC: Floats, scale: Scale) -> Floats:
    """The answers side by side on a scale, float64 (N, D).

    Args:
        answers_RNC: float64 probabilities.
    """
    recipes, count, labels = answers_RNC.shape
    on_scale_RNC = logits(answers_RNC) if scale == "logits" else answers_RNC
    return np.ascontiguousarray(on_scale_RNC.transpose(1, 0, 2).reshape(count, recipes * labels))


def mean_weights(speaks_RC: Bools) -> Floats:
    """Weights (D, C) of the mean, for each label, over the recipes that speak for it.

    Args:
        speaks_RC: bool, the labels that each recipe was trained on.
    """
    shares_RC = speaks_RC / np.maximum(np.count_nonzero(speaks_RC, axis=0), 1)
    return own_label_weights(shares_RC)


def recipe_mean(answers_RNC: Floats, speaks_RC: Bools) -> Floats:
    """The mean of the recipes' probabilities, float64 (N, C)."""
    return Stack("probabilities", mean_weights(speaks_RC), np.zeros(speaks_RC.shape[1])).probabilities(answers_RNC)


def own_label_weights(weights_RC: Floats) -> Floats:
    """Weights (D, C) by which each label's sum hears of each recipe what it says about this label alone."""
    recipes, labels = weights_RC.shape
    weights_RCC = np.zeros((recipes, labels, labels))
    every_C = np.arange(labels)
    weights_RCC[:, every_C, every_C] = weights_RC
    return weights_RCC.reshape(recipes * labels, labels)
