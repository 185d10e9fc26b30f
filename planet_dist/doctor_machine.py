"""What a machine is and holds, against what a run asks of it: nothing here trains."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from planet_dist.config import Config, TrackingConfig
from planet_dist.doctor_findings import Finding
from planet_dist.launched import Launch, check_hardware
from planet_dist.precision import describe_precision, precision_for
from planet_dist.tracking import tracking_mode
from shards.errors import ConfigError
from shards.workers import available_cores

_SHOWN_LIBRARIES = ("torch", "torchvision", "accelerate", "webdataset", "numpy", "simplejpeg", "wandb")
_NCCL_SHARED_BYTES = 2**30  # what NVIDIA's own advice gives a container
_CGROUP_FILES = (  # limit and use, of version 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def libraries() -> Finding:
    """The versions that run, held against those that the package needs."""
    faults = []
    for line in requires("planet-dist") or []:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(needed.name)
        except PackageNotFoundError:
            faults.append(f"{needed.name} is missing")
            continue
        if not needed.specifier.contains(installed, prereleases=True):
            faults.append(f"{needed.name} {installed} is not {needed.specifier}")
    if faults:
        remedy = "install what requirements.lock names: uv pip sync requirements.lock"
        return Finding("error", "libraries", "; ".join(faults), remedy)
    shown = ", ".join(f"{name} {version(name)}" for name in ("planet-dist", *_SHOWN_LIBRARIES))
    return Finding("ok", "libraries", f"Python {platform.python_version()}, {shown}")


def devices() -> Finding:
    """Cores, memory and GPUs that this process may use."""
    parts = [f"{available_cores()} core(s)", f"{gibibytes(memory_limit_bytes())} of memory"]
    names = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    kinds = [f"{gpu.name}, {gibibytes(gpu.total_memory)}" for gpu in names]
    gpus = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    parts.append(f"{gpus} (CUDA {torch.version.cuda})" if gpus else "no GPU")
    return Finding("ok", "devices", "; ".join(parts))


def launch_fit(launch: Launch | None, local_processes: int, compute_threads: int) -> list[Finding]:
    """A launch against this host's devices and cores.

    Args:
        launch: None for a process that was started without a launcher.
        local_processes: on this host.
        compute_threads: of each, for arithmetic on the CPU.
    """
    if launch is None:
        text = "started without accelerate launch: one process, in full precision"
        return [Finding("warning", "launch", text, "start it with accelerate launch --config_file launch/....yaml")]
    try:
        on_cpu = check_hardware(launch, local_processes)
    except ConfigError as error:
        what, _, remedy = str(error).rpartition("; ")
        return [Finding("error", "launch", what, remedy)]
    where = "CPU" if on_cpu else "GPU"
    machines = f" on each of {launch.num_machines} machines" if launch.num_machines > 1 else ""
    asked = launch.mixed_precision
    precision = describe_precision(precision_for(asked, on_cpu=on_cpu), asked)
    text = f"{launch.source}: {local_processes} process(es){machines}, {where}, {precision}"
    findings = [Finding("ok", "launch", f"{text}; {compute_threads} thread(s) each for arithmetic on the CPU")]
    if launch.num_processes % launch.num_machines:
        text = f"{launch.source}: {launch.num_processes} processes do not divide among {launch.num_machines} machines"
        findings.append(Finding("error", "launch", text, "set num_processes to a multiple of num_machines"))
    return findings + (_cores(local_processes, compute_threads) if on_cpu else _gpus(launch, local_processes))


def _cores(local_processes: int, compute_threads: int) -> list[Finding]:
    cores, computing = available_cores(), local_processes * compute_threads
    if computing > cores:
        text = f"{local_processes} process(es) with {compute_threads} thread(s) each compute on {cores} core(s)"
        return [Finding("warning", "cores", text, "lower num_processes in the launch file, or runtime.compute_threads")]
    if computing <= cores // 2:
        text = f"{computing} of {cores} cores compute; the others decode, or idle"
        remedy = f"raise num_processes in the launch file, or set runtime.compute_threads={cores // local_processes}"
        return [Finding("warning", "cores", text, remedy)]
    return []


def _gpus(launch: Launch, local_processes: int) -> list[Finding]:
    findings = []
    count = torch.cuda.device_count()
    if local_processes < count:
        text = f"{count - local_processes} of {count} GPUs of this host will idle"
        findings.append(Finding("warning", "GPUs", text, f"set num_processes to {count} for each machine"))
    if launch.mixed_precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        text = "this GPU has no bf16 of its own, and computes it slowly"
        findings.append(Finding("warning", "GPUs", text, "set mixed_precision: fp16 in the launch file"))
    return findings


def disk(folder: Path, needed_bytes: int, about: str, what: str, remedy: str) -> Finding:
    """Whether a file system has room, and may be written.

    Args:
        folder: that will be made; the nearest folder above it that exists is asked.
        needed_bytes: that will lie there.
        what: the things that will lie there.
        remedy: where there is no room.
    """
    place = folder.expanduser().absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Finding("error", about, f"{place}: cannot be written", "give another folder, or its permissions")
    free = shutil.disk_usage(place).free
    text = f"{place}: {gibibytes(free)} free, {what} take {gibibytes(needed_bytes)}"
    if needed_bytes > free:
        return Finding("error", about, text, remedy)
    if 2 * needed_bytes > free:
        return Finding("warning", about, f"{text}, more than half of it", remedy)
    return Finding("ok", about, text)


def shared_memory(local_processes: int, on_gpu: bool) -> Finding:
    """Whether /dev/shm holds what processes exchange there: NCCL's buffers, where several GPUs of a host train."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("ok", "shared memory", f"no {folder} here; processes exchange over sockets")
    free = shutil.disk_usage(folder).free
    text = f"{folder}: {gibibytes(free)} free"
    if on_gpu and local_processes > 1 and free < _NCCL_SHARED_BYTES:
        remedy = "give the container more (--shm-size=1g, or --ipc=host), or set NCCL_SHM_DISABLE=1, which is slower"
        return Finding("warning", "shared memory", f"{text}; NCCL passes gradients between GPUs through it", remedy)
    return Finding("ok", "shared memory", text)


def tracking(config: TrackingConfig) -> Finding:
    """Whether W&B will hear of the run."""
    mode = tracking_mode(config)
    if mode == "offline":
        text = "W&B offline: the run is logged into RUN/wandb"
        return Finding("ok", "tracking", f"{text}; wandb login before the start sends it while it runs")
    return Finding("ok", "tracking", f"W&B {mode}")


def memory_limit_bytes() -> int:
    """The memory of this host, or of the container or job that this process is in."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _cgroup_memory())])


def memory_left_bytes() -> int:
    """How much more memory processes may take."""
    return min([psutil.virtual_memory().available, *(limit - used for limit, used in _cgroup_memory())])


def _cgroup_memory() -> list[tuple[int, int]]:
    """Limits and uses in bytes of the control groups around this process, where they can be read."""
    found = []
    for limit_file, used_file in _CGROUP_FILES:
        try:
            found.append((int(Path(limit_file).read_text()), int(Path(used_file).read_text())))
        except (OSError, ValueError):
            continue  # no such controller, or no limit ("max")
    return found


def run_disk(config: Config, out: Path, checkpoint_bytes: int) -> Finding:
    """Whether the run's file system has room for its checkpoints."""
    kept = config.runtime.keep_checkpoints
    return disk(
        out,
        (kept + 2) * checkpoint_bytes,
        "disk",
        f"{kept} checkpoints, the best and the one being written, {gibibytes(checkpoint_bytes)} each,",
        "give another --out, make room, or lower runtime.keep_checkpoints",
    )


def gibibytes(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
