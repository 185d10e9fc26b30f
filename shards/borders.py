"""Chips that lie side by side: the edge of one continues at the edge of the other.

Right edges are held against all left edges, bottom ones against all top ones. Two belong together when each is the
other's nearest of all, nearer than the next best to either by far, no farther than rows inside the chips are from one
another, and not flat. Every forest and every cloud has edges by the thousand that are near one another, and so none
that is nearer by far.

Letters in array names: N chips, F an edge's points times its bands, B chips of one block, P pairs.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from shards.blocks import Blocks
from shards.views import Edges, Floats

LEAST_EDGE: Final = 0.05  # deviation along an edge, in the dataset's
FAR_BETTER: Final = 0.6  # squared distance of two edges at most, in that of the next best edge to either
ROUGHEST: Final = 4.0  # the same, in that of an edge and the row behind it, averaged over the two chips

Ids = NDArray[np.int64]


def find_borders(leaving: Edges, entering: Edges, blocks: Blocks) -> tuple[Ids, Ids, Floats]:
    """Pairs of chips of which the second continues the first.

    Args:
        leaving: the edges that are continued, such as all right ones.
        entering: the edges that continue, such as all left ones; of as many points and bands.

    Returns:
        Places of the first chips (P,), of the second ones (P,), and how surely they belong together (P,): 1 less the
        ratio of squared distances.
    """
    next_N, distance_N, rival_N = _nearest(leaving.line_NF, entering.line_NF, blocks)
    back_N, _, rival_back_N = _nearest(entering.line_NF, leaving.line_NF, blocks)
    rival_N = np.minimum(rival_N, rival_back_N[next_N])
    step_N = (leaving.step_N + entering.step_N[next_N]) / 2
    deviation_N = np.minimum(_deviation(leaving), _deviation(entering)[next_N])
    mutual_N = (back_N[next_N] == np.arange(len(next_N))) & np.isfinite(rival_N)  # among two chips, none has a rival
    near_N = (distance_N <= FAR_BETTER * rival_N) & (distance_N <= ROUGHEST * step_N)
    first_P: Ids = np.flatnonzero(mutual_N & near_N & (deviation_N >= LEAST_EDGE))
    score_P = (1 - distance_N[first_P] / np.maximum(rival_N[first_P], np.finfo(np.float32).tiny)).astype(np.float32)
    return first_P, next_N[first_P], score_P


def _deviation(edges: Edges) -> Floats:
    """How much an edge varies along itself (N,): the root of the variance of each band, averaged over the bands."""
    edges_NPC = edges.line_NF.reshape(len(edges.line_NF), edges.points, -1)
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
