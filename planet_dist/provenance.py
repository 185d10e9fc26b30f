"""How a run was started: from which code, with which libraries, on what. Nothing secret, no folder but those given."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from typing import Any

import torch
from accelerate import Accelerator

from planet_dist.git_state import git_state
from planet_dist.runstate import this_process
from shards.location import redact
from shards.workers import available_cores

LIBRARIES = ("planet-dist", "torch", "torchvision", "accelerate", "webdataset", "numpy")


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
        "git": git_state(),
        "process": this_process(),
    }


def device_name(device: torch.device) -> str:
    """What a person calls a device: the GPU's name, or the processor's kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})"
