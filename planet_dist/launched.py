"""What the launch file asked for, held against what runs.

`accelerate launch` falls back to one process or to another device without a word (with --cpu --num_processes 2
it runs one), and a run that trains on a quarter of the machine looks like one that doesn't. So train.py finds the
launcher among its parents, reads what it was told, and stops when the two differ.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object

from planet_dist.memory import keep_freed_memory
from planet_dist.precision import precision_for
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
        num_machines: over which the processes are spread.
    """

    source: str
    num_processes: int
    device: str
    mixed_precision: str
    num_machines: int = 1

    @property
    def processes_per_host(self) -> int:
        """The most processes that a machine gets; 0 where nothing was said."""
        return -(-self.num_processes // self.num_machines)


def end_with_launcher() -> None:
    """Lets a rank end with the launcher that started it, however that ends, and at once where it has ended already.

    The launcher gives each of several ranks a session of its own, and a single one nothing, so that a killed one would
    leave them training. A single one is asked to end (planet_dist.stopping), for a launcher doesn't wait for it when it
    gets a Ctrl-C; several, which could wait for each other forever, are killed. A run started by hand may outlive its
    shell.
    """
    parent_pid = os.getppid()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        if _launcher_arguments(_words(parent_pid)) is not None:
            die_with_parent(parent_pid, signal.SIGTERM)
        return
    die_with_parent()
    # An orphan's next parent knows nothing of this script, nor of this module where it was started by -m.
    module = sys.modules["__main__"].__spec__
    names = {Path(sys.argv[0]).name} | ({module.name} if module else set())
    if names.isdisjoint(Path(word).name for word in _words(os.getppid())):
        os._exit(1)


def _words(pid: int) -> list[str]:
    """A process's command line; empty where it cannot be read."""
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


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
    num_machines = args.num_machines or 1
    if path is not None:
        file = load_config_from_file(path)
        num_processes = num_processes or file.num_processes or 0
        num_machines = args.num_machines or file.num_machines or 1
        device = "cpu" if args.cpu or file.use_cpu else "gpu"
        precision = precision or file.mixed_precision
    return Launch(path or "the command line", num_processes, device, str(precision or "no"), num_machines)


def check_launch(launch: Launch | None) -> bool:
    """Holds the launch against this process.

    Returns:
        Whether to compute on the CPU.

    Raises:
        ConfigError: another number of processes, another device, or a precision that the device lacks.
    """
    if launch is None:
        return not torch.cuda.is_available()
    running = int(os.environ.get("WORLD_SIZE", "1"))
    if launch.num_processes and running != launch.num_processes:
        raise ConfigError(
            f"{launch.source} asks for {launch.num_processes} processes, and {running} run(s): the launcher fell "
            "back in silence. Use a file with distributed_type: MULTI_GPU (it serves the CPU too), such as "
            "launch/cpu.yaml, and do not pass --cpu"
        )
    return check_hardware(launch, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def check_hardware(launch: Launch, local_processes: int) -> bool:
    """Holds a launch of so many processes on this host against its devices.

    Returns:
        Whether it computes on the CPU.

    Raises:
        ConfigError: a device that isn't there, fewer GPUs than processes, or a precision that the device lacks.
    """
    has_gpu = torch.cuda.is_available()
    if launch.device == "gpu" and not has_gpu:
        raise ConfigError(
            f"{launch.source} asks for GPUs, and torch sees none (built for CUDA {torch.version.cuda}); "
            "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use launch/cpu.yaml"
        )
    on_cpu = launch.device == "cpu" or not has_gpu
    if not on_cpu and local_processes > torch.cuda.device_count():
        raise ConfigError(
            f"{launch.source} asks for {local_processes} processes on this host, which has "
            f"{torch.cuda.device_count()} GPU(s); give it one process a GPU"
        )
    if launch.mixed_precision not in ("no", "bf16", "fp16"):
        raise ConfigError(
            f"{launch.source}: mixed_precision {launch.mixed_precision!r} is not supported; use no, bf16 or fp16"
        )
    if launch.mixed_precision == "fp16" and on_cpu:
        raise ConfigError(f"{launch.source}: mixed_precision fp16 needs a GPU; use bf16 or no on a CPU")
    return on_cpu


def make_accelerator(*, on_cpu: bool, timeout_minutes: float, **tracking: Any) -> Accelerator:
    """The Accelerator that a run trains with, in the launch's precision: float32 where a rank's CPU has no bf16.

    Args:
        timeout_minutes: that a rank waits for another.
        tracking: where Accelerate shall log.
    """
    timeout = timedelta(minutes=timeout_minutes)
    if on_cpu:
        keep_freed_memory()
    PartialState(cpu=on_cpu, timeout=timeout)
    precision = precision_for(asked_precision(), on_cpu=on_cpu)
    if on_cpu and "no" in gather_object([precision]):
        precision = "no"
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=precision,
        # Buffers are made equal before they are used (Learner.share_buffers), not at every step.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timeout),
        ],
        **tracking,
    )


def asked_precision() -> str:
    """The launch's mixed_precision, as the launcher hands it over; "no" where nobody launched this process."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
