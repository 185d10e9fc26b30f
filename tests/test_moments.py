"""Sums over pixels are exact, whatever their size and dtype."""

from __future__ import annotations

import numpy as np
import pytest

from shards.moments import Moments, MomentSum, counted_rows, total_moments
from shards.pixels import PixelFormat


def moments_of(chips: np.ndarray) -> Moments:
    _, height, width, bands = chips.shape
    adding = MomentSum(PixelFormat(height, width, bands, chips.dtype.name))
    for pixels in chips:
        adding.add(pixels)
    return adding.total()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (256, 5, 3), (257, 3, 4), (600, 2, 2)])
def test_integer_sums_are_exact_at_the_dtypes_extremes(dtype: str, shape: tuple[int, int, int]) -> None:
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    noise = rng.integers(limits.min, limits.max + 1, (3, *shape)).astype(dtype)
    for chips in (noise, np.full_like(noise, limits.max), np.full_like(noise, limits.min)):
        found = moments_of(chips)
        exact = chips[:, counted_rows(chips.shape[1])].astype(object)
        assert found.sums == tuple(exact.sum(axis=(0, 1, 2)))
        assert found.squares == tuple((exact * exact).sum(axis=(0, 1, 2)))
        assert all(isinstance(value, int) for value in (*found.sums, *found.squares))


def test_the_largest_chips_fit_64_times_without_overflow() -> None:
    chip = np.full((4096, 16, 1), 65535, np.uint16)
    found = moments_of(np.broadcast_to(chip, (64, *chip.shape)))
    assert found.squares == (64 * 16 * 16 * 65535**2,)


def test_mean_and_std_are_those_of_all_counted_rows_together() -> None:
    chips = np.random.default_rng(1).normal(5, 2, (6, 8, 8, 2)).astype(np.float32)
    parts = [moments_of(chips[:2]), moments_of(chips[2:])]
    total = total_moments(parts, 2)
    assert total.pixels == 6 * 64
    assert total.mean() == pytest.approx(
        chips[:, counted_rows(chips.shape[1])].astype(float).mean(axis=(0, 1, 2)), rel=1e-8
    )
    assert total.std() == pytest.approx(
        chips[:, counted_rows(chips.shape[1])].astype(float).std(axis=(0, 1, 2)), rel=1e-8
    )


def test_one_colour_has_no_deviation_and_figures_have_nine_digits() -> None:
    found = moments_of(np.full((3, 7, 7, 1), 200, np.uint8))
    assert found.std() == [0.0] and found.mean() == [200.0]
    assert Moments(3, (1,), (1,)).mean() == [0.333333333]
