"""Which chips train and which validate, from an expression.

    tail:8000    the last 8,000 by natural key order validate (the first paper's section 3.3 takes the
                 top-numbered 8,000)
    random:0.3   a random 30% validate, rounded up as scikit-learn does: 12,144 of 40,479 (the second paper's
                 section 3.3 takes 70% and 30%)
    kfold:5/0    fold 0 of 5 validates, stratified so that each fold has its share of every label

Only labelled chips take part. A split is a function of the expression, the keys, the labels and the seed; the
order in which the chips were packed does not matter.

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
    "kfold:K/I (fold I of K, 0 to K-1)"
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
        kind: "tail", "random" or "kfold".
        count: chips that validate (tail), or folds (kfold).
        fraction: of the chips that validate (random).
        fold: which fold validates (kfold).
    """

    kind: str
    count: int = 0
    fraction: float = 0.0
    fold: int = 0


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
    if kind == "kfold" and folds:
        count, fold = int(folds[1]), int(folds[2])
        if count >= 2 and fold < count:
            return SplitRule("kfold", count=count, fold=fold)
    raise ConfigError(f"split {expression!r} has none of the valid forms: {FORMS}")


def split(
    expression: str,
    keys: Sequence[str],
    labels_NC: NDArray[np.uint8],
    seed: int,
    labelled_N: NDArray[np.bool_] | None = None,
) -> Split:
    """Splits a dataset.

    Args:
        expression: one of the forms above.
        keys: N names; the id of a chip is its place among them.
        labels_NC: 0 and 1 (N, C).
        seed: not negative; tail ignores it.
        labelled_N: bool (N,), the chips that take part; all without it.

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
    else:
        validates_M = stratified_folds(labels_NC[ids_M], rule.count, seed) == rule.fold
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
    count = len(labels_MC)
    rng = np.random.default_rng([seed, _FOLDS_STREAM])
    fold_M: Ids = np.full(count, -1, dtype=np.int64)
    left = [count // folds + (fold < count % folds) for fold in range(folds)]
    lacking = [[float(total) / folds] * folds for total in np.count_nonzero(labels_MC, axis=0)]
    # equal label sets stand together, so that each set too is dealt out over the folds in turn
    order_M = np.lexsort((rng.permutation(count), *labels_MC.T[::-1]))
    waiting_C = np.count_nonzero(labels_MC, axis=0)
    while waiting_C.any():
        rarest = int(np.where(waiting_C > 0, waiting_C, count + 1).argmin())
        chips = order_M[(labels_MC[order_M, rarest] > 0) & (fold_M[order_M] < 0)]
        for chip in chips.tolist():
            borne = np.flatnonzero(labels_MC[chip]).tolist()
            fold_M[chip] = _deal(rarest, borne, lacking, left)
        waiting_C = np.count_nonzero(labels_MC[fold_M < 0], axis=0)
    for chip in order_M[fold_M[order_M] < 0].tolist():
        fold_M[chip] = _deal(None, [], lacking, left)
    return fold_M


def _deal(rarest: int | None, borne: list[int], lacking: list[list[float]], left: list[int]) -> int:
    """Chooses a fold with room for a chip that bears labels, and books the chip there."""
    open_folds = [fold for fold, room in enumerate(left) if room > 0]
    fold = max(
        open_folds,
        key=lambda fold: (
            lacking[rarest][fold] if rarest is not None else 0.0,
            left[fold],
        ),
    )
    for label in borne:
        lacking[label][fold] -= 1.0
    left[fold] -= 1
    return fold
