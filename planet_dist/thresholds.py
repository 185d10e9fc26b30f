"""Probabilities to decisions: one threshold a label, and the ways to fit them.

A label is decided where its probability is strictly greater than its threshold ("exceeds", as in the second
paper's section 3.1), compared in float64. Thresholds lie in [0, 1], so 1 never decides, and a probability of
exactly 0 is never decided. Samples with equal probabilities are always decided alike.

The rules, simplest first (RULES):

    constant          the same labels for every sample, the best such set that adding labels one by one finds:
                      what a model must beat that has looked at nothing
    flat-0.5          0.5 for every label
    flat-0.2          0.2 for every label, the first paper's uniform threshold (section 4.5)
    best-single       one threshold for all labels, the best of all that tell the samples apart
    grid-independent  per label the best of 100 steps by the label's own F2 (the first paper's section 4.5)
    grid-joint        per label the best of 100 steps by the sample-averaged F2, label after label until none
                      gains (the second paper's section 5.3)
    exact             as grid-joint, but the best of all cuts

Exactness: with the other labels' decisions held, deciding one label changes a sample's F2 by a known gain, so
that the sum of gains above a cut scores it (planet_dist/cuts.py scores all at once).

Suffixes: N samples, C labels, S steps of the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planet_dist.cuts import GRID_S, LEAST_GAIN, Cuts, EveryCut, GridCuts, middle_of_best
from planet_dist.metrics import Array, Bools, Floats, check_probabilities, f2_of_counts
from shards.errors import RunError

FORMAT = "planet-dist-thresholds"
VERSION = 1


@dataclass(frozen=True)
class Thresholds:
    """A fitted rule: thresholds with the labels that they belong to.

    Attributes:
        rule: the name of the rule that gave them.
        labels: C names.
        values: C thresholds in [0, 1].

    Raises:
        RunError: the numbers of labels and values differ, or a value is not in [0, 1].
    """

    rule: str
    labels: tuple[str, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.values) or not self.labels:
            raise RunError(f"{len(self.values)} thresholds for {len(self.labels)} labels; each label needs one")
        for label, value in zip(self.labels, self.values, strict=True):
            if not 0.0 <= value <= 1.0:
                raise RunError(f"the threshold of {label} is {value}; it must be in [0, 1]")

    def decide(self, probabilities_NC: Array) -> Bools:
        """Decisions for probabilities of any real dtype (N, C), labels in this rule's order.

        Returns:
            bool (N, C).

        Raises:
            RunError: another number of labels, or a probability that is NaN or outside [0, 1].
        """
        checked_NC = check_probabilities(probabilities_NC)
        check_labels(checked_NC, self.labels)
        return decide(checked_NC, np.array(self.values))

    def to_json(self) -> dict[str, Any]:
        """The content of thresholds.json."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "rule": self.rule,
            "decides": "probability > threshold",
            "labels": list(self.labels),
            "thresholds": list(self.values),
        }

    @staticmethod
    def from_json(table: object, where: str) -> Thresholds:
        """The rule in a parsed thresholds.json; `where` names it in errors.

        Raises:
            RunError: not such a file, of another version, or inconsistent in itself.
        """
        if not isinstance(table, dict) or table.get("format") != FORMAT:
            raise RunError(f"{where}: not a thresholds file (its format is not {FORMAT!r})")
        if table.get("version") != VERSION:
            raise RunError(
                f"{where}: version {table.get('version')!r}; this program reads version {VERSION}; fit the "
                "rule again with planet-dist thresholds, or use the release that wrote it"
            )
        rule: Any = table.get("rule")
        labels: Any = table.get("labels")
        values: Any = table.get("thresholds")
        if not isinstance(rule, str) or not _is_list_of(labels, str) or not _is_list_of(values, int | float):
            raise RunError(f"{where}: needs a rule, a list of labels and a list of thresholds; fit it again")
        try:
            return Thresholds(rule, tuple(labels), tuple(float(value) for value in values))
        except RunError as error:
            raise RunError(f"{where}: {error}") from error


def _is_list_of(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)


def check_labels(probabilities_NC: Floats, labels: Sequence[str]) -> None:
    """Makes sure that probabilities (N, C) are of as many labels as a rule.

    Raises:
        RunError: they are not.
    """
    if probabilities_NC.shape[1] != len(labels):
        raise RunError(
            f"probabilities of {probabilities_NC.shape[1]} labels for a rule of {len(labels)}; "
            "use the rule that was fitted for this model"
        )


def decide(probabilities_NC: Array, values_C: Array) -> Bools:
    """The decisions of thresholds.

    Args:
        probabilities_NC: any real dtype (N, C).
        values_C: float64 (C,).

    Returns:
        bool (N, C): probability > threshold.
    """
    decided: Bools = np.asarray(probabilities_NC, dtype=np.float64) > np.asarray(values_C, dtype=np.float64)
    return decided


@dataclass(frozen=True)
class Rule:
    """A way to get thresholds.

    Attributes:
        name: what reports call it.
        fitted: how many values it takes from the data (0, 1, or one a label), given the number of labels.
        fit: probabilities float64 (N, C) and truth bool (N, C), both checked, to thresholds float64 (C,).
    """

    name: str
    fitted: Callable[[int], int]
    fit: Callable[[Floats, Bools], Floats]

    def decision(self, probabilities_NC: Floats, true_NC: Bools, labels: Sequence[str]) -> Thresholds:
        """Thresholds for C labels, fitted to all the rows given."""
        return Thresholds(self.name, tuple(labels), tuple(self.fit(probabilities_NC, true_NC).tolist()))

    def values_taken(self, decision: Thresholds) -> int:
        """How many values a decision of it took from the data."""
        return self.fitted(len(decision.labels))


def fit_constant(_: Floats, true_NC: Bools) -> Floats:
    """0 for the labels of the best constant answer, 1 for all others, (C,)."""
    samples, labels = true_NC.shape
    chosen, best, hits_N = np.zeros(labels, dtype=bool), 0.0, np.zeros(samples, dtype=np.int64)
    total_N = np.count_nonzero(true_NC, axis=1)
    while not chosen.all():
        decided = np.count_nonzero(chosen) + 1
        scores_C = [
            -1.0 if chosen[c] else float(np.mean(f2_of_counts(hits_N + true_NC[:, c], total_N, decided)))
            for c in range(labels)
        ]
        label = int(np.argmax(scores_C))
        if scores_C[label] <= best:
            break
        chosen[label], best = True, scores_C[label]
        hits_N = hits_N + true_NC[:, label]
    return np.where(chosen, 0.0, 1.0)


def fit_single(probabilities_NC: Floats, true_NC: Bools, cuts: Callable[[Floats], Cuts] = EveryCut) -> Floats:
    """The one threshold with the greatest sample-averaged F2 over all cuts, once for each label (C,)."""
    labels = probabilities_NC.shape[1]
    # lowering the threshold decides a sample's labels in this order, each adding what F2 changes by
    order_NC = np.argsort(-probabilities_NC, axis=1)
    hits_NC = np.cumsum(np.take_along_axis(true_NC, order_NC, axis=1), axis=1)
    scores_NC = f2_of_counts(hits_NC, hits_NC[:, -1:], np.arange(1, labels + 1))
    gains_NC = np.empty_like(scores_NC)
    np.put_along_axis(gains_NC, order_NC, np.diff(scores_NC, axis=1, prepend=0.0), axis=1)
    _, threshold = cuts(probabilities_NC.ravel()).best(gains_NC.ravel())
    return np.full(labels, threshold)


def fit_independent_grid(probabilities_NC: Floats, true_NC: Bools) -> Floats:
    """Per label the step of GRID_S with the greatest F2 of that label alone, (C,).

    A label that no sample bears gets the middle of the grid: every step is as good.
    """
    values = []
    for probabilities_N, true_N in zip(probabilities_NC.T, true_NC.T, strict=True):
        cuts = GridCuts(np.ascontiguousarray(probabilities_N))
        hits_S, decided_S = cuts.above(true_N.astype(np.float64)), cuts.above(np.ones(len(true_N)))
        scores_S = f2_of_counts(hits_S, np.count_nonzero(true_N), decided_S)
        values.append(GRID_S[middle_of_best(scores_S)])
    return np.array(values)


def fit_joint_grid(probabilities_NC: Floats, true_NC: Bools) -> Floats:
    """Per label a step of GRID_S by the sample-averaged F2, label after label until none gains, (C,)."""
    return _ascend(probabilities_NC, true_NC, GridCuts)


def fit_exact(probabilities_NC: Floats, true_NC: Bools) -> Floats:
    """Per label the best of all cuts by the sample-averaged F2, label after label until none gains, (C,).

    It ends where no label's threshold alone can be bettered; it starts from the best single threshold, so
    that it's never worse than that. O(N log N) a label once, then O(N) a label and pass.
    """
    return _ascend(probabilities_NC, true_NC, EveryCut)


def _gain_table(labels: int) -> Floats:
    """What deciding one label more adds to a sample's F2: [true, true labels, hits, decided], raveled.

    Of the counts, hits and decided are those without the label; the last plane of each is never looked up.
    """
    size = labels + 1
    total, hits, decided = np.indices((size, size, size))
    before = f2_of_counts(hits, total, decided)
    return np.stack(
        [
            f2_of_counts(hits, total, decided + 1) - before,
            f2_of_counts(hits + 1, total, decided + 1) - before,
        ]
    ).ravel()


def _ascend(probabilities_NC: Floats, true_NC: Bools, kind: Callable[[Floats], Cuts]) -> Floats:
    """Coordinate ascent on the sample-averaged F2 from the best single threshold, over cuts of a kind."""
    labels = probabilities_NC.shape[1]
    size = labels + 1
    table = _gain_table(labels)
    values_C = fit_single(probabilities_NC, true_NC, kind)
    decided_CN = np.ascontiguousarray(decide(probabilities_NC, values_C).T)
    true_CN = np.ascontiguousarray(true_NC.T)
    # one number for a sample's counts: deciding a label adds 1 (decided), and `size` more where it's true
    steps_CN = (1 + size * true_CN).astype(np.intp)
    planes_CN = (size**3 * true_CN).astype(np.intp)
    state_N = true_CN.sum(axis=0, dtype=np.intp) * size**2 + (steps_CN * decided_CN).sum(axis=0)
    cuts = [kind(np.ascontiguousarray(probabilities_N)) for probabilities_N in probabilities_NC.T]
    settled, label = 0, 0
    while settled < labels:
        without_N = state_N - steps_CN[label] * decided_CN[label]
        gains_N = table[without_N + planes_CN[label]]
        best, threshold = cuts[label].best(gains_N)
        settled += 1
        # a plain sum: BLAS would start threads for a dot product, and stall where other processes have the cores
        if best > float(gains_N[decided_CN[label]].sum()) + LEAST_GAIN:
            values_C[label] = threshold
            decided_CN[label] = probabilities_NC[:, label] > threshold
            state_N = without_N + steps_CN[label] * decided_CN[label]
            settled = 1  # the other labels' gains have changed; this one's cut is the best for them
        label = (label + 1) % labels
    return values_C


def _flat(value: float) -> Rule:
    return Rule(
        f"flat-{value}",
        lambda labels: 0,
        lambda probabilities_NC, _: np.full(probabilities_NC.shape[1], value),
    )


BEST_SINGLE = Rule("best-single", lambda labels: 1, fit_single)

RULES = (
    Rule("constant", lambda labels: labels, fit_constant),
    _flat(0.5),
    _flat(0.2),
    BEST_SINGLE,
    Rule("grid-independent", lambda labels: labels, fit_independent_grid),
    Rule("grid-joint", lambda labels: labels, fit_joint_grid),
    Rule("exact", lambda labels: labels, fit_exact),
)
