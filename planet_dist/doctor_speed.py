"""How fast this machine would train, measured: the loader alone, the network alone, both together, and evaluation.

All of it is the run's own: its plan, its stream, its learner and its exchange between ranks, for a few steps. Large
networks on a CPU are measured on smaller batches and extrapolated. The functions here are collective: all ranks call
them, and all get the same answer.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from webdataset.pipeline import DataPipeline

from planet_dist.assembly import Parts
from planet_dist.config import Config, DataConfig, PhaseConfig
from planet_dist.data import Data
from planet_dist.evaluate import evaluate
from planet_dist.learner import Learner
from planet_dist.stream import Batch, DecodedBatches, OnDevice, PlannedSteps, Step, decode_threads
from shards.reader import Dataset

_LOADER_SECONDS = 2.0
_STRETCH_SECONDS = 2.0  # of steps on one batch, and again of steps on the stream
_STEP_SECONDS = 1.0  # of a step on a CPU: batches that would take longer are made smaller
_SAMPLING_SECONDS = 0.01
_WITHOUT_END = range(10**6)  # epochs, for a measurement that stops by the clock
_PREFETCH_BATCHES = 2


@dataclass(frozen=True)
class PhaseSpeed:
    """What a phase's steps came to.

    Attributes:
        rank_chips: of a step, for one rank, as measured.
        whole: whether that was a rank's share of the whole batch; if not, memory is extrapolated to it.
        model_images_per_second: over all ranks, on one batch that is held in memory.
        images_per_second: with the stream.
        wait_share: of the time with the stream, that the slowest rank waited for its batches.
        peak_bytes: of the rank that needs most: resident on a CPU, allocated on a GPU.
    """

    rank_chips: int
    whole: bool
    model_images_per_second: float
    images_per_second: float
    wait_share: float
    peak_bytes: int


class PeakMemory:
    """The most memory that this process has held within a block: resident on a CPU, allocated on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._process, self._over = device, psutil.Process(), threading.Event()
        self.peak_bytes = 0

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return self
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device)
            return
        self._over.set()
        self._sampler.join()

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)
            if self._over.wait(_SAMPLING_SECONDS):
                return


def loader_speed(
    dataset: Dataset,
    targets_NC: NDArray[np.uint8],
    steps: Iterable[Step],
    largest_batch: int,
    config: DataConfig,
    accelerator: Accelerator,
) -> float:
    """Images per second of all ranks' streams, to batches on their devices, while nothing computes."""
    stream = _stream(dataset, targets_NC, largest_batch, config, accelerator)
    accelerator.wait_for_everyone()
    started, images = time.perf_counter(), 0
    for batch in DataPipeline(lambda: iter(steps), stream, OnDevice(accelerator.device)):
        images += len(batch.ids_B)
        if time.perf_counter() - started > _LOADER_SECONDS:
            break
    rate = images / (time.perf_counter() - started)
    return float(sum(_from_all(rate, accelerator)))


def phase_speed(config: Config, number: int, data: Data, parts: Parts, accelerator: Accelerator) -> PhaseSpeed:
    """Takes steps of a phase, on batches as large as the recipe's where they can be had in time.

    Raises:
        ConfigError: the phase doesn't fit the network or the number of ranks.
    """
    phase, ranks = config.phases[number], accelerator.num_processes
    share = -(-phase.batch_size // ranks)
    learner = Learner(
        phase,
        parts.model,
        parts.loss,
        parts.preprocess,
        accelerator,
        steps_per_epoch=data.plan(config, phase).steps_per_epoch,
        seed=config.seed,
    )
    bench = _Bench(config, phase, data, accelerator, learner)
    chips, peaks = share, []
    if accelerator.device.type == "cpu":
        smallest = min(2 * phase.accumulate, share)
        with PeakMemory(accelerator.device) as small:
            seconds = bench.resident(smallest, steps=2)
        affordable = int(_STEP_SECONDS / seconds * smallest)
        chips = share if 2 * affordable >= share else max(affordable, 2 * smallest)
        peaks.append((smallest, small.peak_bytes))
    chips = min(chips, share)
    with PeakMemory(accelerator.device) as memory:
        first = bench.resident(chips, steps=2)
        seconds = bench.resident(chips, steps=_steps(first))
        images_per_second, wait_share = bench.streamed(chips, _steps(seconds))
    peaks.append((chips, memory.peak_bytes))
    learner.close()
    return PhaseSpeed(
        chips,
        chips == share,
        chips * ranks / seconds,
        images_per_second,
        wait_share,
        round(max(_from_all(extrapolated(peaks, share), accelerator))),
    )


def extrapolated(peaks: list[tuple[int, int]], share: int) -> float:
    """The peak in bytes at a rank's whole share, by the line through the peaks (chips, bytes) of smaller ones."""
    chips, peak_bytes = peaks[-1]
    if len(peaks) == 1 or chips == peaks[0][0]:
        return peak_bytes
    slope = max(peak_bytes - peaks[0][1], 0) / (chips - peaks[0][0])
    return peak_bytes + slope * (share - chips)


def evaluate_speed(config: Config, data: Data, parts: Parts, speed: PhaseSpeed, accelerator: Accelerator) -> float:
    """Validation chips per second over all ranks, one view each, decoding included."""
    ranks, batch_size = accelerator.num_processes, config.evaluate.batch_size
    if accelerator.device.type == "cpu":
        affordable = int(_STEP_SECONDS * 3 * speed.model_images_per_second / ranks)
        batch_size = min(batch_size, max(affordable, 1))
    ids_N = data.split.val_ids[: 2 * batch_size * ranks]
    decoded = _stream(data.dataset, data.targets_NC, batch_size, config.data, accelerator)

    def run() -> None:
        with accelerator.autocast():
            evaluate(
                parts.model,
                parts.loss.independent_logits,
                parts.preprocess,
                decoded,
                ids_N,
                batch_size=batch_size,
                turns=1,
                accelerator=accelerator,
            )

    return len(ids_N) / max(_from_all(_seconds(run, accelerator), accelerator))


def run_seconds(config: Config, data: Data, rates: list[float], evaluate_rate: float) -> float:
    """How long a run takes at these images per second, a rate for each phase; start and checkpoints left out."""
    train, validate = len(data.split.train_ids), len(data.split.val_ids) / evaluate_rate
    phases = zip(config.phases, rates, strict=True)
    training = sum(phase.epochs * (train / rate + validate) for phase, rate in phases)
    return training + config.evaluate.turns * validate


class _Bench:
    """Steps of one learner, on batches of a size of their own."""

    def __init__(
        self, config: Config, phase: PhaseConfig, data: Data, accelerator: Accelerator, learner: Learner
    ) -> None:
        self.config, self.phase, self.data, self.accelerator, self.learner = config, phase, data, accelerator, learner
        self._done = 0

    def resident(self, chips: int, steps: int) -> float:
        """Seconds of a step on one batch that stays in memory, without the first of them."""
        batch, length = next(iter(self._batches(chips)))
        batch = replace(batch, images_BHWC=batch.images_BHWC.clone())
        self._step(batch, length)

        def run() -> None:
            for _ in range(steps - 1):
                self._step(batch, length)

        return max(_from_all(_seconds(run, self.accelerator) / (steps - 1), self.accelerator))

    def streamed(self, chips: int, steps: int) -> tuple[float, float]:
        """Images per second with the stream, and the share of the time that the slowest rank waited for it."""
        batches = iter(self._batches(chips))
        # What the stream has decoded before the first step would make the rest look faster than it is.
        for batch, length in islice(batches, _PREFETCH_BATCHES + 1):
            self._step(batch, length)
        images, waited = 0, 0.0

        def run() -> None:
            nonlocal images, waited
            for _ in range(steps):
                asked = time.perf_counter()
                batch, length = next(batches)
                waited += time.perf_counter() - asked
                images += length
                self._step(batch, length)

        seconds = max(_from_all(_seconds(run, self.accelerator), self.accelerator))
        return images / seconds, max(_from_all(waited, self.accelerator)) / seconds

    def _batches(self, chips: int) -> Iterable[tuple[Batch, int]]:
        """This rank's batches of so many chips, and the samples of all ranks' together."""
        ranks = self.accelerator.num_processes
        plan = self.data.plan(
            self.config, self.phase.model_copy(update={"batch_size": min(chips * ranks, self.phase.batch_size)})
        )
        source = PlannedSteps(plan, _WITHOUT_END, 0, rank=self.accelerator.process_index, num_ranks=ranks)
        data = self.config.data.model_copy(update={"prefetch_batches": _PREFETCH_BATCHES})
        decoded = _stream(
            self.data.dataset, self.data.targets_NC, plan.largest_rank_batch(ranks), data, self.accelerator
        )
        for batch in DataPipeline(source, decoded, OnDevice(self.accelerator.device)):
            yield batch, plan.batch_length(batch.step)

    def _step(self, batch: Batch, length: int) -> None:
        self.learner.step(batch, self._done, length)
        deque(self.learner.results(unread=1), maxlen=0)
        self._done += 1


def _stream(
    dataset: Dataset, targets_NC: NDArray[np.uint8], largest_batch: int, config: DataConfig, accelerator: Accelerator
) -> DecodedBatches:
    return DecodedBatches(
        dataset,
        targets_NC,
        largest_batch,
        threads=decode_threads(config.threads, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
        prefetch_batches=config.prefetch_batches,
        pinned=accelerator.device.type == "cuda",
    )


def _steps(step_seconds: float) -> int:
    return min(max(math.ceil(_STRETCH_SECONDS / step_seconds), 4), 200)


def _seconds(run: Callable[[], None], accelerator: Accelerator) -> float:
    """How long a call takes, the device's part of it included."""
    accelerator.wait_for_everyone()
    started = time.perf_counter()
    run()
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)
    return time.perf_counter() - started


def _from_all(value: float, accelerator: Accelerator) -> list[float]:
    """Every rank's value."""
    own = torch.tensor([value], dtype=torch.float64, device=accelerator.device)
    values: list[float] = accelerator.gather(own).tolist()
    return values
