"""Kills runs at random moments, and holds what they come to against a run that was left alone.

    make soak                                 a hundred kills, two to an epoch at times; an hour on two cores
    python -m tests.soak_kills --kills 12     fewer

A run of two ranks trains on made chips. Again and again one of its ranks, its launcher, or everything at once is killed
with SIGKILL at a random moment, and it is started again with --resume auto. The finished run's weights, figures and
thresholds must be, byte by byte, those of the undisturbed run.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from shards.build import BuildOptions, build
from shards.labels import PLANET
from shards.reader import Dataset
from shards.synth import write_chips
from tests.conftest import REPOSITORY, launch
from tests.test_train import results, words

VICTIMS = ("a rank", "the launcher", "everything")
# More epochs than test_train's, so that a run outlives several kills, and saves within each.
LONG = ("phases.0.epochs=8",)
START_SECONDS = 8.0  # that a start takes before its first step; a kill may come within it too


def start(dataset: Dataset, run: Path) -> subprocess.Popen[bytes]:
    """Starts the run, or goes on with it."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/cpu.yaml"]
    return subprocess.Popen(
        [*command, "planet_dist/train.py", *words(dataset, run, "--resume", "auto"), *LONG],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill(launcher: subprocess.Popen[bytes], victim: str, chance: random.Random) -> None:
    """Kills, and waits until nothing of the start is left; what outlives its launcher by 60 s is a fault."""
    family = psutil.Process(launcher.pid).children(recursive=True)
    ranks = [child for child in family if "planet_dist/train.py" in " ".join(child.cmdline()[:4])]
    targets = {"the launcher": [launcher.pid], "everything": [launcher.pid, *(child.pid for child in family)]}
    for pid in targets.get(victim, [chance.choice(ranks).pid] if ranks else [launcher.pid]):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    launcher.wait(timeout=60)
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left, f"killed {victim}, and {left} outlive it"


def soak(dataset: Dataset, folder: Path, kills: int, seed: int) -> Counter[str]:
    """Kills runs until there were `kills` of them, and checks each run that was finished in between."""
    chance = random.Random(seed)
    straight = folder / "straight"
    done = launch("planet_dist/train.py", *words(dataset, straight), *LONG)
    assert done.returncode == 0, done.stderr
    expected = results(straight)
    counted: Counter[str] = Counter()
    number = 0
    while counted.total() - counted["finished runs"] < kills:
        number += 1
        run = folder / f"run-{number}"
        while True:
            launcher = start(dataset, run)
            deadline = time.monotonic() + START_SECONDS * chance.uniform(0.5, 3.0)
            while launcher.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if launcher.poll() is not None:
                assert launcher.returncode == 0, f"{run}: a start failed by itself"
                break
            victim = chance.choice(VICTIMS)
            kill(launcher, victim, chance)
            counted[victim] += 1
        found = results(run)
        differing = [name for name in expected if expected[name] != found[name]]
        assert not differing, f"{run}: {differing} differ from the undisturbed run's after {dict(counted)}"
        counted["finished runs"] += 1
        print(f"run {number} identical; so far {dict(counted)}", flush=True)
    return counted


def main() -> None:
    """Prints what was killed, and that all ended alike."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-kills-") as name:
        folder = Path(name)
        write_chips(folder / "chips", 120, "jpg", seed=5, size=32, workers=1)
        out = folder / "dataset"
        images, labels = folder / "chips/train-jpg", folder / "chips/train.csv"
        build(BuildOptions(images, labels, out, PLANET, shard_bytes=64 * 1024))
        counted = soak(Dataset(out), folder, asked.kills, asked.seed)
    print(f"{counted.total() - counted['finished runs']} kills, all identical: {dict(counted)}")


if __name__ == "__main__":
    main()
