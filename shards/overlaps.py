"""Chips that show a part of the same ground: near duplicates, and crops that are shifted against each other.

The places of a small picture that stand out most are held, each with the pixels around it, against those of all
other chips. The place that looks most like it proposes a shift, and all ground that the two chips would then share
must look alike: in its details, not in its brightness, and the more so the less it is. A road or a river bank looks
like every other one that runs the same way, so that ground which looks like itself a few pixels on proves nothing.

Letters in array names: N chips, H rows, W columns, K places of all chips, D pixels around a place, B of one block,
P proposed pairs, G shared pixels.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from shards.blocks import Blocks
from shards.views import Floats

KEYPOINTS: Final = 8  # of a chip
PATCH_SIDE: Final = 7  # pixels around such a place
LEAST_DETAIL: Final = 0.05  # deviation of a place's details, in the dataset's
ALIKE_PATCHES: Final = 0.75  # correlation that proposes a shift
ALIKE_GROUND: Final = 0.45  # correlation of the shared ground, times the root of its share of a chip
UNLIKE_ITSELF: Final = 0.4  # correlation of the shared ground with itself, a few pixels on

_DETAIL_SIDE = 5  # what is larger than so many pixels is no detail
_REACH = PATCH_SIDE // 2
_PACES = [(0, 3), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1), (3, 0), (3, -1), (3, -2), (3, -3), (2, -3), (1, -3)]
_PART = 1024  # chips that are looked at at a time, before they are compared

Ids = NDArray[np.int64]


def find_overlaps(small_NHW: Floats, blocks: Blocks) -> tuple[Ids, Ids, Floats]:
    """Pairs of chips that share ground.

    Args:
        small_NHW: the small pictures (N, 32, 32).

    Returns:
        Places of the first chips (P,), of the second ones (P,), and how surely they share ground (P,), up to 1; a
        pair may stand there more than once.
    """
    detail_NHW = np.empty_like(small_NHW)
    for start in range(0, len(small_NHW), _PART):
        detail_NHW[start : start + _PART] = details(small_NHW[start : start + _PART])
    chip_K, at_K2, patch_KD = _places(detail_NHW)

    def most_alike(block: slice) -> tuple[Ids, Ids]:
        alike_BK = patch_KD[block] @ patch_KD.T
        alike_BK[chip_K[block, None] == chip_K[None]] = -1  # a chip's own places
        best_B = alike_BK.argmax(axis=1)
        rows_B = np.flatnonzero(alike_BK[np.arange(len(best_B)), best_B] >= ALIKE_PATCHES)
        return rows_B + block.start, best_B[rows_B]

    proposals: defaultdict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
    for here_P, there_P in blocks.run(most_alike, len(chip_K), len(chip_K)):
        first_P, second_P = (
            np.minimum(here_P, there_P),
            np.maximum(here_P, there_P),
        )  # chips stand in order among places
        shift_P2 = at_K2[first_P] - at_K2[second_P]
        pairs = zip(chip_K[first_P].tolist(), chip_K[second_P].tolist(), strict=True)
        for (down, right), pair in zip(shift_P2.tolist(), pairs, strict=True):
            proposals[down, right].add(pair)
    # A bright spot must not speak for all the ground around it.
    ground_NHW = np.abs(detail_NHW)
    np.copysign(np.sqrt(ground_NHW, out=ground_NHW), detail_NHW, out=ground_NHW)
    found = [np.empty((0, 3))]
    for shift, proposed in sorted(proposals.items()):
        first_P, second_P = np.array(sorted(proposed)).T
        score_P = shared_ground(ground_NHW, first_P, second_P, shift)
        good_P = score_P >= ALIKE_GROUND
        found.append(np.stack([first_P[good_P], second_P[good_P], score_P[good_P]], axis=1))
    found_P3 = np.concatenate(found)
    return found_P3[:, 0].astype(np.int64), found_P3[:, 1].astype(np.int64), found_P3[:, 2].astype(np.float32)


def details(small_NHW: Floats) -> Floats:
    """What of a picture is smaller than a few pixels: the picture without its moving average."""
    margin = _DETAIL_SIDE // 2
    average_NHW = np.pad(small_NHW, ((0, 0), (margin, margin), (margin, margin)), mode="edge")
    for axis in (1, 2):
        count = average_NHW.shape[axis] - 2 * margin
        moved = [np.take(average_NHW, range(start, start + count), axis=axis) for start in range(_DETAIL_SIDE)]
        average_NHW = np.mean(moved, axis=0, dtype=np.float32)
    detail_NHW: Floats = small_NHW - average_NHW
    return detail_NHW


def shared_ground(ground_NHW: Floats, first_P: Ids, second_P: Ids, shift: tuple[int, int]) -> Floats:
    """How alike pairs of chips are where they overlap (P,): the correlation times the root of the shared share.

    0 where the ground of either looks like itself a few pixels on.

    Args:
        ground_NHW: the details of all chips.
        shift: rows and columns by which the second chip's corner lies below and right of the first one's.
    """
    one_PHW = moved_window(ground_NHW[first_P], *shift)
    other_PHW = moved_window(ground_NHW[second_P], -shift[0], -shift[1])
    share = one_PHW[0].size / ground_NHW[0].size
    score_P = _correlation(one_PHW, other_PHW) * np.float32(np.sqrt(share))
    for place in np.flatnonzero(score_P >= ALIKE_GROUND).tolist():
        if max(_likeness_to_itself(each[place]) for each in (one_PHW, other_PHW)) >= UNLIKE_ITSELF:
            score_P[place] = 0
    return score_P


def moved_window(pictures_PHW: Floats, down: int, right: int) -> Floats:
    """The part of pictures that others, moved down and right by so many pixels, would cover."""
    height, width = pictures_PHW.shape[1:]
    rows = slice(max(0, down), height + min(0, down))
    return pictures_PHW[:, rows, max(0, right) : width + min(0, right)]


def _likeness_to_itself(ground_HW: Floats) -> float:
    ground_1HW = ground_HW[None]
    return max(
        float(_correlation(moved_window(ground_1HW, *pace), moved_window(ground_1HW, -pace[0], -pace[1]))[0])
        for pace in _PACES
        if all(abs(step) < side for step, side in zip(pace, ground_HW.shape, strict=True))
    )


def _correlation(one_PHW: Floats, other_PHW: Floats) -> Floats:
    one_PG, other_PG = (each.reshape(len(each), -1) for each in (one_PHW, other_PHW))
    one_PG, other_PG = (each - each.mean(axis=1, keepdims=True) for each in (one_PG, other_PG))
    product_P = (one_PG**2).sum(axis=1) * (other_PG**2).sum(axis=1)
    correlation_P: Floats = (one_PG * other_PG).sum(axis=1) / np.sqrt(np.where(product_P > 0, product_P, np.inf))
    return correlation_P


def _places(detail_NHW: Floats) -> tuple[Ids, Ids, Floats]:
    """Each chip's outstanding places: the chip (K,), row and column of the patch (K, 2), its normed pixels (K, D)."""
    chips, places = [np.empty(0, np.int64)], [np.empty((0, 2), np.int64)]
    patches = [np.empty((0, PATCH_SIDE**2), np.float32)]
    for start in range(0, len(detail_NHW), _PART):
        part_NHW = detail_NHW[start : start + _PART]
        chip_K, row_K, column_K = _outstanding(part_NHW)
        windows = sliding_window_view(part_NHW, (PATCH_SIDE, PATCH_SIDE), axis=(1, 2))
        patch_KD = windows[chip_K, row_K, column_K].reshape(len(chip_K), PATCH_SIDE**2)
        patch_KD = patch_KD - patch_KD.mean(axis=1, keepdims=True)
        norm_K = np.linalg.norm(patch_KD, axis=1)
        rich_K = norm_K >= LEAST_DETAIL * PATCH_SIDE
        chips.append(chip_K[rich_K] + start)
        places.append(np.stack([row_K, column_K], axis=1)[rich_K])
        patches.append(patch_KD[rich_K] / norm_K[rich_K, None])
    return np.concatenate(chips), np.concatenate(places), np.concatenate(patches)


def _outstanding(detail_NHW: Floats) -> tuple[Ids, Ids, Ids]:
    """The patches whose middle stands out most, and from all of its patch: chip, first row, first column (K,)."""
    strength_NHW = np.abs(detail_NHW)
    peak_NHW = sliding_window_view(strength_NHW, (PATCH_SIDE, PATCH_SIDE), axis=(1, 2)).max(axis=(3, 4))
    middle_NHW = strength_NHW[:, _REACH:-_REACH, _REACH:-_REACH]
    peaks_NX = np.where(middle_NHW == peak_NHW, middle_NHW, 0).reshape(len(detail_NHW), -1)
    order_NX = np.argsort(-peaks_NX, axis=1, kind="stable")[:, :KEYPOINTS]
    chip_K = np.repeat(np.arange(len(detail_NHW)), order_NX.shape[1])
    found_K = np.take_along_axis(peaks_NX, order_NX, axis=1).reshape(-1) > 0
    row_K, column_K = np.divmod(order_NX.reshape(-1), middle_NHW.shape[2])
    return chip_K[found_K], row_K[found_K], column_K[found_K]
