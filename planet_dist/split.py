"""Which chips train and which validate, from an expression.

    tail:8000    the last 8,000 by natural key order validate (the first paper's section 3.3 takes the
                 top-numbered 8,000)
    random:0.3   a random 30% validate, rounded up as scikit-learn does: 12,144 of 40,479 (the second paper's
                 section 3.3 takes 70% and 30%)
    kfold:5/0    fold 0 of 5 validates, stratified so that each fold has its share of every label
    kfold-grouped:5/0
                 the same, of folds that keep related chips together: those that show the same ground or lie side by
                 side, as planet-shard groups has stored them beside the dataset

Only labelled chips take part. A split is a function of the expression, the keys, the labels, the groups where it
needs them, and the seed; the order in which the chips were packed does not matter.

Suffixes: N chips of the dataset, M those that take part (labelled, in natural key order), C labels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.errors import ConfigError
from shards.names import natural_order

FORMS = (
    "tail:COUNT (the last COUNT by key validate), random:FRACTION (a random fraction, as in random:0.3), "
    "kfold:K/I (fold I of K, 0 to K-1), kfold-grouped:K/I (the same, related chips in one fold)"
)

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Ids (places in the dataset), ascending; no id is in both.

    Attributes:
        train_ids: int64, at least one.
        val_ids: int64, at least one.
    """

    train_ids: Ids
    val_ids: Ids


@dataclass(frozen=True)
class SplitRule:
    """A parsed expression.

    Attributes:
        kind: "tail", "random", "kfold" or "kfold-grouped".
        count: chips that validate (tail), or folds.
        fraction: of the chips that validate (random).
        fold: which fold validates.
    """

    kind: str
    count: int = 0
    fraction: float = 0.0
    fold: int = 0

    @property
    def needs_groups(self) -> bool:
        """Whether it must be known which chips are related."""
        return self.kind == "kfold-grouped"


def parse_split(expression: str) -> SplitRule:
    """Reads an expression without a dataset.

    Raises:
        ConfigError: it has none of the valid forms, which are listed.
    """
    kind, _, argument = expression.strip().partition(":")
    if kind == "tail" and re.fullmatch(r"[0-9]{1,18}", argument) and int(argument) > 0:
        return SplitRule("tail", count=int(argument))
    if kind == "random" and re.fullmatch(r"[0-9]*\.[0-9]+", argument) and 0 < float(argument) < 1:
        return SplitRule("random", fraction=float(argument))
    folds = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", argument)
    if kind in ("kfold", "kfold-grouped") and folds:
        count, fold = int(folds[1]), int(folds[2])
        if count >= 2 and fold < count:
            return SplitRule(kind, count=count, fold=fold)
    raise ConfigError(f"split {expression!r} has none of the valid forms: {FORMS}")


def split(
    expression: str,
    keys: Sequence[str],
    labels_NC: NDArray[np.uint8],
    seed: int,
    labelled_N: NDArray[np.bool_] | None = None,
    groups_N: Ids | None = None,
) -> Split:
    """Splits a dataset.

    Args:
        expression: one of the forms above.
        keys: N names; the id of a chip is its place among them.
        labels_NC: 0 and 1 (N, C).
        seed: not negative; tail ignores it.
        labelled_N: bool (N,), the chips that take part; all without it.
        groups_N: equal for related chips and for no others (N,); read by kfold-grouped alone, which needs it.

    Raises:
        ConfigError: a malformed expression, a negative seed, or a part that would be empty.
    """
    rule = parse_split(expression)
    if seed < 0:
        raise ConfigError(f"seed {seed} is negative; give 0 or more")
    ids = np.arange(len(keys)) if labelled_N is None else np.flatnonzero(labelled_N)
    ids_M = np.array(sorted(ids.tolist(), key=lambda i: natural_order(keys[i])), dtype=np.int64)
    count = len(ids_M)
    if rule.kind == "tail":
        validates_M = np.arange(count) >= count - rule.count
    elif rule.kind == "random":
        # the product in floating point, as scikit-learn's train_test_split has it, to give the same sizes
        order_M = np.random.default_rng([seed, _RANDOM_STREAM]).permutation(count)
        validates_M = order_M < math.ceil(rule.fraction * count)
    elif rule.kind == "kfold":
        validates_M = stratified_folds(labels_NC[ids_M], rule.count, seed) == rule.fold
    else:
        assert groups_N is not None, "who asks for groups brings them"
        validates_M = grouped_folds(labels_NC[ids_M], groups_N[ids_M], rule.count, seed) == rule.fold
    chosen = int(np.count_nonzero(validates_M))
    if chosen in (0, count):
        raise ConfigError(
            f"split {expression!r} of {count} labelled chips leaves {count - chosen} to train, {chosen} to "
            "validate; each part needs one at least, so split another way or add labelled chips"
        )
    return Split(np.sort(ids_M[~validates_M]), np.sort(ids_M[validates_M]))


_RANDOM_STREAM, _FOLDS_STREAM = 3, 4  # beside the seed, so that no two uses of a seed share their draws


def stratified_folds(labels_MC: NDArray[np.uint8], folds: int, seed: int) -> Ids:
    """A fold for each chip, by iterative stratification: the rarest label first.

    Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-Label Data, 2011. The chips of the label
    with the fewest chips left go, one by one, to the fold that still lacks most of that label, of equals to
    the one that lacks most chips; until all labels are through. No fold takes more than its share of chips, so
    that sizes differ by 1 at most.

    Args:
        labels_MC: 0 and 1 (M, C).
        folds: how many, 2 at least.
        seed: not negative; it orders chips that bear the same labels.

    Returns:
        int64 (M,), each in [0, folds).
    """
    shares = _Shares(labels_MC, folds)
    units_M = np.ones(len(labels_MC), dtype=np.int64)
    return shares.deal(labels_MC.astype(np.int64), units_M, np.random.default_rng([seed, _FOLDS_STREAM]))


def grouped_folds(labels_MC: NDArray[np.uint8], groups_M: Ids, folds: int, seed: int) -> Ids:
    """A fold for each chip, the same for all chips of a group, by iterative stratification.

    Groups of several chips are dealt first, as chips are in stratified_folds: those of the label with the fewest chips
    left to the fold that still lacks most of it, larger groups before smaller ones, into folds that have room for the
    whole group while there are such. The other chips then level out what the groups have left uneven. Sizes differ by
    1 at most where these suffice, and never by more than the largest group and 1.

    Args:
        labels_MC: 0 and 1 (M, C).
        groups_M: int64 (M,), equal for chips of a group.
        folds: how many, 2 at least.
        seed: not negative; it orders groups and chips that bear the same labels.

    Returns:
        int64 (M,), each in [0, folds).
    """
    shares = _Shares(labels_MC, folds)
    _, first_U, unit_M, size_U = np.unique(groups_M, return_index=True, return_inverse=True, return_counts=True)
    # in the order of their first chips: what numbers the groups bear must not matter
    place_U = np.argsort(np.argsort(first_U))
    unit_M, size_U = place_U[unit_M], size_U[np.argsort(first_U)]
    counts_UC = np.zeros((len(size_U), labels_MC.shape[1]), dtype=np.int64)
    np.add.at(counts_UC, unit_M, labels_MC)
    fold_U: Ids = np.full(len(size_U), -1, dtype=np.int64)
    rng = np.random.default_rng([seed, _FOLDS_STREAM])
    for part_U in (size_U > 1, size_U == 1):
        fold_U[part_U] = shares.deal(counts_UC[part_U], size_U[part_U], rng)
    return fold_U[unit_M]


class _Shares:
    """What each fold still lacks of chips and of every label.

    Args:
        labels_MC: 0 and 1, of all chips that are to be dealt (M, C).
        folds: how many.
    """

    def __init__(self, labels_MC: NDArray[np.uint8], folds: int) -> None:
        count = len(labels_MC)
        self._left = [count // folds + (fold < count % folds) for fold in range(folds)]
        self._lacking = [[float(total) / folds] * folds for total in np.count_nonzero(labels_MC, axis=0)]

    def deal(self, counts_UC: Ids, size_U: Ids, rng: np.random.Generator) -> Ids:
        """A fold for each unit, a chip or a group: those of the rarest label left first.

        Args:
            counts_UC: the unit's chips that bear each label (U, C).
            size_U: its chips (U,).
        """
        fold_U: Ids = np.full(len(size_U), -1, dtype=np.int64)
        # equal label sets stand together, so that each set too is dealt out over the folds in turn
        order_U = np.lexsort((rng.permutation(len(size_U)), *counts_UC.T[::-1], -size_U))
        waiting_C = counts_UC.sum(axis=0)
        most = int(waiting_C.max(initial=0)) + 1
        while waiting_C.any():
            rarest = int(np.where(waiting_C > 0, waiting_C, most).argmin())
            for unit in order_U[(counts_UC[order_U, rarest] > 0) & (fold_U[order_U] < 0)].tolist():
                fold_U[unit] = self._book(rarest, counts_UC[unit], int(size_U[unit]))
            waiting_C = counts_UC[fold_U < 0].sum(axis=0)
        for unit in order_U[fold_U[order_U] < 0].tolist():
            fold_U[unit] = self._book(None, counts_UC[unit], int(size_U[unit]))
        return fold_U

    def _book(self, rarest: int | None, counts_C: Ids, size: int) -> int:
        """Chooses a fold for a unit, one with room for it where there is one, and books the unit there."""
        roomy = [fold for fold, room in enumerate(self._left) if room >= size]
        fold = max(
            roomy or [max(range(len(self._left)), key=self._left.__getitem__)],
            key=lambda fold: (self._lacking[rarest][fold] if rarest is not None else 0.0, self._left[fold]),
        )
        for label in np.flatnonzero(counts_C).tolist():
            self._lacking[label][fold] -= float(counts_C[label])
        self._left[fold] -= size
        return fold
