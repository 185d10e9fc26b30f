import math

import numpy as np
import pytest
from numpy.typing import NDArray

from planet_dist.config import AugmentConfig
from planet_dist.draws import STREAMS, draw, splitmix64, uniform

EVERYTHING = AugmentConfig(flip=True, quarter_turns=True, rotate_degrees=30, shift=0.2, scale=0.1)
IDS = np.arange(20_000)


def correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def test_numbers_are_those_of_the_published_generator() -> None:
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(1234567, np.arange(5, dtype=np.uint64)).tolist() == published


def test_draws_of_a_chip_depend_on_neither_batch_nor_order() -> None:
    ids_B = np.array([7, 3, -1, 40_478, 3])
    together = draw(EVERYTHING, 5, 2, ids_B)
    for place, chip in enumerate(ids_B):
        alone = draw(EVERYTHING, 5, 2, np.array([chip]))
        for values, value in zip(together, alone, strict=True):
            np.testing.assert_array_equal(values[place], value[0])


def test_numbers_are_uniform_in_every_stream() -> None:
    uniform_BN = uniform(0, 0, IDS)
    assert uniform_BN.shape == (len(IDS), STREAMS)
    assert uniform_BN.min() >= 0
    assert uniform_BN.max() < 1
    expected = len(IDS) / 64
    for stream in range(STREAMS):
        counts = np.histogram(uniform_BN[:, stream], 64, (0, 1))[0]
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_squared - 63) < 4 * math.sqrt(2 * 63)


@pytest.mark.parametrize("step", [1, 2, 8, 256])
def test_neighbouring_ids_are_independent(step: int) -> None:
    uniform_BN = uniform(1, 3, IDS)
    bound = 4 / math.sqrt(len(IDS))
    for first in range(STREAMS):
        for second in range(STREAMS):
            assert abs(correlation(uniform_BN[:-step, first], uniform_BN[step:, second])) < bound


def test_streams_epochs_and_seeds_are_independent() -> None:
    base_BN = uniform(0, 0, IDS)
    bound = 4 / math.sqrt(base_BN.size)
    for seed, epoch in [(0, 1), (0, 2), (1, 0), (2, 0), (1, 1), (2**40, 0), (2**70, 0)]:
        assert abs(correlation(base_BN, uniform(seed, epoch, IDS))) < bound
    streams_NN = np.corrcoef(base_BN.T) - np.eye(STREAMS)
    assert np.abs(streams_NN).max() < 4 / math.sqrt(len(IDS))


def test_seed_matters_in_the_first_epoch_and_is_not_exchanged_with_the_epoch() -> None:
    assert not np.array_equal(uniform(0, 0, IDS), uniform(1, 0, IDS))
    assert not np.array_equal(uniform(1, 2, IDS), uniform(2, 1, IDS))


def test_nothing_changes_when_nothing_is_configured() -> None:
    draws = draw(AugmentConfig(), 0, 0, IDS)
    assert not draws.mirror_B.any()
    assert not draws.turns_B.any()
    assert not draws.angle_B.any()
    assert (draws.zoom_B == 1).all()
    assert not draws.shift_B2.any()


def test_one_change_leaves_the_draws_of_the_others() -> None:
    alone = draw(AugmentConfig(shift=0.2), 0, 0, IDS)
    np.testing.assert_array_equal(alone.shift_B2, draw(EVERYTHING, 0, 0, IDS).shift_B2)


def test_draws_fill_the_configured_ranges_and_no_more() -> None:
    draws = draw(EVERYTHING, 0, 0, IDS)
    assert 0.48 < draws.mirror_B.mean() < 0.52
    assert np.bincount(draws.turns_B, minlength=4).tolist() == pytest.approx([5000] * 4, rel=0.06)
    for values, low, high in [
        (draws.angle_B, -math.radians(30), math.radians(30)),
        (draws.zoom_B, 0.9, 1.1),
        (draws.shift_B2[:, 0], -0.2, 0.2),
        (draws.shift_B2[:, 1], -0.2, 0.2),
    ]:
        margin = 0.001 * (high - low)
        assert low <= values.min() < low + margin
        assert high - margin < values.max() <= high
