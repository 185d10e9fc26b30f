"""The label set of greatest expected F2, chip by chip, from probabilities: exact, by the general F-measure maximiser.

Of a set of k labels, the expected F2 is the sum over its labels of

    D_c(k) = 5 * sum over s of P(label c is true, and s labels are true in all) / (4 s + k)

so that for each k the k labels of greatest D_c(k) are the best set, and of all k the best is the best of all sets
(Dembczynski, Waegeman, Cheng and Huellermeier, 2011). It holds for any joint distribution of which these P are known.
Known here are two, both made of independent units, of each of which at most one label is true:

    independent         each label is a unit of its own
    by the label rules  an exclusive group is one unit, and exactly one label of a required group is true: its
                        probabilities are divided by their sum. A label that stands alone is true with nothing
                        beside it; the other units are independent given that none such is true, and their labels
                        keep their probabilities over all, as far as there is room for them

How many units are true is Poisson-binomial, by a dynamic programme; without each unit in turn, by undoing that unit's
step, from below where it's rather false and from above where it's rather true, so that errors shrink on their way.

No sum goes through BLAS: a chip is decided alike in any company and under any number of threads. All in float64.

Suffixes: N chips, C labels, U units, J other units that are true, K sizes of the set. Chips come last inside: the inner
loops are long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planet_dist.metrics import BETA_SQUARED, Bools, Floats
from shards.errors import ConfigError
from shards.labels import ExclusiveGroup

_CHUNK_FLOATS = 1 << 16  # of the largest array: it stays in a core's cache


@dataclass(frozen=True)
class Units:
    """Labels as units of which at most one label each is true, and labels outside them.

    Attributes:
        members: columns of each unit; no column is in two.
        required: how many of them, the first ones, have exactly one true label.
        alone: columns of labels beside which no other is true; in no unit.
        groups: columns of each exclusive group with its labels that stand alone, and whether it's required.
        never: columns of labels that the rules don't let be true at all.
    """

    members: tuple[tuple[int, ...], ...]
    required: int = 0
    alone: tuple[int, ...] = ()
    groups: tuple[tuple[tuple[int, ...], bool], ...] = ()
    never: tuple[int, ...] = ()

    @property
    def labels(self) -> int:
        """How many labels there are."""
        return sum(map(len, self.members)) + len(self.alone) + len(self.never)


def units_of(labels: Sequence[str], exclusive: Sequence[ExclusiveGroup] = (), alone: Sequence[str] = ()) -> Units:
    """Labels under label rules, or without rules each label a unit of its own.

    Args:
        labels: C names.
        exclusive: groups of which at most one label is true, or exactly one.
        alone: labels beside which no other is true.

    Raises:
        ConfigError: a rule names an unknown label, two groups share a label, or a required group (or the whole
            vocabulary) has no label but those that stand alone.
    """
    place = {label: column for column, label in enumerate(labels)}
    grouped = [label for group in exclusive for label in group.labels]
    unknown = sorted({*grouped, *alone} - set(labels))
    if unknown:
        raise ConfigError(f"a label rule names {', '.join(unknown)}; the labels are {', '.join(labels)}")
    shared = sorted({label for label in grouped if grouped.count(label) > 1})
    if shared:
        raise ConfigError(
            f"{', '.join(shared)}: in two exclusive groups; expected F2 knows labels in one group at most"
        )
    members: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}
    for group in exclusive:
        others = tuple(place[label] for label in group.labels if label not in alone)
        if group.required and not others:
            raise ConfigError(
                f"{group.name}: required, and each of its labels stands alone: none could stand beside it"
            )
        members[group.required] += [others] if others else []
    members[False] += [(place[label],) for label in labels if label not in grouped and label not in alone]
    if not members[True] and not members[False]:
        raise ConfigError("every label stands alone; expected F2 needs one that may stand beside others")
    # Where a required group lacks a label, that label cannot be true without breaking one rule or the other.
    required = [group for group in exclusive if group.required]
    lawful = [label for label in alone if all(label in group.labels for group in required)]
    return Units(
        (*members[True], *members[False]),
        len(members[True]),
        tuple(place[label] for label in lawful),
        tuple((tuple(place[label] for label in group.labels), group.required) for group in exclusive),
        tuple(place[label] for label in alone if label not in lawful),
    )


def most_expected(probabilities_NC: Floats, joint: Units, sets: Units) -> Bools:
    """The label set of greatest expected F2 of each chip.

    Of sets that are equally good it's a smallest one, and of labels that are, the first. Where no label has a chance,
    the set is empty. A chip's set depends on its own probabilities alone.

    Args:
        probabilities_NC: float64 in [0, 1] (N, C).
        joint: by which labels are true together.
        sets: which sets are looked through: all of them, or those that rules allow.

    Returns:
        bool (N, C).
    """
    chips, labels = probabilities_NC.shape
    assert labels == joint.labels == sets.labels, (labels, joint.labels, sets.labels)
    decided_NC = np.zeros((chips, labels), dtype=bool)
    size = max(_CHUNK_FLOATS // labels**2, 1)
    for start in range(0, chips, size):
        chunk_CN = np.ascontiguousarray(probabilities_NC[start : start + size].T)
        decided_NC[start : start + size] = best_sets(joint_probabilities(chunk_CN, joint), sets).T
    return decided_NC


def joint_probabilities(probabilities_CN: Floats, units: Units) -> Floats:
    """P(label c is true, and j other labels are), float64 (J, C, N), J as many as there are units.

    Args:
        probabilities_CN: float64 in [0, 1] (C, N).
        units: which labels exclude each other.
    """
    given_CN = _by_groups(probabilities_CN, units)
    alone_N = given_CN[list(units.alone)].sum(axis=0)
    # Labels that stand alone may together ask for more than there is.
    given_CN[list(units.alone)] /= np.maximum(alone_N, 1.0)
    rest_N = np.maximum(1.0 - alone_N, 0.0)
    joint_JCN = np.zeros((len(units.members), *probabilities_CN.shape))
    joint_JCN[0, list(units.alone)] = given_CN[list(units.alone)]
    # From here on given that no label stands alone.
    for unit, members in enumerate(units.members):
        total_N = given_CN[list(members)].sum(axis=0)
        whole_N = total_N if unit < units.required else np.maximum(total_N, rest_N)
        given_CN[list(members)] /= np.where(whole_N > 0, whole_N, 1.0)
    unit_UN = np.stack([given_CN[list(members)].sum(axis=0) for members in units.members])
    others_UJN = _true_without_each(np.minimum(unit_UN, 1.0))
    for unit, members in enumerate(units.members):
        joint_JCN[:, list(members)] = rest_N * given_CN[list(members)] * others_UJN[unit][:, None]
    return joint_JCN


def _by_groups(probabilities_CN: Floats, units: Units) -> Floats:
    """Probabilities that sum to 1 over required groups, and to 1 at most over others (C, N)."""
    given_CN = probabilities_CN.copy()
    given_CN[list(units.never)] = 0.0
    for columns, required in units.groups:
        lawful = [column for column in columns if column not in units.never]
        total_N = given_CN[lawful].sum(axis=0)
        if required:
            # Where nothing is said of a group, its labels are equally likely.
            given_CN[lawful] = np.where(total_N > 0, given_CN[lawful], 1.0)
            total_N = given_CN[lawful].sum(axis=0)
        else:
            total_N = np.maximum(total_N, 1.0)
        given_CN[lawful] /= total_N
    return given_CN


def _true_without_each(unit_UN: Floats) -> Floats:
    """P(j of the other units are true), float64 (U, J, N), J from 0 to U - 1."""
    units, chips = unit_UN.shape
    false_UN = 1.0 - unit_UN
    count_JN = np.zeros((units + 1, chips))
    count_JN[0] = 1.0
    for unit in range(units):
        raised_JN = count_JN[: unit + 1] * unit_UN[unit]
        count_JN[: unit + 1] *= false_UN[unit]
        count_JN[1 : unit + 2] += raised_JN
    low_UN = unit_UN <= 0.5
    below_UJN, above_UJN = np.empty((units, units, chips)), np.empty((units, units, chips))
    # Each way its own divisor is a half at least; where it isn't, the other way is taken.
    by_false_UN, by_true_UN = np.where(low_UN, false_UN, 1.0), np.where(low_UN, 1.0, unit_UN)
    below_UJN[:, 0] = count_JN[0] / by_false_UN
    above_UJN[:, -1] = count_JN[-1] / by_true_UN
    for j in range(1, units):
        below_UJN[:, j] = (count_JN[j] - unit_UN * below_UJN[:, j - 1]) / by_false_UN
        above_UJN[:, -1 - j] = (count_JN[-1 - j] - false_UN * above_UJN[:, -j]) / by_true_UN
    return np.maximum(np.where(low_UN[:, None], below_UJN, above_UJN), 0.0)


def best_sets(joint_JCN: Floats, units: Units) -> Bools:
    """The sets of greatest expected F2 among those that have at most one label of a unit, bool (C, N).

    Args:
        joint_JCN: of joint_probabilities.
        units: one label of each required unit and at most one of the others, or one that stands alone.
    """
    gains_KCN = _gains(joint_JCN)
    sizes, _, chips = gains_KCN.shape
    best_KUN = np.stack([gains_KCN[:, list(members)].max(axis=1) for members in units.members], axis=1)
    forced, chosen_from = units.required, len(units.members) - units.required
    sorted_KUN = np.sort(best_KUN[:, forced:], axis=1)[:, ::-1]
    # A set of k labels has one of each required unit, and of the others the k - required best.
    taken_K1 = np.arange(1, sizes + 1)[:, None] - forced
    taken_KU = np.arange(chosen_from) < taken_K1
    value_KN = best_KUN[:, :forced].sum(axis=1) + np.where(taken_KU[:, :, None], sorted_KUN, 0.0).sum(axis=1)
    value_KN[((taken_K1 < 0) | (taken_K1 > chosen_from))[:, 0]] = -np.inf
    place_N = value_KN.argmax(axis=0)
    value_N = value_KN.max(axis=0)

    at_CN = np.take_along_axis(gains_KCN, place_N[None, None], axis=0)[0]
    of_UN = np.take_along_axis(best_KUN, place_N[None, None], axis=0)[0]
    order_UN = np.argsort(-of_UN[forced:], axis=0, kind="stable")
    rank_UN = np.argsort(order_UN, axis=0, kind="stable")
    # An empty set is worth 0 (metrics.f2_of_counts), and nothing is added for nothing.
    wanted_UN = np.concatenate([np.ones((forced, chips), bool), (rank_UN < place_N + 1 - forced) & (value_N > 0)])
    decided_CN = np.zeros(at_CN.shape, dtype=bool)
    for members, wanted_N in zip(units.members, wanted_UN, strict=True):
        decided_CN[np.array(members)[at_CN[list(members)].argmax(axis=0)], np.arange(chips)] = wanted_N
    for column in units.alone:
        better_N = gains_KCN[0, column] > value_N
        value_N = np.where(better_N, gains_KCN[0, column], value_N)
        decided_CN[:, better_N] = False
        decided_CN[column, better_N] = True
    return decided_CN


def _gains(joint_JCN: Floats) -> Floats:
    """D_c(k), float64 (K, C, N), k from 1 to C."""
    others, labels, _ = joint_JCN.shape
    total_J = np.arange(1, others + 1)
    weights_JK = (1.0 + BETA_SQUARED) / (BETA_SQUARED * total_J[:, None] + np.arange(1, labels + 1))
    gains_KCN: Floats = weights_JK[0][:, None, None] * joint_JCN[0]
    for weights_K, joint_CN in zip(weights_JK[1:], joint_JCN[1:], strict=True):
        gains_KCN += weights_K[:, None, None] * joint_CN
    return gains_KCN
