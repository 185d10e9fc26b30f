"""shards.views: what is kept of a chip is what its pixels say, whatever its size, kind and place in the dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.reader import Dataset
from shards.views import EDGE_POINTS, OUTWARD, SIDES, averaging, view_chips
from tests.made_ground import ground, pack


@pytest.mark.parametrize(("length", "points"), [(32, 32), (256, 32), (50, 32), (20, 32), (7, 3), (1, 32)])
def test_averaging_takes_equal_stretches_and_keeps_the_mean(length: int, points: int) -> None:
    weights = averaging(length, points)
    assert weights.shape == (points, length)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(axis=0), points / length, rtol=1e-5)
    line = np.random.default_rng(0).normal(size=length)
    fine = np.repeat(line, points).reshape(points, length).mean(axis=1)
    np.testing.assert_allclose(weights @ line, fine, atol=1e-5)


def test_edges_are_the_outermost_lines_carried_on_in_deviations_of_the_band(tif_dataset: Dataset) -> None:
    ids = [5, 0, 77]
    views = view_chips(tif_dataset, ids, workers=2)
    std_C = np.array(tif_dataset.manifest.std)
    for place, chip in enumerate(ids):
        scaled_HWC = tif_dataset.pixels(chip) / std_C
        turned = {"top": 0, "right": 1, "bottom": 2, "left": 3}
        for side in SIDES:
            rows = np.rot90(scaled_HWC, turned[side])[:2]
            rows = rows[:, ::-1] if side in ("bottom", "left") else rows  # columns are read downwards, rows rightwards
            rows = rows.reshape(2, EDGE_POINTS, -1, 4).mean(axis=2)
            expected = (rows[0] + OUTWARD * (rows[0] - rows[1])).reshape(-1)
            edges = views.edges[side]
            np.testing.assert_allclose(edges.line_NF[place], expected, rtol=1e-4, err_msg=side)
            np.testing.assert_allclose(edges.step_N[place], ((rows[0] - rows[1]) ** 2).sum(), rtol=1e-3)
        gray_HW = scaled_HWC.mean(axis=2)
        np.testing.assert_allclose(views.small_NHW[place], gray_HW, rtol=1e-4)


def test_chips_have_one_digest_where_their_pixels_are_equal_and_only_there(tmp_path: Path) -> None:
    almost = ground(1)
    almost[3, 4, 1] ^= 1
    dataset = pack(tmp_path, {"a": ground(1), "b": almost, "c": ground(1)}, kind="tif")
    first, second, third = view_chips(dataset, [0, 1, 2], workers=1).digests
    assert first == third != second


def test_large_and_oblong_chips_have_views_of_the_same_size(tmp_path: Path) -> None:
    views = view_chips(pack(tmp_path, {"a": ground(1, 48, 96), "b": ground(2, 48, 96)}), [0, 1], workers=1)
    assert views.small_NHW.shape == (2, 32, 32)
    assert {side: edges.line_NF.shape for side, edges in views.edges.items()} == dict.fromkeys(SIDES, (2, 96))
