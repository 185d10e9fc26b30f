"""How good decisions and probabilities are. All pure functions of arrays, NumPy alone.

Suffixes: N samples, C labels, R rules (or any columns of scores), B bootstrap resamples.

F2 is F-beta with beta = 2, in counts 5 tp / (4 true + decided): it weighs recall over precision (the first
paper's section 4.1). Where a sample (or label) has neither true nor decided labels the fraction is 0 / 0, and
it is 0 here, as scikit-learn has it with zero_division=0. Planet's chips always bear a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shards.errors import RunError

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

BETA_SQUARED = 4.0
_SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class LabelScores:
    """Scores of each label over all samples; each field (C,).

    Attributes:
        f2_C, precision_C, recall_C: float64 in [0, 1]; 0 where the fraction is 0 / 0.
        support_C: int64, samples that truly bear the label.
    """

    f2_C: Floats
    precision_C: Floats
    recall_C: Floats
    support_C: NDArray[np.int64]


LEAST_PROBABILITY = 1e-12  # of a logit: what saturated in float32 counts as this far from 0 and 1


def logits(probabilities_any: Floats) -> Floats:
    """Finite logits of float64 probabilities of any shape, bounded by those of LEAST_PROBABILITY and its complement."""
    inside = np.clip(probabilities_any, LEAST_PROBABILITY, 1.0 - LEAST_PROBABILITY)
    found: Floats = np.log(inside) - np.log1p(-inside)
    return found


def probabilities(logits_NC: Array) -> Floats:
    """The logistic function, in float64 whatever the logits' precision.

    Args:
        logits_NC: any floating dtype, any shape.

    Returns:
        float64 in [0, 1], same shape; NaN stays NaN.
    """
    logits = np.asarray(logits_NC, dtype=np.float64)
    # exp of a negative number alone: exp(1000) would overflow, with a warning
    small = np.exp(-np.abs(logits))
    result: Floats = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    return result


def check_probabilities(probabilities_NC: Array) -> Floats:
    """Probabilities as float64, after a look at each.

    Args:
        probabilities_NC: real dtype (N, C), N and C at least 1.

    Raises:
        RunError: another shape, or a value that is NaN or outside [0, 1]; the row is named.
    """
    values_NC = np.asarray(probabilities_NC, dtype=np.float64)
    if values_NC.ndim != 2 or 0 in values_NC.shape:
        raise RunError(
            f"probabilities have shape {values_NC.shape}; they must be (samples, labels), at least 1 of each"
        )
    lawful_NC = (values_NC >= 0) & (values_NC <= 1)
    if not lawful_NC.all():
        row, column = (int(i) for i in np.argwhere(~lawful_NC)[0])
        raise RunError(
            f"row {row}, label {column}: the probability is {values_NC[row, column]}; it must be in [0, 1] "
            f"({np.count_nonzero(~lawful_NC)} such values); look for a model that diverged, or for logits "
            "given as probabilities"
        )
    return values_NC


def check_targets(targets_NC: Array, shape: tuple[int, ...]) -> Bools:
    """Targets as booleans, after a look at each.

    Args:
        targets_NC: 0 and 1 (or bool) of any dtype (N, C).
        shape: what their shape must be.

    Raises:
        RunError: another shape, or a value other than 0 and 1; the row is named.
    """
    values_NC = np.asarray(targets_NC)
    if values_NC.shape != shape:
        raise RunError(f"targets have shape {values_NC.shape}, probabilities {shape}; they must be the same")
    true_NC: Bools = values_NC == 1
    other_NC = ~(true_NC | (values_NC == 0))
    if other_NC.any():
        row, column = (int(i) for i in np.argwhere(other_NC)[0])
        raise RunError(
            f"row {row}, label {column}: the target is {values_NC[row, column]}; it must be 0 or 1 "
            f"({np.count_nonzero(other_NC)} such values)"
        )
    return true_NC


def sample_f2(decisions_NC: Array, targets_NC: Array) -> Floats:
    """F2 of each sample over its labels.

    Args:
        decisions_NC, targets_NC: 0 and 1 or bool (N, C).

    Returns:
        float64 (N,) in [0, 1].
    """
    decided_NC, true_NC = np.asarray(decisions_NC, dtype=bool), np.asarray(targets_NC, dtype=bool)
    return f2_of_counts(
        np.count_nonzero(decided_NC & true_NC, axis=1),
        np.count_nonzero(true_NC, axis=1),
        np.count_nonzero(decided_NC, axis=1),
    )


def mean_f2(decisions_NC: Array, targets_NC: Array) -> float:
    """The sample-averaged F2, the papers' score: the mean of sample_f2."""
    return float(sample_f2(decisions_NC, targets_NC).mean())


def f2_of_counts(hits: ArrayLike, true: ArrayLike, decided: ArrayLike) -> Floats:
    """F2 from counts that broadcast: labels (or samples) both true and decided, true, and decided.

    Returns:
        float64, 0 where nothing is true nor decided.
    """
    weights = BETA_SQUARED * np.asarray(true, dtype=np.float64) + np.asarray(decided)
    score: Floats = (1.0 + BETA_SQUARED) * np.asarray(hits, dtype=np.float64) / np.maximum(weights, 1.0)
    return score


def label_scores(decisions_NC: Array, targets_NC: Array) -> LabelScores:
    """F2, precision, recall and support of each label.

    Args:
        decisions_NC, targets_NC: 0 and 1 or bool (N, C).
    """
    decided_NC, true_NC = np.asarray(decisions_NC, dtype=bool), np.asarray(targets_NC, dtype=bool)
    hits_C = np.count_nonzero(decided_NC & true_NC, axis=0)
    support_C = np.count_nonzero(true_NC, axis=0).astype(np.int64)
    decided_C = np.count_nonzero(decided_NC, axis=0)
    return LabelScores(
        f2_C=f2_of_counts(hits_C, support_C, decided_C),
        precision_C=hits_C / np.maximum(decided_C, 1),
        recall_C=hits_C / np.maximum(support_C, 1),
        support_C=support_C,
    )


def label_f2_intervals(
    decisions_NC: Array, targets_NC: Array, seed: int, resamples: int = 1000
) -> tuple[Floats, Floats]:
    """Bootstrap intervals (95%) of each label's F2: the lower and the upper ends, float64 (C,).

    A label's F2 follows from how many samples are hit, missed, added and left alone, and drawing N samples is a
    multinomial draw over these four.

    Args:
        decisions_NC, targets_NC: 0 and 1 or bool (N, C).
        seed: not negative.
        resamples: how many draws.
    """
    decided_NC, true_NC = np.asarray(decisions_NC, dtype=bool), np.asarray(targets_NC, dtype=bool)
    rng, count = np.random.default_rng([seed, _LABELS_STREAM]), len(true_NC)
    cells_C4 = np.stack(
        [np.count_nonzero((decided_NC == said) & (true_NC == is_so), axis=0) for said in (1, 0) for is_so in (1, 0)],
        axis=1,
    )
    ends = []
    for cells_4 in cells_C4:
        hit_B, added_B, missed_B, _ = rng.multinomial(count, cells_4 / count, size=resamples).T
        ends.append(interval(f2_of_counts(hit_B, hit_B + missed_B, hit_B + added_B)))
    low_C, high_C = np.array(ends).T
    return low_C, high_C


def accuracy(probabilities_NC: Array, targets_NC: Array) -> float:
    """The share of label decisions that are right when every label is decided at 0.5.

    The second paper's accuracy (table 2). It flatters: with rare labels, deciding nothing scores high, and
    the first paper names choosing its models by it as a mistake.
    """
    decided_NC = np.asarray(probabilities_NC, dtype=np.float64) > 0.5
    return float(np.mean(decided_NC == np.asarray(targets_NC, dtype=bool)))


def cross_entropy_of_logits(logits_NC: Array, targets_NC: Array) -> float:
    """The mean binary cross-entropy over samples and labels, in nats.

    Args:
        logits_NC: any floating dtype (N, C); infinite ones are right or infinitely wrong.
        targets_NC: 0 and 1 or bool (N, C).
    """
    logits = np.asarray(logits_NC, dtype=np.float64)
    against_NC = np.where(np.asarray(targets_NC, dtype=bool), -logits, logits)
    return float(np.logaddexp(0.0, against_NC).mean())


def cross_entropy(probabilities_NC: Array, targets_NC: Array) -> float:
    """The mean binary cross-entropy over samples and labels, in nats, from probabilities.

    The probability of what came true counts as 2.2e-16 at least, so that one saturated mistake does not make
    the mean infinite (scikit-learn's log_loss does so too).
    """
    given_NC = np.asarray(probabilities_NC, dtype=np.float64)
    of_truth_NC = np.where(np.asarray(targets_NC, dtype=bool), given_NC, 1.0 - given_NC)
    return float(-np.log(np.maximum(of_truth_NC, _SMALLEST_PROBABILITY)).mean())


def bootstrap_means(scores_NR: Array, seed: int, resamples: int = 1000) -> Floats:
    """Means of scores over samples drawn with replacement; columns share the draws, so they can be paired.

    Scores of decisions take few distinct values. Drawing N rows is a multinomial draw over the distinct rows,
    which costs as many draws as there are distinct rows rather than samples.

    Args:
        scores_NR: real (N, R), one column for each thing compared.
        seed: not negative.
        resamples: how many means.

    Returns:
        float64 (B, R).
    """
    scores = np.asarray(scores_NR, dtype=np.float64)
    distinct_KR, counts_K = np.unique(scores, axis=0, return_counts=True)
    rng = np.random.default_rng([seed, _BOOTSTRAP_STREAM])
    count = len(scores)
    drawn_BK = rng.multinomial(count, counts_K / count, size=resamples)
    # not a BLAS product, whose last digits may depend on how many threads it runs
    means: Floats = np.einsum("bk,kr->br", drawn_BK, distinct_KR) / count
    return means


_BOOTSTRAP_STREAM, _LABELS_STREAM = 1, 8  # beside the seed, so that no two uses of a seed share their draws


def interval(means_B: Array, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap means (B,): what is left between equal tails."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.asarray(means_B, dtype=np.float64), [tail, 1.0 - tail])
    return float(low), float(high)


class Standing(NamedTuple):
    """One of several ways to decide, beside the others.

    Attributes:
        f2: sample-averaged.
        low, high: bootstrap interval (95%) of f2.
        behind_low, behind_high: paired bootstrap interval (95%) of how far it is behind the best way.
    """

    f2: float
    low: float
    high: float
    behind_low: float
    behind_high: float


def standings(decided: Sequence[Bools], true_NC: Bools, seed: int, resamples: int = 1000) -> list[Standing]:
    """Compares ways to decide on the same chips.

    Args:
        decided: bool (N, C), of each way.
        true_NC: bool (N, C).
        seed: not negative.
        resamples: of the bootstrap.
    """
    scores_NR = np.stack([sample_f2(decided_NC, true_NC) for decided_NC in decided], axis=1)
    means_R, means_BR = scores_NR.mean(axis=0), bootstrap_means(scores_NR, seed, resamples)
    behind_BR = means_BR[:, [int(means_R.argmax())]] - means_BR
    return [
        Standing(float(mean), *interval(means_BR[:, r]), *interval(behind_BR[:, r])) for r, mean in enumerate(means_R)
    ]
