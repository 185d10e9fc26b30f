"""What is drawn for a label set: seen when it's named, not seen when it isn't."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from shards.labels import PLANET
from shards.synth_scene import Chip, draw_chip, draw_scene

GROUND = [label for label in PLANET.labels if label not in ("clear", "partly_cloudy", "haze", "cloudy")]
CHIPS = 6


def scenes(*labels: str, size: int = 128) -> list[Chip]:
    return [draw_scene(labels, size, np.random.default_rng([2, number])) for number in range(CHIPS)]


def infrared(chip: Chip) -> NDArray[np.float64]:
    return chip.bands_HWB[..., 3].astype(np.float64)


def brightness(chip: Chip) -> NDArray[np.float64]:
    return chip.rgb_HWC.mean(axis=2)


def changed(first: Chip, second: Chip) -> float:
    """The share of pixels in which two chips differ by more than a shade."""
    difference = first.rgb_HWC.astype(int) - second.rgb_HWC
    return float((np.abs(difference).max(axis=2) > 15).mean())


@pytest.mark.parametrize("label", [label for label in GROUND if label != "primary"])
def test_each_ground_label_is_seen_in_the_forest_and_leaves_some_of_it(label: str) -> None:
    for plain, drawn in zip(scenes("clear", "primary"), scenes("clear", "primary", label), strict=True):
        assert 0.012 < changed(plain, drawn) < 0.8


@pytest.mark.parametrize("label", [label for label in GROUND if label != "primary"])
def test_each_ground_label_is_still_seen_beside_the_common_ones(label: str) -> None:
    common = {"primary", "water", "agriculture", "road", "habitation", "cultivation"} - {label}
    for lacking, whole in zip(scenes("clear", *common), scenes("clear", *common, label), strict=True):
        assert changed(lacking, whole) > 0.004


def test_water_is_dark_in_the_near_infrared_and_absent_without_its_label() -> None:
    def wet_share(chip: Chip) -> float:
        blocks = infrared(chip).reshape(64, 2, 64, 2).mean(axis=(1, 3))
        return float((blocks < 3200).mean())

    assert all(wet_share(chip) > 0.01 for chip in scenes("clear", "primary", "water"))
    assert all(wet_share(chip) < 0.003 for chip in scenes("clear", "primary", "road", "agriculture"))


def test_water_alone_fills_most_of_the_chip() -> None:
    assert all((infrared(chip) < 3500).mean() > 0.5 for chip in scenes("clear", "water"))


def test_houses_by_a_river_stand_on_dry_ground() -> None:
    for river, settled in zip(
        scenes("artisinal_mine", "clear", "primary", "water"),
        scenes("artisinal_mine", "clear", "habitation", "primary", "water"),
        strict=True,
    ):
        built = np.abs(settled.rgb_HWC.astype(int) - river.rgb_HWC).max(axis=2) > 60
        assert built.sum() > 20
        assert (infrared(river)[built] < 2500).mean() < 0.1


def test_fields_are_brighter_than_forest_in_the_near_infrared_or_in_red() -> None:
    for forest, farmed in zip(scenes("clear", "primary"), scenes("agriculture", "clear", "primary"), strict=True):
        red = farmed.rgb_HWC[..., 0].astype(float)
        assert (red > np.percentile(forest.rgb_HWC[..., 0], 99)).mean() > 0.1


def test_haze_brightens_and_lowers_the_contrast_of_the_same_ground() -> None:
    for clear, hazy in zip(scenes("clear", "primary"), scenes("haze", "primary"), strict=True):
        assert brightness(hazy).mean() > brightness(clear).mean() + 20
        assert brightness(hazy).std() < brightness(clear).std()


def test_separate_clouds_are_white_and_leave_most_of_the_ground_in_sight() -> None:
    for chip in scenes("partly_cloudy", "primary"):
        white = (brightness(chip) > 190).mean()
        assert 0.02 < white < 0.5


def test_overcast_hides_the_ground() -> None:
    for chip in scenes("cloudy"):
        assert np.percentile(brightness(chip), 2) > 90
        assert np.percentile(infrared(chip), 2) > 5000


def test_tiff_values_lie_in_the_range_of_real_chips() -> None:
    chips = [draw_chip(4, index, 64) for index in range(60)]
    values_NB = np.concatenate([chip.bands_HWB.reshape(-1, 4) for chip in chips])
    assert values_NB.dtype == np.uint16
    assert (values_NB.max(axis=0) <= 13_500).all()
    assert (values_NB.max(axis=0) > 9_000).all()
    # Medians of clear forest in real chips: blue 3950 to 4600, green 3220 to 3700, red 2030 to 2480.
    blue, green, red, near = np.median(
        np.concatenate([chip.bands_HWB.reshape(-1, 4) for chip in scenes("clear", "primary")]), axis=0
    )
    assert 3600 < blue < 4700
    assert 2900 < green < 3900
    assert 1800 < red < 2700
    assert 4800 < near < 7200


def test_the_colours_of_a_chip_are_the_first_three_bands_of_its_tiff_reversed() -> None:
    chip = draw_chip(1, 3, 64)
    for colour, band in ((0, 2), (1, 1), (2, 0)):
        correlation = np.corrcoef(chip.rgb_HWC[..., colour].ravel(), chip.bands_HWB[..., band].ravel())[0, 1]
        assert correlation > 0.98


def test_a_chip_is_a_pure_function_of_seed_index_and_size() -> None:
    first, again = draw_chip(5, 17, 96), draw_chip(5, 17, 96)
    assert first.labels == again.labels
    assert np.array_equal(first.rgb_HWC, again.rgb_HWC)
    assert np.array_equal(first.bands_HWB, again.bands_HWB)
    for other in (draw_chip(6, 17, 96), draw_chip(5, 18, 96), draw_chip(17, 5, 96)):
        assert not np.array_equal(first.rgb_HWC, other.rgb_HWC)


@pytest.mark.parametrize("size", [32, 33, 100, 300])
def test_every_label_can_be_drawn_at_any_size(size: int) -> None:
    rng = np.random.default_rng(size)
    chips = [draw_scene(["clear", label], size, rng) for label in GROUND]
    chips.append(draw_scene(["partly_cloudy", *GROUND], size, rng))
    assert all(chip.rgb_HWC.shape == (size, size, 3) for chip in chips)
    assert all(chip.bands_HWB.shape == (size, size, 4) for chip in chips)


def test_sampled_chips_of_one_label_set_differ_from_one_another() -> None:
    means = [brightness(chip).mean() for chip in scenes("clear", "primary")]
    assert np.std(means) > 1.5
