"""Workers answer in order, and end with the process that started them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.errors import PlanetError
from shards.workers import available_cores, map_in_order, worker_pool


def test_results_come_in_order_and_few_items_are_taken_ahead() -> None:
    taken = []

    def items() -> object:
        for number in range(20):
            taken.append(number)
            yield number

    with worker_pool(1) as pool:
        results = map_in_order(pool, str, items(), look_ahead=4)  # type: ignore[var-annotated,arg-type]
        assert next(results) == "0"
        assert len(taken) <= 4
        assert list(results) == [str(number) for number in range(1, 20)]


def test_a_worker_that_dies_is_an_error_that_names_memory_and_the_remedy() -> None:
    with worker_pool(2) as pool, pytest.raises(PlanetError, match="smaller --workers"):
        list(map_in_order(pool, os._exit, [1], look_ahead=2))  # type: ignore[arg-type,var-annotated]


def test_an_error_in_a_worker_reaches_the_caller() -> None:
    with worker_pool(1) as pool, pytest.raises(ZeroDivisionError):
        list(map_in_order(pool, (1).__truediv__, [0], look_ahead=2))


ORPHANING = """
import os, signal, time
from shards.workers import worker_pool
with worker_pool(2) as pool:
    pids = {pool.submit(os.getpid).result() for _ in range(4)}
    pool.submit(time.sleep, 60)
    print(*pids, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for a signal at the parent's end")
def test_workers_end_when_their_parent_is_killed() -> None:
    parent = subprocess.run([sys.executable, "-c", ORPHANING], capture_output=True, text=True, check=False)
    pids = parent.stdout.split()
    assert pids
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_cores_of_this_process_are_counted_not_the_machines() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from shards.workers import available_cores; print(available_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1" and available_cores() >= 1
