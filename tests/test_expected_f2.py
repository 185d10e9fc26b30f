"""planet_dist.expected_f2: against the expected F2 of all label sets, summed over all truths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planet_dist.expected_f2 import Units, joint_probabilities, most_expected, units_of
from planet_dist.metrics import Bools, Floats, f2_of_counts
from shards.errors import ConfigError
from shards.labels import PLANET, ExclusiveGroup, Vocabulary

EIGHT = tuple("abcdefgh")
RULED = Vocabulary(
    ("road", "clear", "mine", "haze", "cloudy", "day", "night", "water"),
    (ExclusiveGroup("weather", ("clear", "haze", "cloudy"), required=True), ExclusiveGroup("light", ("day", "night"))),
    alone=("cloudy",),
)
LONELY = Vocabulary(
    EIGHT, (ExclusiveGroup("first", ("a", "b")), ExclusiveGroup("second", ("c", "d", "e"))), alone=("b", "f", "g")
)
SETS_SC: Bools = np.array(list(itertools.product([False, True], repeat=8)))
# F2 of each set (rows) where each set is true (columns)
F2_SS: Floats = f2_of_counts(SETS_SC.astype(int) @ SETS_SC.T.astype(int), SETS_SC.sum(1), SETS_SC.sum(1)[:, None])

ANY = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 0.25, 1e-300, 1e-9, 1 - 1e-9]), st.floats(0, 1))
CHIPS = arrays(np.float64, (3, 8), elements=ANY)


def ruled(vocabulary: Vocabulary) -> Units:
    return units_of(vocabulary.labels, vocabulary.exclusive, vocabulary.alone)


def independent_truths(p_C: Floats) -> Floats:
    """The probability of each set of SETS_SC."""
    return np.where(SETS_SC, p_C, 1 - p_C).prod(axis=1)


def ruled_truths(p_C: Floats, vocabulary: Vocabulary) -> Floats:
    """The probability of each set by the label rules, told label by label as the module's docstring does."""
    q = dict(zip(vocabulary.labels, p_C.tolist(), strict=True))
    in_group = {label: group for group in vocabulary.exclusive for label in group.labels}
    for group in vocabulary.exclusive:
        total = sum(q[label] for label in group.labels)
        if group.required and total == 0:
            q |= dict.fromkeys(group.labels, 1.0)
            total = float(len(group.labels))
        for label in group.labels:
            q[label] /= total if group.required else max(total, 1.0)
    whole = max(sum(q[label] for label in vocabulary.alone), 1.0)
    q |= {label: q[label] / whole for label in vocabulary.alone}
    rest = max(1.0 - sum(q[label] for label in vocabulary.alone), 0.0)
    beside = [label for label in vocabulary.labels if label not in vocabulary.alone]
    blocks = [[label for label in group.labels if label in beside] for group in vocabulary.exclusive]
    required = [group.required for group in vocabulary.exclusive] + [False] * len(beside)
    blocks += [[label] for label in beside if label not in in_group]
    chances = []
    for block in blocks:
        total = sum(q[label] for label in block)
        whole = total if required[len(chances)] else max(total, rest)
        chances.append({label: q[label] / whole if whole else 0.0 for label in block})
    found = np.zeros(len(SETS_SC))
    for place, bits_C in enumerate(SETS_SC):
        names = {label for label, bit in zip(vocabulary.labels, bits_C, strict=True) if bit}
        if len(names) == 1 and names <= set(vocabulary.alone):
            found[place] = q[names.pop()]
        elif not names & set(vocabulary.alone):
            chance = rest
            for block in chances:
                here = [block[label] for label in block if label in names]
                chance *= here[0] if len(here) == 1 else max(1.0 - sum(block.values()), 0.0) if not here else 0.0
            found[place] = chance
    return found


def lawful_sets(vocabulary: Vocabulary) -> Bools:
    names = ([label for label, bit in zip(vocabulary.labels, bits_C, strict=True) if bit] for bits_C in SETS_SC)
    return np.array([not vocabulary.breaches(vocabulary.mask(labels)) for labels in names])


def assert_best(decided_C: Bools, truths_S: Floats, allowed_S: Bools) -> None:
    expected_S = F2_SS @ truths_S
    place = int(np.flatnonzero((decided_C == SETS_SC).all(axis=1))[0])
    assert allowed_S[place]
    assert expected_S[place] == pytest.approx(expected_S[allowed_S].max(), abs=1e-12)


@given(CHIPS)
@settings(deadline=None)
def test_the_best_of_all_sets_is_found_where_labels_are_independent(p_NC: Floats) -> None:
    free = units_of(EIGHT)
    for p_C, decided_C in zip(p_NC, most_expected(p_NC, free, free), strict=True):
        assert_best(decided_C, independent_truths(p_C), np.ones(len(SETS_SC), bool))


@given(CHIPS, st.sampled_from([RULED, LONELY]))
@settings(deadline=None)
def test_the_best_of_all_sets_is_found_where_truth_obeys_the_label_rules(p_NC: Floats, words: Vocabulary) -> None:
    for p_C, decided_C in zip(p_NC, most_expected(p_NC, ruled(words), units_of(words.labels)), strict=True):
        truths_S = ruled_truths(p_C, words)
        assert truths_S.sum() == pytest.approx(1.0)
        assert_best(decided_C, truths_S, np.ones(len(SETS_SC), bool))


@given(CHIPS, st.sampled_from([RULED, LONELY]))
@settings(deadline=None)
def test_the_best_of_lawful_sets_is_found_under_either_truth(p_NC: Floats, words: Vocabulary) -> None:
    lawful_S, free, sets = lawful_sets(words), units_of(words.labels), ruled(words)
    both = zip(p_NC, most_expected(p_NC, free, sets), most_expected(p_NC, sets, sets), strict=True)
    for p_C, of_independent_C, of_ruled_C in both:
        assert_best(of_independent_C, independent_truths(p_C), lawful_S)
        assert_best(of_ruled_C, ruled_truths(p_C, words), lawful_S)


def test_labels_that_are_certain_are_decided_and_no_others() -> None:
    true_NC = SETS_SC
    decided_NC = most_expected(true_NC.astype(np.float64), units_of(EIGHT), units_of(EIGHT))
    assert np.array_equal(decided_NC, true_NC)


def test_a_label_is_decided_by_its_company_too() -> None:
    # 0.2 is worth it where no label is likelier than 0.3, and not beside a sure one
    p_NC = np.array([[0.2, 0.3, 0.0], [0.2, 1.0, 0.0]])
    decided_NC = most_expected(p_NC, units_of("abc"), units_of("abc"))
    assert decided_NC.tolist() == [[True, True, False], [False, True, False]]


@pytest.mark.parametrize("by", [(), PLANET.exclusive])
def test_a_chip_is_decided_alike_in_any_company(by: tuple[ExclusiveGroup, ...]) -> None:
    rng = np.random.default_rng(0)
    p_NC = rng.integers(0, 11, (3000, 17)) / 10
    units, free = units_of(PLANET.labels, by), units_of(PLANET.labels)
    decided_NC = most_expected(p_NC, units, free)
    order_N = rng.permutation(3000)
    assert np.array_equal(most_expected(p_NC[order_N], units, free), decided_NC[order_N])
    assert np.array_equal(most_expected(p_NC[7:8], units, free), decided_NC[7:8])
    assert len(most_expected(p_NC[:0], units, free)) == 0


def test_counts_without_a_label_stay_exact_for_many_labels_near_a_half() -> None:
    rng = np.random.default_rng(1)
    p_CN = np.concatenate([rng.uniform(0.45, 0.55, (30, 4)), rng.random((30, 4)), rng.choice([0.0, 1.0], (4, 4))])
    joint_JCN = joint_probabilities(p_CN, units_of([str(c) for c in range(64)]))
    for c in (0, 17, 40, 63):
        others = np.delete(p_CN, c, axis=0)
        for n in range(4):
            counts = np.ones(1)
            for p in others[:, n]:
                counts = np.convolve(counts, [1 - p, p])
            np.testing.assert_allclose(joint_JCN[:, c, n], p_CN[c, n] * counts, atol=1e-13)


def test_a_label_that_no_lawful_set_has_is_never_decided() -> None:
    # sea stands alone, and the weather that every chip has is not among its company
    groups = (ExclusiveGroup("weather", ("clear", "haze"), required=True),)
    units = units_of(("clear", "haze", "sea"), groups, ("sea",))
    assert most_expected(np.array([[0.1, 0.2, 0.9]]), units, units).tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("groups", "alone", "message"),
    [
        ((ExclusiveGroup("one", ("a", "b")), ExclusiveGroup("two", ("b", "c"))), (), "b: in two exclusive groups"),
        ((ExclusiveGroup("one", ("a", "b"), required=True),), ("a", "b"), "one: required, and each of its labels"),
        ((), ("a", "b", "c"), "every label stands alone"),
        ((ExclusiveGroup("one", ("a", "lava")),), (), "names lava; the labels are a, b, c"),
    ],
)
def test_rules_that_it_cannot_follow_are_an_error(
    groups: tuple[ExclusiveGroup, ...], alone: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        units_of(("a", "b", "c"), groups, alone)
