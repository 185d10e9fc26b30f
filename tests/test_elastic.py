"""Four ranks, killed: on four again they end with the same bytes, on two and then one they take the same chips."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

from shards.reader import Dataset
from tests.conftest import REPOSITORY
from tests.test_train import results, words

STEPS_PER_EPOCH = 6  # 90 chips that train in batches of 15 or less
EPOCHS = 3


class Recorded:
    """A run whose ranks note which chips they take.

    Args:
        folder: of the records of all starts; the run is folder / "run".
    """

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        self.dataset, self.folder, self.run = dataset, folder, folder / "run"
        self.starts: list[Path] = []

    def start(self, ranks: int, *, kill_at_step: int | None = None) -> None:
        """Runs to its end, or kills launcher and ranks once a checkpoint of a step stands there."""
        records = self.folder / f"start-{len(self.starts)}"
        records.mkdir(parents=True)
        self.starts.append(records)
        how = ["--config_file", "launch/cpu.yaml", "--num_processes", str(ranks)]
        if ranks == 1:
            how = ["--num_processes", "1", "--mixed_precision", "bf16"]
        log = self.folder / f"start-{len(self.starts)}.log"
        with log.open("wb") as file:
            command = [
                sys.executable,
                "-m",
                "accelerate.commands.launch",
                *how,
                "tests/ranks_recording.py",
                str(records),
            ]
            launcher = subprocess.Popen(
                [*command, *words(self.dataset, self.run, "--resume", "auto")],
                cwd=REPOSITORY,
                stdout=file,
                stderr=file,
            )
        if kill_at_step is None:
            assert launcher.wait(timeout=240) == 0, log.read_text()
            return
        deadline = time.monotonic() + 240
        while not (self.run / "checkpoints" / f"step-{kill_at_step:08d}").exists():
            assert time.monotonic() < deadline and launcher.poll() is None, log.read_text()
            time.sleep(0.002)
        family = psutil.Process(launcher.pid).children(recursive=True)
        for pid in (launcher.pid, *(one.pid for one in family)):
            os.kill(pid, signal.SIGKILL)
        launcher.wait()
        assert psutil.wait_procs(family, timeout=20)[1] == []

    def global_batches(self) -> dict[int, list[int]]:
        """The ids of each step's global batch, in order; of a step that was taken again, the last time."""
        taken: dict[int, list[int]] = {}
        for records in self.starts:
            parts: dict[int, dict[int, list[int]]] = {}
            for path in records.iterdir():
                for line in read(path):
                    note = json.loads(line)
                    parts.setdefault(note["step"], {})[note["rank"]] = note["ids"]
            for step, by_rank in parts.items():
                # What a kill cut off, not every rank has begun; it is taken again by the next start.
                taken[step] = [chip for rank in sorted(by_rank) for chip in by_rank[rank]]
        return taken

    def copied(self, folder: Path) -> Recorded:
        """This run as it is now, to go on in another way."""
        shutil.copytree(self.folder, folder, symlinks=True)
        other = Recorded(self.dataset, folder)
        other.starts = [folder / start.name for start in self.starts]
        return other


@pytest.fixture(scope="module")
def straight(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Four ranks that nobody disturbed."""
    run = Recorded(dataset, tmp_path_factory.mktemp("elastic") / "straight")
    run.start(4)
    return run


@pytest.fixture(scope="module")
def killed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Four ranks, killed all at once within the second epoch."""
    run = Recorded(dataset, tmp_path_factory.mktemp("elastic") / "killed")
    run.start(4, kill_at_step=8)
    return run


def epochs(batches: dict[int, list[int]]) -> Sequence[list[int]]:
    assert sorted(batches) == list(range(STEPS_PER_EPOCH * EPOCHS))
    return [
        [chip for step in range(first, first + STEPS_PER_EPOCH) for chip in batches[step]]
        for first in range(0, STEPS_PER_EPOCH * EPOCHS, STEPS_PER_EPOCH)
    ]


def test_four_ranks_killed_in_an_epoch_and_resumed_end_with_the_same_bytes(
    straight: Recorded, killed: Recorded, tmp_path: Path
) -> None:
    again = killed.copied(tmp_path / "again")
    again.start(4)
    expected, found = results(straight.run), results(again.run)
    assert [name for name in expected if expected[name] != found[name]] == []


def test_killed_on_four_and_resumed_on_two_and_then_one_every_step_takes_the_same_chips(
    straight: Recorded, killed: Recorded, tmp_path: Path
) -> None:
    fewer = killed.copied(tmp_path / "fewer")
    fewer.start(2, kill_at_step=14)
    fewer.start(1)
    assert fewer.global_batches() == straight.global_batches()
    trained = np.sort(epochs(straight.global_batches())[0]).tolist()
    assert len(trained) == 90
    for epoch in epochs(fewer.global_batches()):
        assert np.sort(epoch).tolist() == trained
    one, other = ([json.loads(line) for line in read(run.run / "metrics.jsonl")] for run in (straight, fewer))
    assert [(line["kind"], line["step"]) for line in one] == [(line["kind"], line["step"]) for line in other]


def read(path: Path) -> list[str]:
    return path.read_text().splitlines()
