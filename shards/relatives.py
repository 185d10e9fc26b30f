"""Finds chips that show the same ground or lie side by side, by rules that chance seldom meets.

same      the decoded pixels are equal
overlap   both show a part of the same ground, shifted against each other or not at all (shards/overlaps.py)
border    one begins where the other ends (shards/borders.py)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from shards import borders, overlaps, views
from shards.blocks import Blocks
from shards.views import Views

Kind = Literal["same", "overlap", "border"]
KINDS: tuple[Kind, ...] = ("same", "overlap", "border")
PASSES = 5  # one over the places of overlaps, two over each direction of borders


@dataclass(frozen=True)
class Link:
    """Two chips that are related.

    Attributes:
        first, second: places among the chips that were searched, first < second.
        kind: how they are related.
        score: how surely, up to 1; of one kind a higher one is surer.
    """

    first: int
    second: int
    kind: Kind
    score: float


def rule() -> dict[str, float]:
    """The constants that decide what counts as related, for the record."""
    return {
        "small_side": views.SMALL_SIDE,
        "keypoints": overlaps.KEYPOINTS,
        "patch_side": overlaps.PATCH_SIDE,
        "least_detail": overlaps.LEAST_DETAIL,
        "alike_patches": overlaps.ALIKE_PATCHES,
        "alike_ground": overlaps.ALIKE_GROUND,
        "unlike_itself": overlaps.UNLIKE_ITSELF,
        "edge_points": views.EDGE_POINTS,
        "outward": views.OUTWARD,
        "least_edge": borders.LEAST_EDGE,
        "far_better": borders.FAR_BETTER,
        "roughest": borders.ROUGHEST,
    }


def find_relatives(seen: Views, workers: int, progress: Callable[[int], None] = lambda done: None) -> list[Link]:
    """The links between chips, each pair once, by the first kind above that it meets; the surest first.

    Args:
        seen: the views of all chips.
        workers: threads that multiply.
        progress: called with the chips that are through, in all PASSES over them.
    """
    count = len(seen.digests)
    done = 0.0

    def step(share: float) -> None:
        nonlocal done
        done += share * count
        progress(round(done))

    blocks = Blocks(workers, step)
    found: dict[tuple[int, int], Link] = {}
    for kind, pairs in _pairs(seen, blocks):
        for first, second, score in pairs:
            key = min(first, second), max(first, second)
            known = found.get(key)
            if known is None or (known.kind == kind and known.score < score):
                found[key] = Link(*key, kind, round(score, 4))
    return sorted(found.values(), key=lambda link: (KINDS.index(link.kind), -link.score, link.first, link.second))


def _pairs(seen: Views, blocks: Blocks) -> Iterable[tuple[Kind, Iterable[tuple[int, int, float]]]]:
    yield "same", [(first, second, 1.0) for first, second in _equal(seen.digests)]
    yield "overlap", _triples(*overlaps.find_overlaps(seen.small_NHW, blocks))
    for leaving, entering in (("right", "left"), ("bottom", "top")):
        yield "border", _triples(*borders.find_borders(seen.edges[leaving], seen.edges[entering], blocks))


def _triples(first_P: overlaps.Ids, second_P: overlaps.Ids, score_P: views.Floats) -> Iterable[tuple[int, int, float]]:
    return zip(first_P.tolist(), second_P.tolist(), score_P.astype(np.float64).tolist(), strict=True)


def _equal(digests: list[bytes]) -> Iterable[tuple[int, int]]:
    chips_of = defaultdict(list)
    for chip, digest in enumerate(digests):
        chips_of[digest].append(chip)
    for chips in chips_of.values():
        yield from pairwise(chips)
