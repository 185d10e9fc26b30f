"""Which chips, in which order: pure functions of (seed, epoch, step).

Nothing here knows of processes or threads until a rank asks for its part of a global batch, so the global
batches are the same at any number of ranks, and a run resumes at any step without reading what came before.

Letters in array names: N samples, B samples of one global batch, P pieces.

How an epoch is laid out
    The training samples, in the dataset's order, are cut into `lanes` equal parts (+-1), which stay the same
    in every epoch, so that a host that reads some of the lanes reads the same shards each time. Within a
    lane, the pieces of shards are permuted, and the samples are then shuffled twice within windows, the
    second time in windows that straddle those of the first. A window that holds a whole lane makes that a
    uniform permutation. The lanes take turns in giving their samples: an epoch has ceil(N / batch_size)
    steps, each sample comes exactly once, and no step is a ragged rest: batches differ by at most one sample.

How ranks share a batch
    Lane l's part of the batch lies on the interval [l, l + 1) of a line of length `lanes`, and rank r of R
    takes what lies on [r * lanes / R, (r + 1) * lanes / R). With R dividing the lanes, or the lanes dividing
    R, no rank touches a lane that is not its own.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shards.errors import ConfigError

Ids = NDArray[np.int64]

# What a generator is for: the last of the integers that seed it.
_PIECES, _FIRST_PASS, _SECOND_PASS = 0, 1, 2


class Plan:
    """The order of training.

    Args:
        ids: int64 (N,), the ids of the training samples, ascending; or a range, which takes no memory.
        shard_starts: int64, the first id of every shard and, last, the count of all chips.
        batch_size: samples of a global batch; the largest, where N does not divide.
        seed: of every shuffle.
        lanes: parts of the dataset that are read side by side.
        window: samples that a shuffle can move within; memory and locality follow from it.

    Raises:
        ConfigError: there are fewer samples than lanes or than one batch needs.
    """

    def __init__(
        self,
        ids: Ids | range,
        shard_starts: Ids,
        batch_size: int,
        *,
        seed: int,
        lanes: int = 1,
        window: int = 65536,
    ) -> None:
        if len(ids) == 0:
            raise ConfigError("the training split is empty; choose another data.split")
        if lanes > min(batch_size, len(ids)):
            raise ConfigError(
                f"data.lanes = {lanes}: every batch takes at least one sample from every lane, and there are "
                f"{len(ids)} samples in batches of {batch_size}; use fewer lanes"
            )
        if isinstance(ids, range):
            assert ids.step == 1, "a range of ids goes up by one"
            shard_cuts = np.clip(shard_starts - ids.start, 0, len(ids))
        else:
            assert bool(np.all(np.diff(ids) > 0)), "ids must ascend"
            shard_cuts = np.searchsorted(ids, shard_starts)
        self.ids, self.batch_size, self.seed, self.lanes, self.window = ids, batch_size, seed, lanes, window
        self.steps_per_epoch = -(-len(ids) // batch_size)
        # Positions (0 .. N - 1, places in `ids`) at which a piece begins: where a shard or a lane begins.
        lengths = (len(ids) + np.arange(lanes, 0, -1, dtype=np.int64) - 1) // lanes
        self._lane_cuts = np.concatenate([[0], np.cumsum(lengths)])
        self._cuts = np.unique(np.concatenate([shard_cuts, self._lane_cuts]))
        # Bound to the instance, so that the memory goes with it.
        self._pieces = lru_cache(maxsize=2 * lanes)(self._make_pieces)
        self._permutation = lru_cache(maxsize=8 * lanes)(self._make_permutation)

    def batch(self, epoch: int, step: int) -> Ids:
        """The ids of a global batch, int64 (B,), in order."""
        return self.rank_batch(epoch, step, rank=0, num_ranks=1)

    def rank_batch(self, epoch: int, step: int, rank: int, num_ranks: int) -> Ids:
        """The ids of a global batch that a rank takes; over all ranks they make batch(), in order."""
        assert 0 <= step < self.steps_per_epoch and 0 <= rank < num_ranks
        low, high = rank * self.lanes, (rank + 1) * self.lanes  # on the line, in units of 1 / num_ranks
        parts = []
        for lane in range(low // num_ranks, -(-high // num_ranks)):
            start, end = self._part_of_lane(lane, step)
            first, last = (_places_before(bound - lane * num_ranks, num_ranks, end - start) for bound in (low, high))
            parts.append(self._lane_order(lane, epoch, np.arange(start + first, start + last)))
        return np.concatenate(parts)

    def batch_length(self, step: int) -> int:
        """Samples of a global batch; the same in every epoch."""
        return self._dealt(step + 1) - self._dealt(step)

    def largest_rank_batch(self, num_ranks: int) -> int:
        """A bound on the samples that any rank takes of any batch."""
        part = -(-self.batch_size // self.lanes)
        return -(-part * self.lanes // num_ranks) + 2

    def _dealt(self, step: int) -> int:
        """Samples given before a step."""
        return step * len(self.ids) // self.steps_per_epoch

    def _part_of_lane(self, lane: int, step: int) -> tuple[int, int]:
        """The places of a lane that a step takes: lane l gives the samples l, l + lanes, ... of the epoch."""
        start, end = ((self._dealt(at) + self.lanes - 1 - lane) // self.lanes for at in (step, step + 1))
        return start, end

    def _lane_order(self, lane: int, epoch: int, places: Ids) -> Ids:
        """The ids that stand at `places` of a lane in an epoch."""
        for stage in (_SECOND_PASS, _FIRST_PASS):
            places = self._shuffled(lane, epoch, stage, places)
        starts_P, ends_P = self._pieces(lane, epoch)
        piece = np.searchsorted(ends_P, places, side="right")
        positions: Ids = starts_P[piece] + places - np.concatenate([[0], ends_P])[piece]
        return positions + self.ids.start if isinstance(self.ids, range) else self.ids[positions]

    def _shuffled(self, lane: int, epoch: int, stage: int, places: Ids) -> Ids:
        length = int(self._lane_cuts[lane + 1] - self._lane_cuts[lane])
        if length <= self.window and stage == _SECOND_PASS:
            return places  # one window holds the lane, and one permutation of it is enough
        offset = self.window // 2 if stage == _SECOND_PASS else 0
        windows = (places + offset) // self.window
        result = np.empty_like(places)
        for number in np.unique(windows):
            start = max(int(number) * self.window - offset, 0)
            end = min((int(number) + 1) * self.window - offset, length)
            chosen = windows == number
            permutation = self._permutation(lane, epoch, stage, int(number), end - start)
            result[chosen] = start + permutation[places[chosen] - start]
        return result

    def _make_permutation(self, lane: int, epoch: int, stage: int, number: int, length: int) -> Ids:
        generator = np.random.default_rng([self.seed, epoch, lane, number, stage])
        return generator.permutation(length)

    def _make_pieces(self, lane: int, epoch: int) -> tuple[Ids, Ids]:
        """Where the pieces of a lane begin, in the epoch's order, and where each ends in the lane."""
        low, high = np.searchsorted(self._cuts, self._lane_cuts[lane : lane + 2])
        order = np.random.default_rng([self.seed, epoch, lane, _PIECES]).permutation(high - low) + low
        return self._cuts[order], np.cumsum(self._cuts[order + 1] - self._cuts[order])


def _places_before(bound: int, unit: int, count: int) -> int:
    """How many of `count` places, spread evenly over [0, 1), lie before bound / unit.

    Place i is at (2 i + 1) / (2 count); counted in whole numbers, so that no rounding depends on a machine.
    """
    return min(max(-(-(2 * count * bound - unit) // (2 * unit)), 0), count)


def evaluation_batches(ids: Ids, batch_size: int, rank: int, num_ranks: int) -> list[Ids]:
    """Deals ids to ranks in batches of one fixed shape.

    A batch holds the same ids in the same places at any number of ranks, so that its logits do too; every
    rank gets the same number of batches.

    Returns:
        int64 (batch_size,) arrays, padded with -1.
    """
    blocks = -(-len(ids) // batch_size)
    rounds = -(-blocks // num_ranks)
    padded = np.full(rounds * num_ranks * batch_size, -1, np.int64)
    padded[: len(ids)] = ids
    return list(padded.reshape(-1, batch_size)[rank::num_ranks])
