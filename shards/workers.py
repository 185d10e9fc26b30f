"""Worker processes that answer in order, and that never outlive the process that started them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from shards.errors import PlanetError

Item = TypeVar("Item")
Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1


def available_cores() -> int:
    """How many cores this process may use, which a container or job can set below the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def worker_pool(workers: int, *, most_threads: int = 1) -> Iterator[Executor]:
    """Workers for as long as the block runs: processes, or threads of this process for up to `most_threads`.

    Threads hand over what they made without copying it, and wait for each other at the interpreter lock.
    """
    executor: Executor
    if workers <= most_threads:
        executor = ThreadPoolExecutor(workers)
    else:
        context = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def map_in_order(
    executor: Executor, function: Callable[[Item], Result], items: Iterable[Item], look_ahead: int
) -> Iterator[Result]:
    """Results in the items' order, with at most `look_ahead` of them under way or waiting to be taken.

    Raises:
        PlanetError: a worker process died.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) >= look_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise PlanetError(
            "a worker process died, most often because the kernel stopped it when memory ran out; "
            "run the same command again with a smaller --workers"
        ) from error


def die_with_parent(parent_pid: int | None = None, by: signal.Signals = signal.SIGKILL) -> None:
    """Asks Linux to end this process with its parent, however that ends; elsewhere nothing happens.

    Args:
        parent_pid: the parent's own account of its id, where it gave one: a parent that ended before this call
            is then noticed too, and this process ends at once.
        by: the signal that it then gets; one that it handles lets it save first.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
        if parent_pid is not None and os.getppid() != parent_pid:
            os._exit(1)


def _start_worker(parent_pid: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers
    die_with_parent(parent_pid)
