"""What a run would meet on this machine, before it is started: devices, dataset, room, speed, length.

The examination itself runs where training would: in processes of accelerate launch, started here with the same launch
file, or by the user on every machine of several. Nothing is written.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from planet_dist import doctor_machine
from planet_dist.config import Config, load_config
from planet_dist.data import Data, open_data
from planet_dist.doctor_findings import Finding, Report, merge_hosts
from planet_dist.doctor_machine import gibibytes
from planet_dist.doctor_run import loader_alone, whole_run
from planet_dist.launched import (
    Launch,
    check_hardware,
    check_launch,
    end_with_launcher,
    find_launch,
    make_accelerator,
    read_launch,
)
from planet_dist.launching import default_launch_file, launcher
from shards.errors import ConfigError, PlanetError
from shards.reader import Dataset
from shards.workers import die_with_parent

_MOST_SHARDS_READ = 32  # by each process
_SCRIPT = Path(__file__).with_name("doctor_cli.py")
_MEETING_MINUTES = 3.0


@dataclass(frozen=True)
class Patient:
    """What is examined.

    Attributes:
        data: the dataset's folder or URL.
        recipe, overrides: of the run; "" looks at the machine, the dataset and the loader alone.
        out: where the run would be.
    """

    data: str
    recipe: str
    overrides: tuple[str, ...]
    out: Path

    def config(self) -> Config | None:
        """The run's configuration, if there is one."""
        return load_config(self.recipe, self.overrides) if self.recipe else None

    def words(self) -> list[str]:
        """The command line that says the same."""
        recipe = ["--recipe", self.recipe] if self.recipe else []
        return ["--data", self.data, *recipe, "--out", str(self.out), *self.overrides]


def is_launched() -> bool:
    """Whether this process is one of a launcher's."""
    return "WORLD_SIZE" in os.environ or find_launch() is not None


def examine(patient: Patient, launch_file: Path | None) -> Report:
    """Starts the processes that training would have on this machine, and gives what they found."""
    config = patient.config()
    file = launch_file or default_launch_file()
    launch = read_launch(["--config_file", str(file), str(_SCRIPT)])
    try:
        check_hardware(launch, launch.processes_per_host)
    except ConfigError as error:
        findings = [finding_of(error, "launch"), doctor_machine.libraries(), doctor_machine.devices()]
        return Report([*findings, Finding("warning", "measurement", "nothing was measured, for no process can start")])
    command = [*launcher(file), *_this_machine(launch), str(_SCRIPT), "--json", *patient.words()]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=partial(die_with_parent, os.getpid())
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"works"')]
    report = Report.from_json(lines[-1]) if lines else Report([_fallen(done), *_machine(patient, config, launch)])
    if launch.num_machines > 1:
        text = f"{file} is for {launch.num_machines} machines; this one was examined by itself, with its own processes"
        remedy = "on every machine: accelerate launch --config_file FILE --machine_rank N planet_dist/doctor_cli.py ..."
        report.findings.insert(0, Finding("warning", "machines", text, remedy))
    return report


def _this_machine(launch: Launch) -> list[str]:
    """What keeps a launch for several machines on this one."""
    if launch.num_machines == 1:
        return []
    alone = ["--num_machines", "1", "--machine_rank", "0", "--main_process_ip", "127.0.0.1", "--main_process_port", "0"]
    return ["--num_processes", str(launch.processes_per_host), *alone]


def _fallen(done: subprocess.CompletedProcess[str]) -> Finding:
    """What became of processes that ended before they could say anything."""
    errors = [line.removeprefix("Error: ") for line in done.stderr.splitlines() if line.startswith("Error: ")]
    if errors:
        return finding_of(PlanetError(errors[0]), "processes")
    if "SIGKILL" in done.stderr or done.returncode in (-9, 137):
        text = "a process was killed before it was done, most often by the kernel because memory ran out"
        return Finding("error", "processes", text, "lower the batch size or the number of processes; see dmesg")
    last = " | ".join(line.strip() for line in done.stderr.splitlines()[-30:] if "Error" in line)[-600:]
    text = f"the processes ended with status {done.returncode} before they were done: {last}"
    return Finding("error", "processes", text, "run the same under accelerate launch by hand to see all of it")


def finding_of(error: PlanetError, about: str) -> Finding:
    """A user's mistake as a finding; the remedy is what stands behind the last semicolon."""
    what, _, remedy = str(error).rpartition("; ")
    return Finding("error", about, what or remedy, remedy if what else "")


def examine_rank(patient: Patient) -> Report | None:
    """This process's part of an examination; all processes of the launch take theirs.

    Returns:
        On rank 0, what all found.

    Raises:
        PlanetError: what training would end with at its start.
    """
    end_with_launcher()
    launch = find_launch()
    on_cpu = check_launch(launch)
    config = patient.config()
    torch.set_num_threads(config.runtime.compute_threads if config else 1)
    accelerator = make_accelerator(on_cpu=on_cpu, timeout_minutes=_MEETING_MINUTES)
    try:
        report = _examine(patient, config, launch, accelerator)
        accelerator.wait_for_everyone()
    finally:
        accelerator.end_training()
    return report if accelerator.is_main_process else None


def _examine(patient: Patient, config: Config | None, launch: Launch | None, accelerator: Accelerator) -> Report:
    own = _machine(patient, config, launch) if accelerator.is_local_main_process else []
    opened: Data | Dataset | None = None
    said, about = "", "dataset"
    try:
        opened = Dataset(patient.data) if config is None else open_data(config, patient.data)
        dataset = opened if isinstance(opened, Dataset) else opened.dataset
        read = _read_some(dataset, accelerator)
    except PlanetError as error:
        dataset, read, said = None, 0, str(error)
        about = "recipe" if isinstance(error, ConfigError) else "dataset"
    host = platform.node()
    digest = "" if dataset is None else dataset.digest
    everyone: list[_Found] = gather_object([_Found(host, own, said, about, digest, read)])
    findings = merge_hosts([(found.host, found.findings) for found in everyone if found.findings])
    findings.append(_dataset(patient.data, dataset, everyone))
    if findings[-1].level == "error" or opened is None:
        return Report(findings)
    if isinstance(opened, Dataset):
        measured = loader_alone(opened, accelerator)
    else:
        assert config is not None
        measured = whole_run(config, opened, patient.out, accelerator)
    return Report(findings + measured.findings, measured.figures)


@dataclass(frozen=True)
class _Found:
    """One rank's part: the host's findings, where it speaks for its host, and how it fared with the dataset.

    `error` is "" or what a recipe or dataset (`about`) failed with.
    """

    host: str
    findings: list[Finding]
    error: str
    about: str
    digest: str
    chips_read: int


def _machine(patient: Patient, config: Config | None, launch: Launch | None) -> list[Finding]:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1" if launch is None else str(max(launch.processes_per_host, 1))))
    on_gpu = torch.cuda.is_available() and (launch is None or launch.device != "cpu")
    findings = [
        doctor_machine.libraries(),
        doctor_machine.devices(),
        *doctor_machine.launch_fit(launch, local, config.runtime.compute_threads if config else 1),
        doctor_machine.shared_memory(local, on_gpu),
    ]
    return findings if config is None else [*findings, doctor_machine.tracking(config.tracking)]


def _read_some(dataset: Dataset, accelerator: Accelerator) -> int:
    """Reads and checks a chip of many shards, other ones on every rank; returns how many."""
    index_N = dataset.index()
    counts = [shard.count for shard in dataset.manifest.shards]
    starts = np.cumsum([0, *counts])[:-1][np.array(counts) > 0]
    most = 1 if dataset.storage.remote else _MOST_SHARDS_READ
    chosen = np.unique(np.linspace(0, len(starts) - 1, most).round().astype(int))
    for start in starts[chosen].tolist():
        dataset.pixels((start + accelerator.process_index) % len(index_N))
    return len(chosen)


def _dataset(location: str, dataset: Dataset | None, everyone: Sequence[_Found]) -> Finding:
    for rank, found in enumerate(everyone):
        if found.error:
            where = f"process {rank} on {found.host}: " if any(not other.error for other in everyone) else ""
            return finding_of(PlanetError(where + found.error), found.about)
    assert dataset is not None
    if len({found.digest for found in everyone}) > 1:
        hosts = {found.digest: found.host for found in everyone}
        text = f"{location}: not the same on all hosts: {', '.join(hosts.values())} differ"
        return Finding("error", "dataset", text, "copy it anew, or keep it on a file system that all of them see")
    manifest = dataset.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    return Finding(
        "ok",
        "dataset",
        f"{dataset.shown}: {manifest.count:,} chips ({manifest.image.kind}, {manifest.image.pixels}), "
        f"{gibibytes(size)} in {len(manifest.shards)} shard(s); all {len(everyone)} process(es) read it, "
        f"{sum(found.chips_read for found in everyone)} chip(s) checked",
    )
