"""Where a training process's time goes: waiting, decoding, copying, computing, exchanging, all of it measured always.

What each share is a share of, and what it means:
    wait      of training time: what computes had no batch. On a CPU the host waited for the stream; on a GPU the device
              had nothing to do between the end of a step and the beginning of the next.
    compute   of training time: steps, without `exchange`.
    exchange  of training time: gradients and losses on their way between ranks while nothing else went on; waiting for
              a slower rank is a part of it. What overlaps with the backward pass is not. (DDP tells of a step when the
              next one begins: of an epoch's last, with the next epoch's first.)
    decode    of the decoding threads' time: they read and decoded chips. Near 1, they are all that the loader can give.
    copy      of training time: batches on their way to a GPU, beside computing; 0 on a CPU, where nothing is copied.
wait, compute and exchange follow each other, and add up to less than 1: logging and the reading of results is the rest.
Validating and saving are not training time.

On a GPU times are taken by events in its queue, and read once they are past: nothing waits for the device.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, ParamSpec

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Activity = Literal["wait", "decode", "copy", "compute", "exchange"]
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class _Reading:
    """What had been counted by the end of a step: training seconds, images, and the host's seconds by activity."""

    seconds: float
    images: int
    spent: dict[str, float]


class Stopwatch:
    """Counts a process's seconds by activity.

    What a step came to is read when the next one is under way, and so is the stopwatch: lap() ends a step's time,
    read_lap() comes to it later.

    Args:
        device: that computes.
        decode_threads: of this process.
        on: False measures nothing, for ranks that don't log.
        traced: whether each activity is a span of that name in a trace that may be recorded.
    """

    def __init__(self, device: torch.device, decode_threads: int = 1, *, on: bool = True, traced: bool = False) -> None:
        self._device, self._threads, self._on, self._traced = device, decode_threads, on, traced
        self._lock = threading.Lock()
        self._spent: dict[str, float] = dict.fromkeys(("wait", "decode", "copy", "compute", "exchange"), 0.0)
        self._unread: deque[tuple[Activity, torch.cuda.Event, torch.cuda.Event]] = deque()
        self._step_end: torch.cuda.Event | None = None
        self._gradients = Gradients(None)
        self._began, self._images = time.perf_counter(), 0
        self._laps: deque[_Reading] = deque()
        self._now = self._logged = _Reading(0.0, 0, dict(self._spent))

    @classmethod
    def off(cls) -> Stopwatch:
        """One that measures nothing."""
        return cls(torch.device("cpu"), on=False)

    def follow(self, wrapped: nn.Module) -> None:
        """Has the gradients of a network counted that Accelerate has prepared."""
        if self._on:
            self._gradients = Gradients(wrapped)

    def waiting(self) -> AbstractContextManager[None]:
        """Around asking the stream for a batch."""
        if self._on and self._device.type == "cuda":
            if self._step_end is None:
                self._step_end = _event()
            return self._named("wait")
        return self._span("wait")

    def computing(self) -> AbstractContextManager[None]:
        """Around a step."""
        if self._on and self._device.type == "cuda":
            return self._step_on_device()
        return self._span("compute")

    def exchanging(self) -> AbstractContextManager[None]:
        """Around an exchange between ranks within a step."""
        if self._on and self._device.type == "cuda":
            return self._events("exchange")
        return self._span("exchange")

    def copying(self) -> AbstractContextManager[None]:
        """Around enqueueing a copy to a device, on the stream that copies."""
        if self._on and self._device.type == "cuda":
            return self._events("copy")
        return self._named("copy")

    def decode(self, work: Callable[Arguments, None], *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        """Does a decoding thread's work."""
        with self._span("decode"):
            work(*args, **kwargs)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what isn't training: validating, saving."""
        began, decoding = time.perf_counter(), self._spent["decode"]
        yield
        self._began += time.perf_counter() - began
        self._spent["decode"] = decoding
        self._step_end = None

    def lap(self, images: int) -> None:
        """Ends the time of a step of so many images over all ranks."""
        self._images += images
        if self._on:
            with self._lock:
                spent = dict(self._spent)
            self._laps.append(_Reading(time.perf_counter() - self._began, self._images, spent))

    def read_lap(self) -> float:
        """Comes to the end of the oldest step that was not read yet.

        Returns:
            Seconds of it that were waited.
        """
        before, now = self._now, self._laps.popleft()
        if self._device.type == "cuda":
            self._read_events()
            now = replace(now, spent=dict(self._spent))
        self._now = now
        return now.spent["wait"] - before.spent["wait"]

    def rates(self) -> dict[str, float]:
        """images_per_second, the shares, gpu_memory_gib (most allocated, on a GPU alone) and seconds of training time.

        From the step where they were last asked for to the one that was read last.
        """
        before, now = self._logged, self._now
        seconds = max(now.seconds - before.seconds, 1e-9)
        spent = {activity: now.spent[activity] - before.spent[activity] for activity in now.spent}
        exchange = spent["exchange"] + self._gradients.exposed_seconds()
        rates = {
            "images_per_second": (now.images - before.images) / seconds,
            "wait_share": spent["wait"] / seconds,
            "decode_share": spent["decode"] / (self._threads * seconds),
            "copy_share": spent["copy"] / seconds,
            "compute_share": max(spent["compute"] - exchange, 0.0) / seconds,
            "exchange_share": exchange / seconds,
        }
        if self._device.type == "cuda":
            rates["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        self._logged = now
        return rates | {"seconds": seconds}

    def _named(self, activity: Activity) -> AbstractContextManager[None]:
        return torch.profiler.record_function(activity) if self._traced else nullcontext()

    def _span(self, activity: Activity) -> AbstractContextManager[None]:
        return _HostSpan(self._add, activity, self._named(activity)) if self._on else self._named(activity)

    def _add(self, activity: Activity, seconds: float) -> None:
        with self._lock:
            self._spent[activity] += seconds

    @contextmanager
    def _events(self, activity: Activity) -> Iterator[None]:
        began = _event()
        with self._named(activity):
            yield
        self._unread.append((activity, began, _event()))

    @contextmanager
    def _step_on_device(self) -> Iterator[None]:
        began = _event()
        if self._step_end is not None:
            self._unread.append(("wait", self._step_end, began))
        with self._named("compute"):
            yield
        self._step_end = _event()
        self._unread.append(("compute", began, self._step_end))

    def _read_events(self) -> None:
        for _ in range(len(self._unread)):
            activity, began, ended = self._unread.popleft()
            if ended.query():
                self._add(activity, began.elapsed_time(ended) / 1000)
            else:
                self._unread.append((activity, began, ended))


class _HostSpan:
    """Adds a block's seconds on the host's clock; a class, for it costs half of a generator."""

    __slots__ = ("_activity", "_add", "_began", "_named")

    def __init__(
        self, add: Callable[[Activity, float], None], activity: Activity, named: AbstractContextManager[None]
    ) -> None:
        self._add, self._activity, self._named = add, activity, named

    def __enter__(self) -> None:
        self._named.__enter__()
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._add(self._activity, time.perf_counter() - self._began)
        self._named.__exit__(kind, error, trace)


class Gradients:
    """How long a rank waited for gradients that were exchanged, by DDP's own account.

    DDP notes when the backward pass ended and when the last reduction did. On a CPU it's asked to do so in every step;
    on a GPU it would wait for the device each time, so that its own rate stays, the first ten steps and one in a
    hundred, and the newest of them stands for the others.

    Args:
        wrapped: the network as Accelerate prepared it; without DDP, or None, nothing is exchanged.
    """

    def __init__(self, wrapped: nn.Module | None) -> None:
        self._ddp = wrapped if isinstance(wrapped, DistributedDataParallel) else None
        self._every_step = self._ddp is not None and next(self._ddp.parameters()).device.type == "cpu"
        self._read_seconds, self._read_steps = 0.0, 0
        if self._ddp is not None and self._every_step:
            self._ddp._set_ddp_runtime_logging_sample_rate(1)

    def exposed_seconds(self) -> float:
        """Since the last reading: from the end of the backward pass to that of the reductions, summed over the steps.

        A step is noted when the next one begins.
        """
        if self._ddp is None:
            return 0.0
        noted: dict[str, int] = self._ddp._get_ddp_logging_data()
        if "backward_comm_time" not in noted:
            return 0.0
        steps = noted["iteration"]
        if self._every_step:
            total = float(steps * _exposed(noted, "avg_"))
        else:
            total = self._read_seconds + (steps - self._read_steps) * _exposed(noted, "")
        new, self._read_seconds, self._read_steps = total - self._read_seconds, total, steps
        return new


def _exposed(noted: dict[str, int], prefix: str) -> float:
    nanoseconds = noted[f"{prefix}backward_comm_time"] - noted[f"{prefix}backward_compute_comm_overlap_time"]
    return max(nanoseconds, 0) / 1e9


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
