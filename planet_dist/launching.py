"""Runs as processes of their own: the command that trains one, and what to do when it stops.

Each run gets a launcher, and so processes, devices and memory that no earlier run has touched.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from shards.errors import ConfigError, TrainingError
from shards.workers import die_with_parent

_PACKAGE = Path(__file__).parent


def default_launch_file() -> Path:
    """The repository's launch file for this machine: cpu.yaml, or one_gpu.yaml where torch finds a GPU.

    Raises:
        ConfigError: the package is installed without its repository.
    """
    import torch

    name = "one_gpu.yaml" if torch.cuda.is_available() else "cpu.yaml"
    path = _PACKAGE.parent / "launch" / name
    if not path.is_file():
        raise ConfigError(f"{path}: no such file beside the package; give --launch-config with one of your own")
    return path


def launcher(launch_file: Path) -> list[str]:
    """The words that start processes as a launch file says; what they shall run comes after them."""
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch_file)]


def training_command(
    recipe: str, data: str | Path, out: Path, overrides: Sequence[str], launch_file: Path
) -> list[str]:
    """The words that train a run, or go on with it where it was stopped.

    Args:
        recipe: its name, or the path of a TOML file.
        data: the dataset.
        out: the run's folder.
        overrides: "section.key=value".
        launch_file: for accelerate launch.
    """
    run = ["--recipe", recipe, "--data", str(data), "--out", str(out), "--resume", "auto"]
    return [*launcher(launch_file), str(_PACKAGE / "train.py"), *run, *overrides]


def run_training(command: Sequence[str], what: str, log: Path | None = None, devices: Sequence[str] = ()) -> None:
    """Runs a training command to its end.

    When this process ends before, the training is asked to save and to end; a Ctrl-C is the training's too, and what it
    saves is waited for.

    Args:
        what: the run's name in errors.
        log: gets its output, after what is there; None lets it go where this process's goes.
        devices: the GPUs that it may see, in CUDA_VISIBLE_DEVICES' terms; none lets it see what this process sees.

    Raises:
        TrainingError: it ended with another status than 0.
    """
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {})
    with nullcontext() if log is None else log.open("a") as output:
        training = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509 - takes no lock
        )
        try:
            status = training.wait()
        except KeyboardInterrupt:
            training.wait()
            raise
    if status:
        raise TrainingError(
            f"{what}: training ended with status {status}, for the reason "
            f"{'printed above' if log is None else f'at the end of {log}'}; "
            "run the same command again to go on from its newest checkpoint"
        )


def visible_devices() -> list[str]:
    """The GPUs that this process sees, in CUDA_VISIBLE_DEVICES' terms."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [word.strip() for word in named.split(",")][:count] if named else [str(i) for i in range(count)]
