"""What the launch file asked for, held against what runs.

`accelerate launch` falls back to one process or to another device without a word (with --cpu --num_processes 2
it runs one), and a run that trains on a quarter of the machine looks like one that doesn't. So train.py finds the
launcher among its parents, reads what it was told, and stops when the two differ.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser

from shards.errors import ConfigError
from shards.workers import die_with_parent


@dataclass(frozen=True)
class Launch:
    """What the launcher was told.

    Attributes:
        source: the launch file, or "the command line".
        num_processes: over all machines; 0 where nothing was said.
        device: "cpu", "gpu", or "any" where nothing was said.
        mixed_precision: "no", "bf16" or "fp16".
    """

    source: str
    num_processes: int
    device: str
    mixed_precision: str


def end_with_launcher() -> None:
    """Lets a rank end with the launcher that started it, however that ends, and at once where it has ended already.

    The launcher gives each rank a session of its own, so that a killed one would leave its ranks waiting for each
    other. A run started by hand may outlive its shell.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    die_with_parent()
    try:
        parent = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        parent = []
    # An orphan's next parent knows nothing of this script.
    if Path(sys.argv[0]).name not in {Path(word).name for word in parent}:
        os._exit(1)


def find_launch() -> Launch | None:
    """The launch that this process belongs to, or None when it was started without accelerate."""
    for parent in psutil.Process().parents():
        try:
            words = parent.cmdline()
        except psutil.Error:
            continue
        arguments = _launcher_arguments(words)
        if arguments is not None:
            return read_launch(arguments)
    return None


def _launcher_arguments(words: list[str]) -> list[str] | None:
    """What follows `accelerate launch` on a command line, in any of the ways to write it."""
    for place, word in enumerate(words[:4]):
        name = Path(word).name
        if name == "accelerate" and words[place + 1 : place + 2] == ["launch"]:
            return words[place + 2 :]
        if (
            name == "accelerate-launch"
            or word == "accelerate.commands.launch"
            or (name == "launch.py" and Path(word).parent.name == "commands")
        ):
            return words[place + 1 :]
    return None


def read_launch(arguments: list[str]) -> Launch:
    """Reads the words after `accelerate launch`, and the launch file that they name."""
    args, _ = launch_command_parser().parse_known_args(arguments)
    path = args.config_file
    if path is None and Path(default_config_file).is_file() and not args.cpu:
        path = default_config_file
    num_processes, device, precision = (
        args.num_processes or 0,
        "cpu" if args.cpu else "any",
        args.mixed_precision,
    )
    if path is not None:
        file = load_config_from_file(path)
        num_processes = num_processes or file.num_processes or 0
        device = "cpu" if args.cpu or file.use_cpu else "gpu"
        precision = precision or file.mixed_precision
    return Launch(path or "the command line", num_processes, device, str(precision or "no"))


def check_launch(launch: Launch | None) -> bool:
    """Holds the launch against this process.

    Returns:
        Whether to compute on the CPU.

    Raises:
        ConfigError: another number of processes, another device, or a precision that the device lacks.
    """
    has_gpu = torch.cuda.is_available()
    if launch is None:
        return not has_gpu
    running = int(os.environ.get("WORLD_SIZE", "1"))
    if launch.num_processes and running != launch.num_processes:
        raise ConfigError(
            f"{launch.source} asks for {launch.num_processes} processes, and {running} run(s): the launcher fell "
            "back in silence. Use a file with distributed_type: MULTI_GPU (it serves the CPU too), such as "
            "launch/cpu.yaml, and do not pass --cpu"
        )
    if launch.device == "gpu" and not has_gpu:
        raise ConfigError(
            f"{launch.source} asks for GPUs, and torch sees none (built for CUDA {torch.version.cuda}); "
            "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use launch/cpu.yaml"
        )
    on_cpu = launch.device == "cpu" or not has_gpu
    if not on_cpu and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > torch.cuda.device_count():
        raise ConfigError(
            f"{launch.source} asks for {os.environ['LOCAL_WORLD_SIZE']} processes on this host, which has "
            f"{torch.cuda.device_count()} GPU(s); give it one process a GPU"
        )
    if launch.mixed_precision not in ("no", "bf16", "fp16"):
        raise ConfigError(
            f"{launch.source}: mixed_precision {launch.mixed_precision!r} is not supported; use no, bf16 or fp16"
        )
    if launch.mixed_precision == "fp16" and on_cpu:
        raise ConfigError(f"{launch.source}: mixed_precision fp16 needs a GPU; use bf16 or no on a CPU")
    return on_cpu
