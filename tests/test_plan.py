"""An epoch gives every sample once, in an order that knows nothing of ranks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planet_dist.plan import Plan, evaluation_batches
from shards.errors import ConfigError


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans over a subset of a dataset of several shards, some empty, in lanes, with small windows."""
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6))
    starts = np.cumsum([0, *sizes])
    population = max(int(starts[-1]), 1)
    starts[-1] = population
    chosen = draw(st.sets(st.integers(0, population - 1), min_size=1))
    batch_size = draw(st.integers(1, 30))
    lanes = draw(st.integers(1, min(batch_size, len(chosen), 5)))
    window = draw(st.sampled_from([2, 3, 16, 1000]))
    ids = np.array(sorted(chosen), np.int64)
    return Plan(ids, starts, batch_size, seed=draw(st.integers(0, 3)), lanes=lanes, window=window)


@settings(max_examples=150, deadline=None)
@given(plans(), st.integers(0, 3))
def test_an_epoch_gives_every_sample_exactly_once_in_batches_that_differ_by_one_sample(plan: Plan, epoch: int) -> None:
    batches = [plan.batch(epoch, step) for step in range(plan.steps_per_epoch)]
    assert np.array_equal(np.sort(np.concatenate(batches)), plan.ids)
    lengths = [len(batch) for batch in batches]
    assert lengths == [plan.batch_length(step) for step in range(plan.steps_per_epoch)]
    assert max(lengths) <= plan.batch_size
    assert max(lengths) - min(lengths) <= 1


@settings(max_examples=150, deadline=None)
@given(plans(), st.integers(1, 9))
def test_the_ranks_parts_make_the_global_batch_in_order_at_any_number_of_ranks(plan: Plan, num_ranks: int) -> None:
    for step in range(plan.steps_per_epoch):
        parts = [plan.rank_batch(1, step, rank, num_ranks) for rank in range(num_ranks)]
        assert np.array_equal(np.concatenate(parts), plan.batch(1, step))
        assert max(len(part) for part in parts) <= plan.largest_rank_batch(num_ranks)


def whole(**changes: int) -> Plan:
    """A plan over 10,000 samples in 20 shards."""
    settings_of_plan = {"seed": 0, "lanes": 1, "window": 65536} | changes
    return Plan(np.arange(10_000), np.arange(0, 10_001, 500), 100, **settings_of_plan)


def order(plan: Plan, epoch: int) -> np.ndarray:
    return np.concatenate([plan.batch(epoch, step) for step in range(plan.steps_per_epoch)])


def test_a_step_asked_for_alone_is_the_same_as_one_reached_through_all_before_it() -> None:
    passed = whole(lanes=3, window=700)
    for epoch in (0, 1):
        for step in range(57):
            passed.batch(epoch, step)
    assert np.array_equal(whole(lanes=3, window=700).batch(1, 56), passed.batch(1, 56))


def test_epochs_and_seeds_differ_also_where_a_product_of_them_would_not() -> None:
    orders = [order(whole(seed=seed), epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    for a, b in pairwise(orders):
        assert np.mean(a == b) < 0.01
    assert len({tuple(found[:10]) for found in orders}) == len(orders)


def test_neighbours_in_the_dataset_land_far_apart() -> None:
    places = np.argsort(order(whole(), 0))
    gaps = np.abs(np.diff(places))
    assert 3000 < gaps.mean() < 3700  # a uniform shuffle of n has a mean gap of n / 3


def test_a_window_bounds_how_many_shards_a_stretch_of_the_order_touches() -> None:
    shards_of_batch = [len(set(batch // 500)) for batch in np.split(order(whole(window=1000), 0), 100)]
    assert max(shards_of_batch) <= 8  # two windows' worth of samples, of 20 shards


def test_a_rank_reads_the_same_shards_in_every_epoch_when_ranks_divide_the_lanes() -> None:
    plan = whole(lanes=4)
    for num_ranks in (2, 4):
        for rank in range(num_ranks):
            touched = [
                {
                    int(i) // 500
                    for step in range(plan.steps_per_epoch)
                    for i in plan.rank_batch(e, step, rank, num_ranks)
                }
                for e in (0, 1)
            ]
            assert touched[0] == touched[1]
            assert len(touched[0]) == 20 // num_ranks


def test_lanes_do_not_keep_a_batch_from_mixing_the_whole_dataset() -> None:
    batch = whole(lanes=4).batch(0, 0)
    assert np.bincount(batch // 2500).tolist() == [25, 25, 25, 25]


def test_a_range_of_ids_is_planned_as_the_same_ids_one_by_one() -> None:
    starts = np.arange(0, 10_001, 500)
    for step in (0, 7, 28):
        listed = Plan(np.arange(700, 3600), starts, 100, seed=1, lanes=3, window=400).batch(4, step)
        assert np.array_equal(listed, Plan(range(700, 3600), starts, 100, seed=1, lanes=3, window=400).batch(4, step))


def test_more_lanes_than_a_batch_holds_are_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="use fewer lanes"):
        Plan(np.arange(50), np.array([0, 50]), 4, seed=0, lanes=5)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_evaluation_batches_are_the_same_whoever_computes_them(count: int, num_ranks: int) -> None:
    ids = np.arange(count) * 3
    alone = {tuple(batch) for batch in evaluation_batches(ids, 8, 0, 1)}
    dealt = [evaluation_batches(ids, 8, rank, num_ranks) for rank in range(num_ranks)]
    assert len({len(batches) for batches in dealt}) == 1
    together = {tuple(batch) for batches in dealt for batch in batches}
    assert alone == {batch for batch in together if max(batch) >= 0}
    flat = np.concatenate([batch for batches in dealt for batch in batches])
    assert sorted(flat[flat >= 0]) == ids.tolist()
