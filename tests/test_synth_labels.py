"""Label sets of made chips against the aggregates of the real ones."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from shards.labels import PLANET
from shards.synth_labels import draw_labels

# Of 40,479 real rows.
REAL_ROWS = 40_479
REAL_COUNTS = {
    "primary": 37513,
    "clear": 28431,
    "agriculture": 12315,
    "road": 8071,
    "water": 7411,
    "partly_cloudy": 7261,
    "cultivation": 4477,
    "habitation": 3660,
    "haze": 2697,
    "cloudy": 2089,
    "bare_ground": 862,
    "selective_logging": 340,
    "artisinal_mine": 339,
    "blooming": 332,
    "slash_burn": 209,
    "conventional_mine": 100,
    "blow_down": 98,
}
# The share of chips with the first label that also bear the second.
REAL_CONDITIONALS = {
    ("road", "agriculture"): 0.748,
    ("habitation", "road"): 0.761,
    ("habitation", "agriculture"): 0.748,
    ("cultivation", "agriculture"): 0.754,
    ("water", "agriculture"): 0.366,
    ("agriculture", "cultivation"): 0.274,
    ("artisinal_mine", "water"): 0.882,
    ("slash_burn", "cultivation"): 0.603,
    ("selective_logging", "road"): 0.444,
    ("selective_logging", "primary"): 1.0,
    ("blooming", "primary"): 1.0,
    ("bare_ground", "primary"): 0.792,
    ("haze", "habitation"): 0.048,
    ("clear", "habitation"): 0.109,
}
DRAWN = 20_000


@pytest.fixture(scope="module")
def label_sets() -> list[tuple[str, ...]]:
    return [draw_labels(np.random.default_rng([11, index])) for index in range(DRAWN)]


def test_every_label_set_keeps_the_rules_of_the_vocabulary(label_sets: list[tuple[str, ...]]) -> None:
    assert {tuple(PLANET.breaches(PLANET.mask(labels))) for labels in set(label_sets)} == {()}


def test_label_sets_are_sorted_and_always_name_something_on_the_ground(
    label_sets: list[tuple[str, ...]],
) -> None:
    assert all(list(labels) == sorted(set(labels)) for labels in label_sets)
    assert all(len(labels) > 1 for labels in label_sets if labels != ("cloudy",))


@pytest.mark.parametrize("label", PLANET.labels)
def test_label_frequency_is_near_the_real_one(label_sets: list[tuple[str, ...]], label: str) -> None:
    real = REAL_COUNTS[label] / REAL_ROWS
    drawn = sum(label in labels for labels in label_sets) / DRAWN
    noise = 4 * np.sqrt(real / DRAWN)
    assert abs(drawn - real) < 0.08 * real + noise


@pytest.mark.parametrize(("given", "also"), REAL_CONDITIONALS)
def test_co_occurrence_is_near_the_real_one(label_sets: list[tuple[str, ...]], given: str, also: str) -> None:
    share = REAL_CONDITIONALS[given, also]
    holders = [labels for labels in label_sets if given in labels]
    drawn = sum(also in labels for labels in holders) / len(holders)
    noise = 4 * np.sqrt(max(share * (1 - share), 0.001) / len(holders))
    assert abs(drawn - share) < 0.03 + noise


def test_label_sets_are_as_varied_as_the_real_ones(label_sets: list[tuple[str, ...]]) -> None:
    """The real rows hold 2.87 labels on average, 9 at most, and 411 different sets in 40,479."""
    assert 2.8 < np.mean([len(labels) for labels in label_sets]) < 2.95
    assert 200 < len(Counter(label_sets)) < 500


def test_labels_that_never_meet_in_reality_are_not_drawn_together_often(
    label_sets: list[tuple[str, ...]],
) -> None:
    pairs = Counter(pair for labels in label_sets for pair in combinations(labels, 2))
    assert pairs["blooming", "habitation"] < 10
    assert pairs["blow_down", "conventional_mine"] < 3


def test_label_sets_follow_the_generator_and_nothing_else() -> None:
    def drawn(seed: int) -> list[tuple[str, ...]]:
        return [draw_labels(np.random.default_rng([seed, index])) for index in range(50)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
