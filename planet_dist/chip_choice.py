"""Which chips are worth a look: pure functions of labels, probabilities and decisions, giving places in them.

Suffixes: N chips, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planet_dist.metrics import Bools, Floats, sample_f2

Places = NDArray[np.intp]


def labelled_examples(true_NC: Bools, one_of: Sequence[int], count: int = 4) -> Places:
    """Chips that show many labels: one for each of `one_of` in turn, then any.

    Args:
        true_NC: bool (N, C).
        one_of: columns of labels that exclude each other (the weather).
        count: most that are wanted.
    """
    chosen: list[int] = []
    labels_N = true_NC.sum(axis=1)
    for column in one_of:
        bearing = np.flatnonzero(true_NC[:, column])
        if bearing.size:
            chosen.append(int(bearing[labels_N[bearing].argmax()]))
    others = np.setdiff1d(np.argsort(-labels_N, kind="stable"), chosen, assume_unique=True)
    return np.array([*chosen, *others.tolist()][: min(count, len(true_NC))], dtype=np.intp)


def worst_mistakes(decided_NC: Bools, true_NC: Bools, count: int) -> Places:
    """The chips of lowest F2 below 1; of equals those with more wrong labels."""
    score_N = sample_f2(decided_NC, true_NC)
    wrong_N = np.count_nonzero(decided_NC != true_NC, axis=1)
    order_N = np.lexsort((-wrong_N, score_N))
    return order_N[score_N[order_N] < 1][:count]


def several_of(decided_NC: Bools, columns: Sequence[int], probabilities_NC: Floats, count: int) -> Places:
    """Chips given two or more of labels that exclude each other, those where the second is surest first."""
    bearing = np.flatnonzero(decided_NC[:, columns].sum(axis=1) > 1)
    second_M = np.sort(probabilities_NC[bearing][:, columns], axis=1)[:, -2]
    return bearing[np.argsort(-second_M, kind="stable")][:count]


def most_certain(probabilities_NC: Floats, column: int, count: int) -> Places:
    """The chips of which a model is surest that they bear a label."""
    return np.argsort(-probabilities_NC[:, column], kind="stable")[:count]


def confusions(decided_NC: Bools, true_NC: Bools, first: int, second: int, probabilities_NC: Floats) -> Places:
    """Chips that truly bear one of two labels alone and are given the other, the surest first."""
    one_N = true_NC[:, first] != true_NC[:, second]
    other_N = np.where(true_NC[:, first], decided_NC[:, second], decided_NC[:, first])
    chosen = np.flatnonzero(one_N & other_N)
    surest = np.where(true_NC[chosen, first], probabilities_NC[chosen, second], probabilities_NC[chosen, first])
    return chosen[np.argsort(-surest, kind="stable")]
