"""planet_dist.split."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from planet_dist.split import grouped_folds, parse_split, split, stratified_folds
from shards.errors import ConfigError


def dataset(count, labels=5, seed=0):
    rng = np.random.default_rng(seed)
    keys = [f"train_{i}" for i in range(count)]
    labels_NC = (rng.random((count, labels)) < np.geomspace(0.005, 0.9, labels)).astype(np.uint8)
    return keys, labels_NC


def test_tail_takes_the_top_numbered_chips_whatever_their_order():
    keys = ["train_10", "train_2", "train_100", "train_1", "train_20"]
    parts = split("tail:2", keys, np.ones((5, 1), np.uint8), seed=0)
    assert parts.val_ids.tolist() == [2, 4]
    assert parts.train_ids.tolist() == [0, 1, 3]
    assert parts.train_ids.dtype == parts.val_ids.dtype == np.int64


def test_random_split_of_the_competition_has_the_papers_sizes():
    keys, labels_NC = dataset(40_479, labels=1)
    parts = split("random:0.3", keys, labels_NC, seed=0)
    assert (len(parts.train_ids), len(parts.val_ids)) == (28_335, 12_144)


@given(st.integers(3, 400), st.sampled_from(["0.1", "0.25", "0.3", "0.07", ".5", "0.9"]))
@settings(deadline=None)
def test_random_split_has_the_sizes_of_scikit_learn(count, fraction):
    keys, labels_NC = dataset(count, labels=1)
    try:
        _, expected = train_test_split(np.arange(count), test_size=float(fraction), random_state=0)
    except ValueError:
        with pytest.raises(ConfigError, match="each part needs one"):
            split(f"random:{fraction}", keys, labels_NC, seed=0)
        return
    assert len(split(f"random:{fraction}", keys, labels_NC, seed=0).val_ids) == len(expected)


@pytest.mark.parametrize("expression", ["tail:30", "random:0.3", "kfold:5/2"])
def test_each_labelled_chip_is_in_exactly_one_part(expression):
    keys, labels_NC = dataset(101)
    labelled_N = np.random.default_rng(1).random(101) < 0.8
    parts = split(expression, keys, labels_NC, seed=0, labelled_N=labelled_N)
    both = np.concatenate([parts.train_ids, parts.val_ids])
    assert sorted(both.tolist()) == np.flatnonzero(labelled_N).tolist()
    for ids in (parts.train_ids, parts.val_ids):
        assert (np.diff(ids) > 0).all()


@pytest.mark.parametrize("expression", ["tail:30", "random:0.3", "kfold:5/2"])
def test_a_split_does_not_depend_on_the_order_of_the_chips(expression):
    keys, labels_NC = dataset(120)
    shuffled_N = np.random.default_rng(2).permutation(120)
    first = split(expression, keys, labels_NC, seed=3)
    second = split(expression, [keys[i] for i in shuffled_N], labels_NC[shuffled_N], seed=3)
    assert {keys[i] for i in first.val_ids} == {keys[shuffled_N[i]] for i in second.val_ids}


@pytest.mark.parametrize("expression", ["random:0.3", "kfold:5/2"])
def test_the_seed_alone_decides_a_drawn_split(expression):
    keys, labels_NC = dataset(200)
    first = split(expression, keys, labels_NC, seed=0).val_ids.tolist()
    assert first == split(expression, keys, labels_NC, seed=0).val_ids.tolist()
    assert first != split(expression, keys, labels_NC, seed=1).val_ids.tolist()


def test_the_folds_of_one_seed_cover_all_chips_without_overlap():
    keys, labels_NC = dataset(203)
    parts = [split(f"kfold:4/{fold}", keys, labels_NC, seed=0).val_ids for fold in range(4)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(203))


@given(st.integers(0, 2**32), st.integers(2, 120), st.integers(2, 9), st.integers(1, 20))
@settings(deadline=None)
def test_folds_have_equal_sizes_whatever_the_labels(seed, count, folds, labels):
    labels_MC = (np.random.default_rng(seed).random((count, labels)) < 0.3).astype(np.uint8)
    fold_M = stratified_folds(labels_MC, folds, seed=0)
    sizes = np.bincount(fold_M, minlength=folds)
    assert len(sizes) == folds
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= 1


def test_every_fold_has_its_share_of_every_label():
    # weather that excludes itself, ground labels from one in 400 to nine in ten: many sets seen once
    rng = np.random.default_rng(0)
    weather = np.eye(4, dtype=np.uint8)[rng.choice(4, size=4000, p=[0.7, 0.18, 0.07, 0.05])]
    ground = (rng.random((4000, 12)) < np.geomspace(1 / 400, 0.9, 12)).astype(np.uint8)
    labels_MC = np.concatenate([weather, ground], axis=1)
    fold_M = stratified_folds(labels_MC, 5, seed=0)
    counts_KC = np.stack([labels_MC[fold_M == fold].sum(axis=0, dtype=int) for fold in range(5)])
    spread_C = counts_KC.max(axis=0) - counts_KC.min(axis=0)
    assert spread_C.max() <= 4
    assert spread_C.mean() <= 1
    drawn_M = np.random.default_rng(1).permutation(4000) % 5
    drawn_KC = np.stack([labels_MC[drawn_M == fold].sum(axis=0, dtype=int) for fold in range(5)])
    assert spread_C.sum() * 5 < (drawn_KC.max(axis=0) - drawn_KC.min(axis=0)).sum()


def test_a_label_as_rare_as_the_folds_are_many_is_in_each():
    labels_MC = np.zeros((100, 2), np.uint8)
    labels_MC[:50, 0] = 1
    labels_MC[[3, 17, 60, 61, 99], 1] = 1
    fold_M = stratified_folds(labels_MC, 5, seed=0)
    assert sorted(fold_M[[3, 17, 60, 61, 99]].tolist()) == [0, 1, 2, 3, 4]


def rare_and_common(count, seed=0):
    """Weather that excludes itself, ground labels from one in 400 to nine in ten: many label sets seen once."""
    rng = np.random.default_rng(seed)
    weather = np.eye(4, dtype=np.uint8)[rng.choice(4, size=count, p=[0.7, 0.18, 0.07, 0.05])]
    return np.concatenate(
        [weather, (rng.random((count, 12)) < np.geomspace(1 / 400, 0.9, 12)).astype(np.uint8)], axis=1
    )


def made_groups(count, share, largest, seed=0):
    """Group numbers in no order: a share of the chips stands in groups of 2 to `largest`."""
    rng = np.random.default_rng(seed)
    sizes = []
    while sum(sizes) < share * count:
        sizes.append(int(rng.integers(2, largest + 1)))
    numbers = np.repeat(np.arange(len(sizes)), sizes)[:count]
    numbers = np.concatenate([numbers, np.arange(len(numbers), count) + count])
    return rng.permutation(3 * count)[numbers[rng.permutation(count)]].astype(np.int64)


@given(st.integers(0, 2**32), st.integers(2, 120), st.integers(2, 9), st.integers(0, 12), st.integers(2, 12))
@settings(deadline=None)
def test_groups_stay_whole_and_sizes_are_as_equal_as_they_allow(seed, count, folds, labels, largest):
    rng = np.random.default_rng(seed)
    labels_MC = (rng.random((count, labels)) < 0.3).astype(np.uint8)
    groups_M = made_groups(count, rng.random(), largest, seed)
    fold_M = grouped_folds(labels_MC, groups_M, folds, seed=0)
    assert all(len(set(fold_M[groups_M == group])) == 1 for group in set(groups_M.tolist()))
    sizes = np.bincount(fold_M, minlength=folds)
    assert len(sizes) == folds and sizes.sum() == count
    members = np.unique(groups_M, return_counts=True)[1]
    assert sizes.max() - sizes.min() <= members.max() + 1
    if np.count_nonzero(members == 1) >= folds * members.max():
        assert sizes.max() - sizes.min() <= 1


def test_grouped_folds_of_small_cases_are_among_the_most_even_of_all_dealings():
    better = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, 4, 8)
        groups_M = np.repeat(np.arange(8), sizes)
        labels_MC = (rng.random((len(groups_M), 3)) < (0.15, 0.4, 0.8)).astype(np.uint8)
        counts_UC = np.stack([labels_MC[groups_M == group].sum(axis=0, dtype=int) for group in range(8)])
        dealt = grouped_folds(labels_MC, groups_M, 2, seed=0)
        first_U = np.array([dealt[groups_M == group][0] for group in range(8)])
        side_AU = np.array(list(product((-1, 1), repeat=8)))
        sizes_A, labels_A = np.abs(side_AU @ sizes), np.abs(side_AU @ counts_UC).sum(axis=1)
        side_U = 2 * first_U - 1
        size, label = abs(side_U @ sizes), np.abs(side_U @ counts_UC).sum()
        better.append((labels_A[sizes_A <= size] < label).mean())
    # by chance half of them would be
    assert np.mean(better) < 0.2, "of all dealings with sizes as even, one in five at most deals labels more evenly"


def test_every_fold_has_its_share_of_every_label_with_groups_too():
    labels_MC = rare_and_common(4000)
    groups_M = made_groups(4000, 0.4, 7)
    fold_M = grouped_folds(labels_MC, groups_M, 5, seed=0)

    def spread(folds_M):
        counts_KC = np.stack([labels_MC[folds_M == fold].sum(axis=0, dtype=int) for fold in range(5)])
        return counts_KC.max(axis=0) - counts_KC.min(axis=0)

    assert spread(fold_M).max() <= 8
    assert spread(fold_M).mean() <= 2
    group_of_M = np.unique(groups_M, return_inverse=True)[1]
    drawn_M = (np.random.default_rng(1).permutation(group_of_M.max() + 1) % 5)[group_of_M]
    assert spread(fold_M).sum() * 5 < spread(drawn_M).sum()


def test_without_relatives_every_chip_is_dealt_as_by_plain_folds():
    labels_MC = rare_and_common(500)
    alone_M = np.random.default_rng(0).permutation(500).astype(np.int64)
    sizes = np.bincount(grouped_folds(labels_MC, alone_M, 5, seed=0), minlength=5)
    assert sizes.tolist() == [100] * 5
    together = np.full(6, 3, dtype=np.int64)
    assert len(set(grouped_folds(labels_MC[:6], together, 5, seed=0).tolist())) == 1


def test_grouped_folds_cover_all_chips_once_and_do_not_depend_on_their_order_or_the_groups_numbers():
    keys, labels_NC = dataset(203)
    groups_N = made_groups(203, 0.4, 6)
    labelled_N = np.random.default_rng(1).random(203) < 0.9
    parts = [split(f"kfold-grouped:4/{k}", keys, labels_NC, 0, labelled_N, groups_N).val_ids for k in range(4)]
    assert sorted(np.concatenate(parts).tolist()) == np.flatnonzero(labelled_N).tolist()
    shuffled_N = np.random.default_rng(2).permutation(203)
    others = [keys[i] for i in shuffled_N]
    renamed_N = (1000 - groups_N)[shuffled_N]
    second = split("kfold-grouped:4/1", others, labels_NC[shuffled_N], 0, labelled_N[shuffled_N], renamed_N)
    assert {others[i] for i in second.val_ids} == {keys[i] for i in parts[1]}
    assert split("kfold-grouped:4/1", keys, labels_NC, 1, labelled_N, groups_N).val_ids.tolist() != parts[1].tolist()


def test_one_group_of_all_chips_leaves_an_empty_part_which_is_an_error():
    keys, labels_NC = dataset(12)
    with pytest.raises(ConfigError, match="of 12 labelled chips leaves"):
        split("kfold-grouped:3/1", keys, labels_NC, 0, groups_N=np.zeros(12, np.int64))


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "tail",
        "tail:",
        "tail:0",
        "tail:-5",
        "tail:1.5",
        "tail:" + "9" * 5000,
        "random:0",
        "random:0.0",
        "random:1.0",
        "random:nan",
        "random:30%",
        "kfold:5",
        "kfold:5/5",
        "kfold:1/0",
        "kfold-grouped:5",
        "kfold-grouped:3/3",
        "grouped:3/1",
        "kfold:5/-1",
        "kfold:/",
        "head:5",
        "tail:٣",
    ],
)
def test_a_malformed_expression_is_an_error_that_lists_the_forms(expression):
    with pytest.raises(ConfigError, match=r"tail:COUNT .*random:FRACTION .*kfold:K/I .*kfold-grouped:K/I"):
        parse_split(expression)


@pytest.mark.parametrize("expression", ["tail:10", "tail:11", "random:0.95", "kfold:20/19"])
def test_an_empty_part_is_an_error(expression):
    keys, labels_NC = dataset(12)
    labelled_N = np.arange(12) < 10
    with pytest.raises(ConfigError, match="of 10 labelled chips leaves"):
        split(expression, keys, labels_NC, seed=0, labelled_N=labelled_N)


def test_a_dataset_without_labelled_chips_is_an_error():
    keys, labels_NC = dataset(5)
    for expression in ("tail:1", "random:0.5", "kfold:2/0"):
        with pytest.raises(ConfigError, match="of 0 labelled chips"):
            split(expression, keys, labels_NC, seed=0, labelled_N=np.zeros(5, bool))


def test_a_negative_seed_is_an_error():
    keys, labels_NC = dataset(5)
    with pytest.raises(ConfigError, match="seed -3 is negative"):
        split("random:0.5", keys, labels_NC, seed=-3)
