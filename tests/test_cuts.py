"""planet_dist.cuts, against every threshold tried one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planet_dist.cuts import GRID_S, EveryCut, GridCuts, middle_of_best

samples = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.505, 0.9, 1.0]), st.integers(-4, 4)),
    min_size=1,
    max_size=12,
)


def _sum_above(probabilities_N, gains_N, threshold):
    return float(gains_N[probabilities_N > threshold].sum())


@given(samples)
@settings(deadline=None)
def test_every_cut_finds_the_greatest_sum_that_any_threshold_gives(pairs):
    probabilities_N, gains_N = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    # every set that a threshold in [0, 1] can select is selected by one of these
    tried = [_sum_above(probabilities_N, gains_N, value) for value in [0.0, *probabilities_N]]
    best, threshold = EveryCut(probabilities_N).best(gains_N)
    assert best == max(tried)
    assert _sum_above(probabilities_N, gains_N, threshold) == best
    assert 0.0 <= threshold <= 1.0


@given(samples)
@settings(deadline=None)
def test_grid_cuts_find_the_greatest_sum_that_a_step_gives(pairs):
    probabilities_N, gains_N = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    best, threshold = GridCuts(probabilities_N).best(gains_N)
    assert best == max(_sum_above(probabilities_N, gains_N, step) for step in GRID_S)
    assert _sum_above(probabilities_N, gains_N, threshold) == best
    assert threshold in GRID_S


def test_a_cut_lies_midway_between_the_neighbouring_probabilities():
    cuts = EveryCut(np.array([0.2, 0.8, 0.6]))
    assert cuts.best(np.array([-1.0, 1.0, 1.0])) == (2.0, pytest.approx(0.4))


def test_deciding_nothing_or_everything_cuts_midway_to_the_ends():
    cuts = EveryCut(np.array([0.2, 0.8]))
    assert cuts.best(np.array([-1.0, -1.0])) == (0.0, pytest.approx(0.9))
    assert cuts.best(np.array([1.0, 1.0])) == (2.0, pytest.approx(0.1))


def test_neighbouring_floats_are_told_apart():
    below = 0.3
    above = float(np.nextafter(below, 1.0))
    _, threshold = EveryCut(np.array([below, above])).best(np.array([-1.0, 1.0]))
    assert below <= threshold < above


def test_a_probability_of_zero_is_never_decided():
    assert EveryCut(np.array([0.0, 0.0])).best(np.array([1.0, 1.0]))[0] == 0.0
    best, threshold = EveryCut(np.array([0.0, 0.5])).best(np.array([1.0, 1.0]))
    assert (best, threshold) == (1.0, 0.25)


def test_of_equally_good_steps_the_middle_of_the_longest_run_is_taken():
    assert middle_of_best(np.array([1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0])) == 3
    assert middle_of_best(np.array([0.0, 2.0, 0.0])) == 1
    assert middle_of_best(np.zeros(5)) == 2
