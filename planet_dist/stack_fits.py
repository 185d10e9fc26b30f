"""Ways to combine several recipes' answers, fitted to rows that the networks were not trained on.

Simplest first (COMBINERS):

    mean-probabilities   the mean of the recipes' probabilities
    mean-logits          the mean of their logits
    weighted             for each label a weighted mean of the probabilities, of greatest likelihood
    ridge                each label by linear regression on all recipes' probabilities of all labels
    logistic             each label by logistic regression on all recipes' logits of all labels

Ridge and logistic weights are drawn to those of the mean, not to zero: a great penalty gives the mean back, and what
tells nothing is left where the mean has it. They are fitted for several penalties; which of them is deployed is
chosen label by label, on rows that they were not fitted to (planet_dist.stack_choice).

Columns are not scaled: they share a unit, and a column that hardly varies should not get a great weight for it.

Suffixes: R recipes, N samples, C labels, D = R x C columns, P penalties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from planet_dist.metrics import LEAST_PROBABILITY, Bools, Floats
from planet_dist.stack import Scale, Stack, mean_weights, own_label_weights
from planet_dist.stack_logistic import fit_logistic

RIDGE_PENALTIES = (1e6, 1e3, 3e2, 1e2, 3e1, 1e1, 3e0, 1e0)
LOGISTIC_PENALTIES = (1e6, 1e4, 3e3, 1e3, 3e2, 1e2, 3e1, 1e1)
_MOST_ROUNDS, _LEAST_GAIN = 200, 1e-7  # of expectation and maximisation; nats a row


@dataclass(frozen=True)
class Combiner:
    """A way to combine.

    Attributes:
        name: what reports call it.
        scale: of the columns that it takes.
        fitted: how many values it takes from the data, given the numbers of recipes and of labels.
        penalties: from the greatest to the least; one None where there is none.
        fit: columns (N, D) on the scale, truth bool (N, C) and which recipe speaks for which label, bool (R, C), to one
            Stack for each penalty.
    """

    name: str
    scale: Scale
    fitted: Callable[[int, int], int]
    penalties: Sequence[float | None]
    fit: Callable[[Floats, Bools, Bools], list[Stack]]


def row_losses(scale: Scale, probabilities_NC: Floats, true_NC: Bools) -> Floats:
    """What penalties are chosen by, float64 (N, C): what the fits on that scale minimise."""
    if scale == "probabilities":
        squared_NC: Floats = (probabilities_NC - true_NC) ** 2
        return squared_NC
    of_truth_NC = np.where(true_NC, probabilities_NC, 1.0 - probabilities_NC)
    nats_NC: Floats = -np.log(np.maximum(of_truth_NC, LEAST_PROBABILITY))
    return nats_NC


def fit_mean(scale: Scale, columns_ND: Floats, true_NC: Bools, speaks_RC: Bools) -> list[Stack]:
    """The mean over the recipes that speak for a label."""
    return [Stack(scale, mean_weights(speaks_RC), np.zeros(true_NC.shape[1]))]


def fit_weighted(columns_ND: Floats, true_NC: Bools, speaks_RC: Bools) -> list[Stack]:
    """For each label the weighted mean of greatest likelihood: weights are 0 or more, and add up to 1.

    It's the likelihood of a mixture, whose weights expectation and maximisation find, from equal ones on.
    """
    recipes, labels = speaks_RC.shape
    weights_RC = np.zeros((recipes, labels))
    for c in range(labels):
        speakers = np.flatnonzero(speaks_RC[:, c])
        if not len(speakers):
            continue
        given_SN = columns_ND[:, speakers * labels + c].T
        of_truth_SN = np.maximum(np.where(true_NC[:, c], given_SN, 1.0 - given_SN), LEAST_PROBABILITY)
        weights_RC[speakers, c] = _mixture_weights(of_truth_SN)
    return [Stack("probabilities", own_label_weights(weights_RC), np.zeros(labels))]


def _mixture_weights(likelihood_SN: Floats) -> Floats:
    """Weights (S,) of components by the rows' likelihood under each."""
    components, count = likelihood_SN.shape
    weights_S = np.full(components, 1.0 / components)
    mixed_N = weights_S @ likelihood_SN
    before = float(np.log(mixed_N).mean())
    for _ in range(_MOST_ROUNDS):
        weights_S = weights_S * (likelihood_SN @ (1.0 / mixed_N)) / count
        mixed_N = weights_S @ likelihood_SN
        now = float(np.log(mixed_N).mean())
        if now - before < _LEAST_GAIN:
            break
        before = now
    summed_S: Floats = weights_S / weights_S.sum()
    return summed_S


def fit_ridge(
    columns_ND: Floats, true_NC: Bools, speaks_RC: Bools, penalties: Sequence[float] = RIDGE_PENALTIES
) -> list[Stack]:
    """Least squares with a penalty on the squared distance of the weights from the mean's; the bias has none."""
    heard_ND = np.where(speaks_RC.ravel(), columns_ND, 0.0)  # what is not heard keeps the mean's weight, which is 0
    mean_DC = mean_weights(speaks_RC)
    missing_NC = true_NC - heard_ND @ mean_DC
    middle_D, missing_C = heard_ND.mean(axis=0), missing_NC.mean(axis=0)
    centred_ND = heard_ND - middle_D
    powers_D, axes_DD = np.linalg.eigh(centred_ND.T @ centred_ND)
    along_DC = axes_DD.T @ (centred_ND.T @ (missing_NC - missing_C))
    stacks = []
    for penalty in penalties:
        change_DC = axes_DD @ (along_DC / (np.maximum(powers_D, 0.0) + penalty)[:, None])
        stacks.append(Stack("probabilities", mean_DC + change_DC, missing_C - middle_D @ change_DC))
    return stacks


COMBINERS = (
    Combiner(
        "mean-probabilities",
        "probabilities",
        lambda recipes, labels: 0,
        (None,),
        partial(fit_mean, "probabilities"),
    ),
    Combiner("mean-logits", "logits", lambda recipes, labels: 0, (None,), partial(fit_mean, "logits")),
    Combiner("weighted", "probabilities", lambda recipes, labels: (recipes - 1) * labels, (None,), fit_weighted),
    Combiner(
        "ridge",
        "probabilities",
        lambda recipes, labels: (recipes * labels + 1) * labels,
        RIDGE_PENALTIES,
        fit_ridge,
    ),
    Combiner(
        "logistic",
        "logits",
        lambda recipes, labels: (recipes * labels + 1) * labels,
        LOGISTIC_PENALTIES,
        partial(fit_logistic, penalties=LOGISTIC_PENALTIES),
    ),
)
