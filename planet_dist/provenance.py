"""How a run was started: from which code, with which libraries, on what. Nothing secret, no folder but those given."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from planet_dist.runstate import this_process
from shards.location import redact
from shards.workers import available_cores

LIBRARIES = ("planet-dist", "torch", "torchvision", "accelerate", "webdataset", "numpy")
_GIT_SECONDS = 10.0


def describe_start(recipe: str, data_location: str, accelerator: Accelerator) -> dict[str, Any]:
    """What RUN/start.json keeps of a start: recipe, data, time, environment, and rank 0's process.

    Args:
        recipe: as it was given.
        data_location: as it was given; credentials in it are hidden.
    """
    return {
        "recipe": recipe,
        "data": redact(data_location, data_location),
        "time": time.time(),
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "device": device_name(accelerator.device),
        "cores": available_cores(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if accelerator.device.type == "cuda" else None,
        "versions": {name: version(name) for name in LIBRARIES},
        "commit": commit(Path(__file__).parent.parent),
        "process": this_process(),
    }


def device_name(device: torch.device) -> str:
    """What a person calls a device: the GPU's name, or the processor's kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})"


def commit(repository: Path) -> str | None:
    """The commit of a git checkout, with "+changes" where files differ from it; None where it isn't one."""
    if not (repository / ".git").exists():
        return None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(repository), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_SECONDS,
            env=environment,
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
