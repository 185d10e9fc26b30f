"""A rank that dies or hangs is named, and ends the run within the stated time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from planet_dist.liveness import Pulse, Watch, at_fault, standstill
from shards.reader import Dataset
from tests.conftest import REPOSITORY
from tests.test_train import words


def pulse(rank: int, beats: int, looks: int = 5) -> Pulse:
    return Pulse(rank, f"host{rank // 2}", 1000 + rank, 1.0, beats, f"step {beats}", looks)


def test_the_rank_that_got_least_far_is_the_one_waited_for() -> None:
    then = [pulse(rank, 7 - (rank == 2)) for rank in range(4)]
    now = [replace(one, looks=9) for one in then]
    assert at_fault(then, now) == [now[2]]
    assert "rank 2 (process 1002 on host1), last heard of at step 6" in standstill([now[2]], now, 600)


def test_a_rank_whose_thread_fell_silent_is_at_fault_though_it_got_as_far_as_the_others() -> None:
    then = [pulse(rank, 7) for rank in range(4)]
    now = [replace(one, looks=5 if one.rank == 3 else 9) for one in then]
    assert at_fault(then, now) == [now[3]]


def test_nobody_is_blamed_where_all_wait_alike() -> None:
    then = [pulse(rank, 7) for rank in range(4)]
    now = [replace(one, looks=9) for one in then]
    assert at_fault(then, now) == []
    said = standstill([], now, 60)
    assert "all 4 ranks" in said and "host0, host1" in said


def test_no_thread_is_left_asking_the_store_when_a_rank_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    asked = threading.Event()

    def slowly(self: Watch) -> list[Pulse]:
        asked.set()
        time.sleep(0.3)  # as long as a busy store may take
        return []

    monkeypatch.setattr(Watch, "_pulses", slowly)
    monkeypatch.setattr("planet_dist.liveness._MOST_SECONDS_BETWEEN_LOOKS", 0.01)
    with Watch(0, 2, 3600.0, pytest.fail):
        assert asked.wait(60)
    assert "liveness" not in {thread.name for thread in threading.enumerate()}


class Started:
    """A run of two ranks that has come to its second checkpoint."""

    def __init__(self, dataset: Dataset, run: Path, log: Path, *more: str) -> None:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/cpu.yaml"]
        self.log = log
        with log.open("wb") as file:
            self.launcher = subprocess.Popen(
                [*command, "planet_dist/train.py", *words(dataset, run), "phases.0.epochs=500", *more],
                cwd=REPOSITORY,
                stdout=file,
                stderr=file,
                # How long the launcher waits for ranks that do not end when asked, before it kills them.
                env=os.environ | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1"},
            )
        deadline = time.monotonic() + 120
        while not (run / "checkpoints" / "step-00000004").exists():
            assert time.monotonic() < deadline and self.launcher.poll() is None, log.read_text()
            time.sleep(0.01)
        self.family = psutil.Process(self.launcher.pid).children(recursive=True)

    def rank(self, number: int) -> int:
        """A rank's process id."""
        [found] = [one.pid for one in self.family if one.environ().get("RANK") == str(number)]
        return found


@pytest.fixture
def started(dataset: Dataset, tmp_path: Path) -> Iterator[Started]:
    one = Started(dataset, tmp_path / "run", tmp_path / "log", "runtime.timeout_minutes=0.05")
    yield one
    for process in [one.launcher, *one.family]:
        if isinstance(process, subprocess.Popen) or process.is_running():
            process.kill()
    one.launcher.wait()


@pytest.mark.parametrize(
    ("how", "said"), [(signal.SIGKILL, "has died, last heard of at"), (signal.SIGSTOP, "has stood still")]
)
def test_a_rank_that_dies_or_hangs_takes_the_run_down_and_is_named(
    started: Started, tmp_path: Path, how: signal.Signals, said: str
) -> None:
    victim = started.rank(1)
    os.kill(victim, how)
    assert started.launcher.wait(timeout=60) != 0
    _, left = psutil.wait_procs(started.family, timeout=20)
    assert left == []
    lines = [line for line in started.log.read_text().splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert said in lines[0] and re.search(rf"rank 1 \(process {victim} on \S+\)", lines[0])
    if how == signal.SIGSTOP:
        assert json.loads((tmp_path / "run" / "stopped.json").read_text())["reason"] in lines[0]
