"""A launch is what its file and command line say, and one that came out otherwise is refused with a reason."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from accelerate.state import AcceleratorState

from planet_dist import launched
from planet_dist.launched import Launch, asked_precision, check_launch, find_launch, make_accelerator, read_launch
from planet_dist.precision import describe_precision
from shards.errors import ConfigError
from tests.conftest import REPOSITORY

FILES = REPOSITORY / "launch"
LAUNCH_FILES = sorted(set(FILES.iterdir()) - {FILES / "sweep.yaml"})  # which is W&B's, and names one of the others
SCRIPT = ["planet_dist/train.py", "--recipe", "small-resnet-32", "--out", "RUN"]


@pytest.fixture(autouse=True)
def _nobodys_own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a launch file of this user nor the variables of a launcher around these tests count."""
    monkeypatch.setattr(launched, "default_config_file", str(tmp_path / "default_config.yaml"))
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """As many GPUs as the test's parameter says."""
    count: int = request.param
    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    return count


with_gpus = pytest.mark.parametrize("gpus", [2], indirect=True)
without_gpus = pytest.mark.parametrize("gpus", [0], indirect=True)


@pytest.mark.parametrize(
    ("file", "num_processes", "device", "num_machines"),
    [
        ("cpu.yaml", 2, "cpu", 1),
        ("one_cpu.yaml", 1, "cpu", 1),
        ("one_gpu.yaml", 1, "gpu", 1),
        ("multi_gpu.yaml", 8, "gpu", 1),
        ("multi_node.yaml", 16, "gpu", 2),
    ],
)
def test_each_launch_file_says_processes_device_precision_and_machines(
    file: str, num_processes: int, device: str, num_machines: int
) -> None:
    path = str(FILES / file)
    expected = Launch(path, num_processes, device, "bf16", num_machines)
    assert read_launch(["--config_file", path, *SCRIPT]) == expected
    assert expected.processes_per_host == num_processes // num_machines


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_every_launch_file_starts_processes_on_the_device_that_its_name_says(path: Path) -> None:
    found = read_launch(["--config_file", str(path), *SCRIPT])
    assert found.device == ("cpu" if "cpu" in path.stem else "gpu")
    assert (found.num_processes == 1) == path.stem.startswith("one")
    assert found.mixed_precision in ("bf16", "no")


def test_the_command_line_stands_above_the_file() -> None:
    path = str(FILES / "cpu.yaml")
    found = read_launch(["--config_file", path, "--num_processes", "5", "--mixed_precision", "no", *SCRIPT])
    assert found == Launch(path, 5, "cpu", "no")
    found = read_launch(["--config_file", str(FILES / "multi_gpu.yaml"), "--cpu", *SCRIPT])
    assert (found.num_processes, found.device) == (8, "cpu")


def test_without_a_file_only_what_was_said_counts() -> None:
    assert read_launch(SCRIPT) == Launch("the command line", 0, "any", "no")
    words = ["--cpu", "--num_processes", "3", "--mixed_precision", "fp16", *SCRIPT]
    assert read_launch(words) == Launch("the command line", 3, "cpu", "fp16")


def test_the_scripts_own_words_are_not_the_launchers() -> None:
    assert read_launch([*SCRIPT, "--cpu", "--num_processes", "9"]).num_processes == 0


def test_the_users_own_launch_file_is_read_as_accelerate_reads_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text((FILES / "multi_gpu.yaml").read_text().replace("num_processes: 8", "num_processes: 6"))
    monkeypatch.setattr(launched, "default_config_file", str(own))
    assert read_launch(SCRIPT) == Launch(str(own), 6, "gpu", "bf16")
    assert read_launch(["--cpu", *SCRIPT]) == Launch("the command line", 0, "cpu", "no")


@pytest.mark.parametrize("written", ["no", "'no'", "null"])
def test_no_mixed_precision_is_understood_however_yaml_reads_the_word(written: str, tmp_path: Path) -> None:
    file = tmp_path / "full.yaml"
    file.write_text((FILES / "cpu.yaml").read_text().replace("mixed_precision: bf16", f"mixed_precision: {written}"))
    assert read_launch(["--config_file", str(file), *SCRIPT]).mixed_precision == "no"


@pytest.mark.parametrize(
    "words",
    [
        ["/venv/bin/python", "/venv/bin/accelerate", "launch"],
        ["accelerate", "launch"],
        ["/venv/bin/python3", "/venv/bin/accelerate-launch"],
        ["python", "-m", "accelerate.commands.launch"],
        ["python", "-u", "-m", "accelerate.commands.launch"],
        ["/usr/bin/python", "/lib/site-packages/accelerate/commands/launch.py"],
    ],
)
def test_the_launcher_is_known_in_each_way_to_call_it(words: list[str]) -> None:
    assert launched._launcher_arguments([*words, "--cpu", *SCRIPT]) == ["--cpu", *SCRIPT]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["accelerate", "config"],
        ["accelerate"],
        ["bash", "-c", "accelerate launch train.py"],
        ["python", "launch.py"],
        ["torchrun", "planet_dist/train.py"],
    ],
)
def test_other_programs_are_not_taken_for_the_launcher(words: list[str]) -> None:
    assert launched._launcher_arguments(words) is None


class Parent:
    """A parent process with a command line, or one that may not be read."""

    def __init__(self, *words: str) -> None:
        self.words = list(words)

    def cmdline(self) -> list[str]:
        if not self.words:
            raise psutil.AccessDenied
        return self.words


def test_the_launcher_is_found_among_all_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["python", "accelerate", "launch", "--config_file", str(FILES / "cpu.yaml"), *SCRIPT]
    parents = [Parent("bash", "job.sh"), Parent(), Parent(*line), Parent("sshd")]
    monkeypatch.setattr(psutil.Process, "parents", lambda self: parents)
    found = find_launch()
    assert found is not None and (found.num_processes, found.device) == (2, "cpu")
    monkeypatch.setattr(psutil.Process, "parents", lambda self: parents[:2])
    assert find_launch() is None


@without_gpus
def test_a_run_without_a_launcher_takes_what_there_is(gpus: int) -> None:
    assert check_launch(None) is True


@with_gpus
def test_a_run_without_a_launcher_takes_the_gpu(gpus: int) -> None:
    assert check_launch(None) is False


@with_gpus
@pytest.mark.parametrize(("device", "on_cpu"), [("cpu", True), ("gpu", False), ("any", False)])
def test_the_device_is_the_launch_files(gpus: int, device: str, on_cpu: bool) -> None:
    assert check_launch(Launch("x.yaml", 1, device, "bf16")) is on_cpu


@without_gpus
def test_two_processes_on_a_cpu_are_fine_when_two_run(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert check_launch(Launch("x.yaml", 2, "cpu", "bf16")) is True


@without_gpus
def test_an_unsaid_number_of_processes_may_be_any(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "7")
    assert check_launch(Launch("the command line", 0, "any", "no")) is True


def refused(launch: Launch, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_launch(launch)


@with_gpus
@pytest.mark.parametrize(("asked", "running"), [(2, None), (2, "1"), (1, "2"), (8, "4")])
def test_another_number_of_processes_is_refused(
    gpus: int, asked: int, running: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if running is not None:
        monkeypatch.setenv("WORLD_SIZE", running)
    refused(Launch("x.yaml", asked, "any", "no"), f"x.yaml asks for {asked} processes, and {running or 1} run(s)")


@without_gpus
def test_a_gpu_launch_without_gpus_is_refused(gpus: int) -> None:
    refused(Launch("x.yaml", 1, "gpu", "bf16"), "x.yaml asks for GPUs, and torch sees none")


@with_gpus
def test_more_processes_than_gpus_on_a_host_are_refused(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    refused(Launch("x.yaml", 6, "gpu", "bf16"), "3 processes on this host, which has 2 GPU(s)")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert check_launch(Launch("x.yaml", 6, "gpu", "bf16")) is False


@with_gpus
@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_a_precision_that_is_not_supported_is_refused(gpus: int, precision: str) -> None:
    refused(Launch("x.yaml", 1, "gpu", precision), f"mixed_precision '{precision}' is not supported")


@with_gpus
def test_fp16_is_for_gpus(gpus: int) -> None:
    assert check_launch(Launch("x.yaml", 1, "gpu", "fp16")) is False
    refused(Launch("x.yaml", 1, "cpu", "fp16"), "x.yaml: mixed_precision fp16 needs a GPU")


@without_gpus
def test_fp16_is_refused_where_there_is_no_gpu(gpus: int) -> None:
    refused(Launch("the command line", 1, "any", "fp16"), "fp16 needs a GPU; use bf16 or no on a CPU")


@pytest.mark.parametrize(
    ("asked", "on_ranks", "trains", "named"),
    [
        ("bf16", ["bf16", "bf16"], "bf16", "bf16"),
        ("bf16", ["bf16", "no"], "no", "float32 (bf16 was asked for, and the CPU has no kernels for it)"),
        ("no", ["no", "no"], "no", "float32"),
    ],
)
def test_bf16_is_float32_on_every_rank_where_the_cpu_of_one_has_no_kernels_for_it(
    asked: str, on_ranks: list[str], trains: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    monkeypatch.setattr("planet_dist.precision.cpu_has_bf16", lambda: True)  # of this rank; others may differ
    monkeypatch.setattr(launched, "gather_object", lambda own: on_ranks)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = make_accelerator(on_cpu=True, timeout_minutes=1.0)
        assert accelerator.mixed_precision == trains
        assert describe_precision(accelerator.mixed_precision, asked_precision()) == named
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


LAUNCHER = """
import os, subprocess, sys
subprocess.Popen([sys.executable, *sys.argv[1:], str(os.getpid())], start_new_session=True)
os._exit(0)  # it dies before its rank has begun to look
"""
RANK = """
import os, pathlib, sys, time
while os.getppid() == int(sys.argv[1]): time.sleep(0.01)
from planet_dist.launched import end_with_launcher
pathlib.Path({begun!r}).touch()
end_with_launcher()
pathlib.Path({went_on!r}).touch()
"""


@pytest.mark.parametrize("launched_as", ["a rank", "by hand"])
def test_a_rank_whose_launcher_died_before_it_began_ends_and_one_started_by_hand_goes_on(
    tmp_path: Path, launched_as: str
) -> None:
    begun, went_on, script = tmp_path / "begun", tmp_path / "went-on", tmp_path / "train.py"
    env = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
    script.write_text(RANK.format(begun=str(begun), went_on=str(went_on)))
    subprocess.run(
        [sys.executable, "-c", LAUNCHER, str(script)],
        env=env | ({"TORCHELASTIC_RUN_ID": "none"} if launched_as == "a rank" else {}),
        check=True,
    )
    deadline = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    assert begun.exists()
    assert went_on.exists() == (launched_as == "by hand")


ALONE = """
import pathlib, time
from planet_dist.launched import end_with_launcher
end_with_launcher()
pathlib.Path({begun!r}).touch()
while True: time.sleep(0.02)
"""


def test_the_one_process_of_a_launcher_ends_when_that_is_killed(tmp_path: Path) -> None:
    begun, script = tmp_path / "begun", tmp_path / "train.py"
    script.write_text(ALONE.format(begun=str(begun)))
    how = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher = subprocess.Popen([sys.executable, "-m", "accelerate.commands.launch", *how, "--cpu", str(script)])
    deadline = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    [alone] = psutil.Process(launcher.pid).children()
    launcher.kill()
    launcher.wait()
    assert psutil.wait_procs([alone], timeout=10)[1] == []
