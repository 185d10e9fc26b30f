"""From a plan to batches on the device: plan, read + decode + batch, copy: stages of a webdataset pipeline.

    pipeline = DataPipeline(PlannedSteps(...), DecodedBatches(...), OnDevice(device))
    for batch in pipeline: ...

Each stage is a callable that takes an iterator and gives one, webdataset's ordinary form, so that a stage of
your own goes between two of these: `def stage(batches): for batch in batches: yield change(batch)`.
The pipeline is not for accelerate.prepare(), which would deal its batches to the ranks a second time: each
rank's source holds the rank's own part already.

Pixels stay integers here; planet_dist.augment turns them into what the network sees, on the device.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from planet_dist.config import Config
from planet_dist.device_cache import DeviceCache
from planet_dist.host_cache import HostCache
from planet_dist.plan import Plan
from planet_dist.stopwatch import Stopwatch
from shards.reader import Dataset
from shards.workers import available_cores

Ids = NDArray[np.int64]

_CACHE_LINE_BYTES = 64
_STEPS_ANNOUNCED = 32  # to a dataset whose shards have to be fetched
_CHIPS_PER_TASK = 32  # decoded by one thread at most: handing over costs as much as a tenth of a chip


@dataclass(frozen=True)
class Step:
    """What a rank has to read for one step: ids int64 (B,), -1 for padding."""

    epoch: int
    step: int
    ids_B: Ids


@dataclass(frozen=True)
class Batch:
    """What a rank computes on.

    Attributes:
        epoch, step: the place in training; in an evaluation, epoch 0 and the batch's number.
        ids_B: int64 on the host; -1 marks padding, whose pixels and targets are zero.
        images_BHWC: the dataset's dtype. Valid until the next batch is asked for, which may use its memory.
        targets_BC: float32, from 0 to 1.
        new_B: bool, set between DecodedBatches and OnDevice where the device keeps chips: those that it lacks, and
            images_BHWC has these alone.
    """

    epoch: int
    step: int
    ids_B: Ids
    images_BHWC: torch.Tensor
    targets_BC: torch.Tensor
    new_B: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Caches:
    """Where decoded chips are kept for later epochs."""

    host: HostCache | None = None
    device: DeviceCache | None = None


def open_caches(config: Config, dataset: Dataset, device: torch.device) -> Caches:
    """The caches that data.cache asks for.

    Raises:
        DatasetError: the chips don't fit, or the cache's folder cannot be used.
    """
    if config.data.cache == "host":
        runtime = config.runtime
        return Caches(host=HostCache(Path(runtime.cache_dir), dataset, round(runtime.cache_gib * 2**30)))
    return Caches(device=DeviceCache(dataset, device)) if config.data.cache == "device" else Caches()


@dataclass(frozen=True)
class _Ahead:
    """A step whose chips are being read into a slot of the ring."""

    step: Step
    slot: int
    new_B: NDArray[np.bool_] | None
    tasks: list[Future[None]]


class PlannedSteps:
    """The source: a rank's part of every step of some epochs.

    Args:
        plan: the order.
        epochs: to give.
        first_step: of the first of them.
        rank, num_ranks: whose part it is.
    """

    def __init__(self, plan: Plan, epochs: range, first_step: int, *, rank: int, num_ranks: int) -> None:
        self.plan, self.epochs, self.first_step = plan, epochs, first_step
        self.rank, self.num_ranks = rank, num_ranks

    def __call__(self) -> Iterator[Step]:
        first_step = self.first_step
        for epoch in self.epochs:
            for step in range(first_step, self.plan.steps_per_epoch):
                yield Step(epoch, step, self.plan.rank_batch(epoch, step, self.rank, self.num_ranks))
            first_step = 0


class FixedSteps:
    """A source of batches made elsewhere, such as plan.evaluation_batches."""

    def __init__(self, batches: Sequence[Ids]) -> None:
        self.batches = batches

    def __call__(self) -> Iterator[Step]:
        for number, ids_B in enumerate(self.batches):
            yield Step(0, number, ids_B)


class DecodedBatches:
    """Reads and decodes ahead, in threads, into a ring of preallocated batches.

    Args:
        dataset: whose chips the ids name.
        targets_NC: from 0 to 1, any type (N, C): the labels of all chips by id, or softer targets.
        largest_batch: samples that a step may have.
        threads: that decode; decoding releases the interpreter lock.
        prefetch_batches: decoded ahead; the ring holds one more, which the consumer has.
        pinned: page-locked memory, for asynchronous copies to a device.
        caches: where decoded chips are kept. With one on the device, OnDevice has to follow at once and be given it.
        watch: counts the threads' time.
    """

    def __init__(
        self,
        dataset: Dataset,
        targets_NC: NDArray[np.generic],
        largest_batch: int,
        *,
        threads: int,
        prefetch_batches: int,
        pinned: bool = False,
        caches: Caches | None = None,
        watch: Stopwatch | None = None,
    ) -> None:
        form = dataset.manifest.image
        shape = (largest_batch, form.height, form.width, form.bands)
        self.dataset, self.targets_NC, self.threads = dataset, targets_NC, threads
        self.caches, self.watch = caches or Caches(), watch or Stopwatch.off()
        self.ring = [_memory(shape, form.dtype, pinned) for _ in range(prefetch_batches + 1)]

    def __call__(self, steps: Iterable[Step]) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        waiting: deque[_Ahead] = deque()
        free = deque(range(len(self.ring)))
        source = self._announced(steps) if self.dataset.storage.remote else iter(steps)
        try:
            while True:
                while free and (step := next(source, None)) is not None:
                    waiting.append(self._submit(pool, step, free.popleft()))
                if not waiting:
                    return
                ahead = waiting.popleft()
                for task in ahead.tasks:
                    task.result()
                yield self._batch(ahead)
                free.append(ahead.slot)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _announced(self, steps: Iterable[Step]) -> Iterator[Step]:
        """The steps, of which the dataset hears well before their chips are read, so that it can fetch their shards."""
        ahead: deque[Step] = deque()
        for step in steps:
            kept = self.caches.host or self.caches.device
            self.dataset.prefetch((step.ids_B if kept is None else step.ids_B[~kept.holds(step.ids_B)]).tolist())
            ahead.append(step)
            if len(ahead) > _STEPS_ANNOUNCED:
                yield ahead.popleft()
        yield from ahead

    def _submit(self, pool: ThreadPoolExecutor, step: Step, slot: int) -> _Ahead:
        new_B = None if self.caches.device is None else ~self.caches.device.holds(step.ids_B)
        ids = step.ids_B if new_B is None else step.ids_B[new_B]
        # NumPy's view, made once: a tensor's own indexing costs as much as decoding a small chip.
        images_BHWC = self.ring[slot].numpy()
        size = max(-(-len(ids) // self.threads), 1)
        if self.caches.host is None or not self.caches.host.holds(ids).all():
            size = min(size, _CHIPS_PER_TASK)
        tasks = [
            pool.submit(self.watch.decode, self._read, ids[start : start + size], images_BHWC[start:])
            for start in range(0, len(ids), size)
        ]
        return _Ahead(step, slot, new_B, tasks)

    def _read(self, ids: Ids, images_BHWC: NDArray[np.generic]) -> None:
        """Chips into the first places of `images_BHWC`."""
        if self.caches.host is None:
            for chip_id, out_HWC in zip(ids.tolist(), images_BHWC, strict=False):
                self._decode(chip_id, out_HWC)
            return
        held_B = self.caches.host.holds(ids)
        if held_B.all():
            self.caches.host.take(ids, images_BHWC[: len(ids)])
            return
        for place, chip_id in enumerate(ids.tolist()):
            if held_B[place]:
                self.caches.host.take(ids[place : place + 1], images_BHWC[place : place + 1])
            else:
                self._decode(chip_id, images_BHWC[place])
                if chip_id >= 0:
                    self.caches.host.put(chip_id, images_BHWC[place])

    def _decode(self, chip_id: int, out_HWC: NDArray[np.generic]) -> None:
        if chip_id < 0:
            out_HWC[...] = 0
        else:
            self.dataset.pixels(chip_id, out_HWC)

    def _batch(self, ahead: _Ahead) -> Batch:
        step, new_B = ahead.step, ahead.new_B
        targets_BC = np.where(step.ids_B[:, None] >= 0, self.targets_NC[step.ids_B], 0).astype(np.float32)
        length = len(step.ids_B) if new_B is None else int(new_B.sum())
        images_BHWC = self.ring[ahead.slot][:length]
        return Batch(step.epoch, step.step, step.ids_B, images_BHWC, torch.from_numpy(targets_BC), new_B)


def _memory(shape: tuple[int, ...], dtype: str, pinned: bool) -> torch.Tensor:
    if pinned:
        return torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=True)
    # NumPy asks the kernel for large pages, and torch does not: decoding into small ones takes some 5% longer. But it
    # begins 16 bytes into a line of the processor's cache, and copying cached chips there takes twice as long.
    count = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(count + _CACHE_LINE_BYTES, np.uint8)
    start = -room.ctypes.data % _CACHE_LINE_BYTES
    return torch.from_numpy(room[start : start + count].view(dtype).reshape(shape))


class OnDevice:
    """Copies batches to a device, one ahead of the consumer, on a stream of its own where there is one.

    Args:
        device: where they go.
        cache: the one on the device that DecodedBatches was given.
        watch: counts the time of copying.
    """

    def __init__(self, device: torch.device, cache: DeviceCache | None = None, watch: Stopwatch | None = None) -> None:
        self.device, self.cache, self.watch = device, cache, watch or Stopwatch.off()

    def __call__(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        if self.device.type != "cuda":
            for batch in batches:
                with self.watch.copying():
                    images_BHWC, targets_BC = batch.images_BHWC.to(self.device), batch.targets_BC.to(self.device)
                yield self._completed(replace(batch, images_BHWC=images_BHWC, targets_BC=targets_BC))
            return
        side = torch.cuda.Stream(self.device)
        waiting: tuple[Batch, torch.cuda.Event] | None = None
        for batch in batches:
            with torch.cuda.stream(side):
                with self.watch.copying():
                    copied = replace(
                        batch,
                        images_BHWC=batch.images_BHWC.to(self.device, non_blocking=True),
                        targets_BC=batch.targets_BC.pin_memory().to(self.device, non_blocking=True),
                    )
                done = torch.cuda.Event()
                done.record(side)
            if waiting is not None:
                yield self._handed_over(*waiting)
            waiting = (copied, done)
            # The host waits here: the slot in the ring is used again once the next batch is asked for.
            done.synchronize()
        if waiting is not None:
            yield self._handed_over(*waiting)

    def _handed_over(self, batch: Batch, done: torch.cuda.Event) -> Batch:
        consumer = torch.cuda.current_stream(self.device)
        consumer.wait_event(done)
        # The allocator must not give this memory to the side stream while the consumer still reads it.
        batch.images_BHWC.record_stream(consumer)
        batch.targets_BC.record_stream(consumer)
        return self._completed(batch)

    def _completed(self, batch: Batch) -> Batch:
        """The whole batch, of new chips and those that the device has kept."""
        if batch.new_B is None:
            return batch
        assert self.cache is not None, "OnDevice has the cache that DecodedBatches has"
        self.cache.put(batch.ids_B[batch.new_B], batch.images_BHWC)
        return replace(batch, images_BHWC=self.cache.take(batch.ids_B), new_B=None)


def decode_threads(requested: int, local_ranks: int) -> int:
    """Threads for one process: as asked, or its share of the cores that it may use."""
    return requested or max(available_cores() // local_ranks, 1)
