"""shards.relatives: chips that were planted as related are found, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.reader import Dataset
from shards.relatives import find_relatives
from shards.views import view_chips
from tests.made_ground import SIDE, Pixels, ground, mosaic, pack


def related(dataset: Dataset, workers: int = 1) -> dict[frozenset[str], str]:
    keys = dataset.keys(range(len(dataset)))
    links = find_relatives(view_chips(dataset, range(len(dataset)), workers), workers)
    found = {frozenset((keys[link.first], keys[link.second])): link.kind for link in links}
    assert len(found) == len(links), "a pair is named once"
    assert all(link.first < link.second and 0 < link.score <= 1.0001 for link in links)
    return found


def strangers(count: int = 40) -> dict[str, Pixels]:
    return {f"other_{i}": ground(3000 + i) for i in range(count)}


@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_chips_side_by_side_are_found_and_strangers_are_not(tmp_path: Path, kind: str) -> None:
    parts = mosaic(1, 3, 4)
    chips = {f"at_{row}_{column}": pixels for (row, column), pixels in parts.items()} | strangers()
    expected = {
        frozenset((f"at_{row}_{column}", f"at_{row + down}_{column + right}"))
        for row, column in parts
        for down, right in ((0, 1), (1, 0))
        if (row + down, column + right) in parts
    }
    assert len(expected) == 17
    found = related(pack(tmp_path, chips, kind))
    assert set(found) <= expected, "no stranger, and no neighbours across a corner"
    assert len(found) >= 14
    assert set(found.values()) == {"border"}


@pytest.mark.parametrize(("down", "right"), [(0, 0), (0, 9), (7, 0), (6, 8), (8, -6), (1, 1)])
def test_overlapping_crops_are_found_at_any_shift_on_a_brighter_day_too(tmp_path: Path, down: int, right: int) -> None:
    scenes = [ground(50 + i, 56, 56).astype(float) for i in range(8)]
    chips = strangers()
    for i, scene in enumerate(scenes):
        top, left = 8, 8
        chips[f"first_{i}"] = scene[top : top + SIDE, left : left + SIDE].astype(np.uint8)
        crop = scene[top + down : top + down + SIDE, left + right : left + right + SIDE]
        chips[f"second_{i}"] = np.clip(crop * (0.8, 0.85, 0.75) + 20, 0, 255).astype(np.uint8)
    found = related(pack(tmp_path, chips))
    expected = {frozenset((f"first_{i}", f"second_{i}")) for i in range(8)}
    assert set(found) <= expected
    assert len(found) >= 6
    assert set(found.values()) == {"overlap"}


def test_equal_pixels_are_found_where_nothing_is_to_be_seen_in_them(tmp_path: Path) -> None:
    flat = np.full((SIDE, SIDE, 3), 128, np.uint8)
    chips = strangers() | {"a": ground(7), "b": ground(7), "c": flat, "d": flat, "e": flat}
    found = related(pack(tmp_path, chips))
    assert found == dict.fromkeys((frozenset("ab"), frozenset("cd"), frozenset("de")), "same")


def test_a_turned_chip_is_another_place(tmp_path: Path) -> None:
    chips = strangers() | {"a": ground(7), "turned": np.rot90(ground(7)), "half": np.rot90(ground(7), 2)}
    assert related(pack(tmp_path, chips)) == {}


def test_homogeneous_chips_prove_nothing_however_alike_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chips = strangers()
    for i in range(60):
        cloud = np.full((SIDE, SIDE, 3), 250.0) + rng.normal(0, 0.4, (SIDE, SIDE, 1))
        forest = np.array([60.0, 70.0, 50.0]) + rng.normal(0, 6, (SIDE, SIDE, 1))
        slope = np.linspace(100, 120, SIDE)[:, None, None] + rng.normal(0, 0.5, (SIDE, SIDE, 1)) + np.zeros(3)
        for name, pixels in (("cloud", cloud), ("forest", forest), ("slope", slope)):
            chips[f"{name}_{i}"] = np.clip(pixels, 0, 255).astype(np.uint8)
    assert related(pack(tmp_path, chips)) == {}


def test_roads_that_run_the_same_way_are_not_the_same_road(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    chips = {}
    for i in range(40):
        pixels = np.array([60.0, 70.0, 50.0]) + rng.normal(0, 3, (SIDE, SIDE, 1))
        column = int(rng.integers(6, 26))
        pixels[:, column : column + 2] = (180, 160, 140)
        chips[f"road_{i}"] = pixels.astype(np.uint8)
    overlapping = [pair for pair, kind in related(pack(tmp_path, chips)).items() if kind == "overlap"]
    assert overlapping == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_chips_are_no_relatives_for_want_of_others(tmp_path: Path, count: int) -> None:
    assert related(pack(tmp_path, strangers(count))) == {}


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    chips = {f"at_{row}_{column}": pixels for (row, column), pixels in mosaic(3, 3, 3).items()} | strangers()
    dataset = pack(tmp_path, chips)
    assert related(dataset, 1) == related(dataset, 3)
