"""shards.overlaps and shards.blocks: the shared ground of two chips at a shift, against plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from shards.blocks import Blocks
from shards.overlaps import details, find_overlaps, moved_window, shared_ground


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (0, -5), (-2, 7), (10, 10), (-16, -3)])
def test_shared_ground_is_the_correlation_of_the_overlap_times_the_root_of_its_share(shift: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    scene = rng.normal(size=(80, 80)).astype(np.float32)
    down, right = shift
    first, second = scene[20:52, 20:52], scene[20 + down : 52 + down, 20 + right : 52 + right]
    second = second + rng.normal(0, 0.3, second.shape).astype(np.float32)
    places = [(y, x) for y in range(32) for x in range(32) if 0 <= y + down < 32 and 0 <= x + right < 32]
    pairs = np.array([(first[y + down, x + right], second[y, x]) for y, x in places])
    expected = np.corrcoef(pairs.T)[0, 1] * np.sqrt(len(places) / 32**2)
    ground = np.stack([rng.normal(size=(32, 32)).astype(np.float32), second, first])
    (found,) = shared_ground(ground, np.array([2]), np.array([1]), shift)
    assert found == pytest.approx(expected if expected >= 0.45 else found, abs=1e-5)
    assert (found >= 0.45) == (expected >= 0.45)


def test_ground_that_looks_like_itself_a_few_pixels_on_is_no_proof() -> None:
    rng = np.random.default_rng(0)
    stripes = np.tile(rng.normal(size=32), (32, 1)).astype(np.float32)
    noise = rng.normal(size=(32, 32)).astype(np.float32)
    same = np.array([0]), np.array([1])
    assert shared_ground(np.stack([noise, noise]), *same, (0, 0)) == pytest.approx([1], abs=1e-5)
    assert shared_ground(np.stack([stripes, stripes]), *same, (0, 0)).tolist() == [0]


def test_a_moved_window_is_what_a_moved_picture_covers() -> None:
    picture = np.arange(32 * 32, dtype=np.float32).reshape(1, 32, 32)
    assert moved_window(picture, 3, -4)[0].tolist() == picture[0, 3:, :-4].tolist()
    assert moved_window(picture, 0, 0)[0].tolist() == picture[0].tolist()


def test_details_are_the_picture_without_its_moving_average() -> None:
    picture = np.random.default_rng(0).normal(5, 1, (2, 32, 32)).astype(np.float32)
    found = details(picture)
    for y, x in ((2, 2), (15, 20), (29, 29)):
        expected = picture[1, y, x] - picture[1, y - 2 : y + 3, x - 2 : x + 3].mean()
        assert found[1, y, x] == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(details(np.full((1, 32, 32), 9, np.float32)), 0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_pictures_without_details_have_no_overlaps(count: int) -> None:
    first, second, score = find_overlaps(np.full((count, 32, 32), 3, np.float32), Blocks(1, lambda share: None))
    assert len(first) == len(second) == len(score) == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_blocks_cover_all_rows_once_and_in_order(workers: int) -> None:
    shares: list[float] = []
    rows, columns = 10_000, 2**14
    blocks = list(Blocks(workers, shares.append).run(lambda block: (block.start, block.stop), rows, columns))
    assert len(blocks) > 5
    assert [place for start, stop in blocks for place in range(start, stop)] == list(range(rows))
    assert sum(shares) == pytest.approx(1)
