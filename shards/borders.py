"""Chips that lie side by side: the edge of one continues at the edge of the other.

Right edges are held against all left edges, bottom ones against all top ones. Two belong together when each is the
other's nearest of all, nearer by far than the next best to either, and not flat. Every forest and every cloud has
edges by the thousand that are near one another, and so none that is nearer by far.

Letters in array names: N chips, F an edge's points times its bands, B chips of one block, P pairs.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from shards.blocks import Blocks
from shards.views import Floats

LEAST_EDGE: Final = 0.05  # deviation along an edge, in the dataset's
FAR_BETTER: Final = 0.5  # squared distance of two edges at most, in that of the next best edge to either

Ids = NDArray[np.int64]


def find_borders(leaving_NF: Floats, entering_NF: Floats, points: int, blocks: Blocks) -> tuple[Ids, Ids, Floats]:
    """Pairs of chips of which the second continues the first.

    Args:
        leaving_NF: the edges that are continued, such as all right ones.
        entering_NF: the edges that continue, such as all left ones.
        points: of an edge; its values are points by bands.

    Returns:
        Places of the first chips (P,), of the second ones (P,), and how surely they belong together (P,): 1 less the
        ratio of squared distances.
    """
    structured_N = _deviation(leaving_NF, points) >= LEAST_EDGE
    continuing_N = _deviation(entering_NF, points) >= LEAST_EDGE
    next_N, distance_N, second_N = _nearest(leaving_NF, entering_NF, blocks)
    back_N, _, second_back_N = _nearest(entering_NF, leaving_NF, blocks)
    first_P = np.flatnonzero((back_N[next_N] == np.arange(len(next_N))) & structured_N & continuing_N[next_N])
    second_P = next_N[first_P]
    rival_P = np.minimum(second_N[first_P], second_back_N[second_P])
    near_P = distance_N[first_P] <= FAR_BETTER * rival_P
    first_P, second_P, rival_P = first_P[near_P], second_P[near_P], rival_P[near_P]
    score_P = 1 - distance_N[first_P] / np.maximum(rival_P, np.finfo(np.float32).tiny)
    return first_P, second_P, score_P


def _deviation(edges_NF: Floats, points: int) -> Floats:
    """How much an edge varies along itself (N,): the root of the variance of each band, averaged over the bands."""
    edges_NPC = edges_NF.reshape(len(edges_NF), points, -1)
    deviation_N: Floats = np.sqrt(edges_NPC.var(axis=1).mean(axis=1))
    return deviation_N


def _nearest(edges_NF: Floats, others_NF: Floats, blocks: Blocks) -> tuple[Ids, Floats, Floats]:
    """For each edge the nearest of another chip, its squared distance, and that of the second nearest."""
    count = len(edges_NF)
    squares_N = np.einsum("nf,nf->n", others_NF, others_NF)
    nearest_N = np.zeros(count, np.int64)
    distance_N = np.full(count, np.inf, np.float32)
    second_N = np.full(count, np.inf, np.float32)

    def look(block: slice) -> None:
        edges_BF = edges_NF[block]
        # Without the edges' own squares, which change no order.
        distance_BN = squares_N - 2 * (edges_BF @ others_NF.T)
        rows_B = np.arange(len(edges_BF))
        distance_BN[rows_B, rows_B + block.start] = np.inf
        nearest_B = distance_BN.argmin(axis=1)
        own_B = np.einsum("bf,bf->b", edges_BF, edges_BF)
        nearest_N[block] = nearest_B
        # Where all is far from 0 the sums lose digits, so that the two that matter are taken anew.
        distance_N[block] = ((edges_BF - others_NF[nearest_B]) ** 2).sum(axis=1)
        distance_BN[rows_B, nearest_B] = np.inf
        second_N[block] = np.maximum(distance_BN.min(axis=1) + own_B, 0)

    for _ in blocks.run(look, count, count):
        pass
    return nearest_N, distance_N, second_N
