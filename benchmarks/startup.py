"""How long a command takes from its start to its first answer, in fresh processes.

    python benchmarks/startup.py

"first step" is the time from the start of train.py to its first optimizer step's line in metrics.jsonl, a small network
on made chips, W&B off and offline; the line is written while the second step is under way. Medians of interleaved runs
from a warm page cache, beside `import torch`, which is a part of each.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shards.build import BuildOptions, build
from shards.labels import PLANET
from shards.synth import write_chips

REPOSITORY = Path(__file__).parent.parent
TRAIN = ["planet_dist/train.py", "--recipe", "paper2-simple-cnn-64"]
SMALL = ["data.split=random:0.1", "data.kind=any", "phases.0.batch_size=16", "runtime.log_every_steps=1"]
LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", "launch/cpu.yaml"]


def command_seconds(*words: str) -> float:
    """From the start of a command to its end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def first_step_seconds(launcher: list[str], dataset: Path, out: Path, mode: str) -> float:
    """From the start of a training command to the line of its first step; the run is then ended."""
    words = [*launcher, *TRAIN, "--data", str(dataset), "--out", str(out), f"tracking.wandb={mode}", *SMALL]
    started = time.perf_counter()
    training = subprocess.Popen(
        [sys.executable, *words], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        metrics = out / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            assert training.poll() is None, f"{words}: ended with status {training.returncode}"
            time.sleep(0.005)
        return time.perf_counter() - started
    finally:
        os.kill(training.pid, signal.SIGKILL)  # its ranks die with it
        training.wait()


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_chips(folder / "chips", 256, "jpg", seed=1, size=64)
        dataset = folder / "dataset"
        build(BuildOptions(folder / "chips" / "train-jpg", folder / "chips" / "train.csv", dataset, PLANET))
        runs = (folder / f"run-{number}" for number in range(10**6))
        scripts = Path(sys.executable).parent
        contestants: dict[str, tuple[str, Callable[[], float]]] = {
            "planet-shard --help": ("<= 0.3", lambda: command_seconds(str(scripts / "planet-shard"), "--help")),
            "planet-dist --help": ("", lambda: command_seconds(str(scripts / "planet-dist"), "--help")),
            "import torch": ("", lambda: command_seconds("-c", "import torch")),
            "train.py, first step": ("<= 8", lambda: first_step_seconds([], dataset, next(runs), "off")),
            "  with W&B offline": ("", lambda: first_step_seconds([], dataset, next(runs), "offline")),
            "  accelerate launch, 2 processes": ("", lambda: first_step_seconds(LAUNCH, dataset, next(runs), "off")),
        }
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(args.rounds + 1):
            for name, (_, measure) in contestants.items():
                times[name].append(measure())
    table = Table(title=f"Seconds from the start, {os.cpu_count()} core(s), Python {sys.version.split()[0]}")
    for heading in ("command", "median", "goal", "spread"):
        table.add_column(heading, justify="left" if heading == "command" else "right")
    for name, (goal, _) in contestants.items():
        warm = times[name][1:]  # the first round warms the page cache
        table.add_row(name, f"{statistics.median(warm):.2f}", goal, f"{min(warm):.2f} .. {max(warm):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
