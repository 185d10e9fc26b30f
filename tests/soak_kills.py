"""Kills runs at random moments, and holds what they come to against a run that was left alone.

    make soak                                 a hundred kills; half an hour on two idle cores
    python -m tests.soak_kills --kills 12     fewer

A run of two ranks trains on made chips that it fetches over HTTP into a cache which holds only some of them. Again and
again one of its ranks, its launcher, or everything at once is killed with SIGKILL: at any time, or when it is seen to
step, save, validate, fetch, or stand between two epochs. It is started again with --resume auto. The finished run's
weights, figures and thresholds must be, byte by byte, those of the undisturbed run, and nothing may be left behind: no
process, no half-written file, no part of a shard.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from shards.build import BuildOptions, build
from shards.labels import PLANET
from shards.reader import Dataset
from shards.synth import write_chips
from tests.conftest import REPOSITORY
from tests.file_server import FileServer, serving
from tests.test_train import results, words

VICTIMS = ("a rank", "the launcher", "everything")
MOMENTS = ("at any time", "mid-step", "mid-save", "mid-evaluation", "mid-fetch", "between epochs")
# More epochs than test_train's, so that a run outlives several kills, and saves within each.
EPOCHS = 8
STEPS_PER_EPOCH = 6  # 90 of 120 chips in steps of 16 or less, as tests.test_train.SMALL has it
CACHE_SHARDS = 3
START_SECONDS = 8.0  # that a start takes before its first step; a kill may come within it too
AIM_SECONDS = 30.0  # after which a kill stops waiting for its moment


@dataclass(frozen=True)
class Soak:
    """What runs train on.

    Attributes:
        dataset: what the server gives.
        server: gives each shard slowly.
        folder: of runs and caches.
    """

    dataset: Dataset
    server: FileServer
    folder: Path

    def command(self, run: Path, *more: str) -> list[str]:
        """Starts a run, or goes on with it."""
        largest = max(shard.bytes for shard in self.dataset.manifest.shards)
        over_http = f"runtime.cache_gib={CACHE_SHARDS * largest / 2**30}"
        shown = words(self.dataset, run, *more)
        shown[shown.index("--data") + 1] = self.server.url
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/cpu.yaml"]
        cache = f"runtime.cache_dir={self.cache(run)}"
        return [*launcher, "planet_dist/train.py", *shown, f"phases.0.epochs={EPOCHS}", over_http, cache]

    def cache(self, run: Path) -> Path:
        """The run's own cache."""
        return run.with_name(f"{run.name}-cache")

    def moment(self, run: Path) -> str:
        """What the run is seen to be about, by its files."""
        if any(self.cache(run).glob("*.part")):
            return "mid-fetch"
        if any((run / "checkpoints").glob(".step-*.tmp")):
            return "mid-save"
        logged = last_line(run / "metrics.jsonl")
        if logged is None or logged["step"] % STEPS_PER_EPOCH:
            return "mid-step"
        if logged["kind"] == "train":
            return "mid-evaluation"
        saved = (run / "checkpoints" / f"step-{logged['step']:08d}").exists()
        return "between epochs" if saved else "mid-save"


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole line of a log of JSON."""
    try:
        lines = path.read_text().split("\n")[:-1]
        return dict(json.loads(lines[-1])) if lines else None
    except FileNotFoundError:
        return None


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


def disturb(soak: Soak, run: Path, chance: random.Random) -> tuple[str, str] | None:
    """Starts a run and kills it; says whom and when, or None where it was finished first."""
    log = run.with_name(f"{run.name}.log")
    with log.open("ab") as file:
        launcher = subprocess.Popen(soak.command(run, "--resume", "auto"), cwd=REPOSITORY, stdout=file, stderr=file)
    aim, victim = chance.choice(MOMENTS), chance.choice(VICTIMS)
    since = time.monotonic()
    earliest = START_SECONDS * chance.uniform(0.3, 2.5)
    while launcher.poll() is None:
        waited = time.monotonic() - since
        if waited > earliest and (aim in ("at any time", soak.moment(run)) or waited > earliest + AIM_SECONDS):
            break
        time.sleep(0.002)
    if launcher.poll() is not None:
        assert launcher.returncode == 0, f"{run}: a start failed by itself, see {log}:\n{log.read_text()[-3000:]}"
        return None
    time.sleep(chance.uniform(0, 0.01))
    seen = soak.moment(run)
    kill(launcher, victim, chance)
    return victim, seen


def check_nothing_is_left(soak: Soak, run: Path) -> None:
    """Raises when a half-written file outlives a finished run."""
    left = [*run.rglob(".*.tmp"), *run.rglob("*.tmp"), *soak.cache(run).glob("*.part")]
    assert left == [], f"{run}: {left} are left behind"


def soak_runs(soak: Soak, kills: int, seed: int) -> Counter[str]:
    """Kills runs until there were `kills` of them, and checks each run that was finished in between."""
    chance = random.Random(seed)
    straight = soak.folder / "straight"
    subprocess.run(soak.command(straight), cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
    expected = results(straight)
    counted: Counter[str] = Counter()
    done = 0
    for number in itertools.count(1):
        if done >= kills:
            return counted
        run = soak.folder / f"run-{number}"
        reached: list[int] = []
        while (killed := disturb(soak, run, chance)) is not None:
            done += 1
            counted.update(killed)
            logged = last_line(run / "metrics.jsonl")
            reached.append(logged["epoch"] if logged else -1)
        counted["two or more in one epoch"] += len(reached) - len(set(reached))
        found = results(run)
        differing = [name for name in expected if expected[name] != found[name]]
        assert not differing, f"{run}: {differing} differ from the undisturbed run's after {dict(counted)}"
        check_nothing_is_left(soak, run)
        counted["finished runs, all identical"] += 1
        print(f"{done} kills: {dict(counted)}", flush=True)
        shutil.rmtree(run)
        shutil.rmtree(soak.cache(run))
    raise AssertionError("there are enough numbers")


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
        dataset = Dataset(out)
        with serving(out) as server:
            for shard in dataset.manifest.shards:
                server.faults[f"{shard.name}.tar"] = ["slow"] * 1_000_000
            counted = soak_runs(Soak(dataset, server, folder), asked.kills, asked.seed)
    print(f"done: {dict(counted)}")


if __name__ == "__main__":
    main()
