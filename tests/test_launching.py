"""Runs as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from planet_dist import launching
from planet_dist.launched import read_launch
from planet_dist.launching import default_launch_file, run_training, training_command
from shards.errors import ConfigError, TrainingError
from tests.conftest import HEARS_CTRL_C, REPOSITORY


def test_the_command_is_one_that_a_run_reads_its_launch_from() -> None:
    launch_file = REPOSITORY / "launch" / "cpu.yaml"
    command = training_command("small-resnet-32", Path("DATA"), Path("RUN"), ["seed=3"], launch_file)
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    found = read_launch(command[3:])
    assert (found.num_processes, found.device) == (2, "cpu")
    script = command.index(str(REPOSITORY / "planet_dist" / "train.py"))
    assert command[script + 1 :] == [
        *("--recipe", "small-resnet-32", "--data", "DATA", "--out", "RUN", "--resume", "auto", "seed=3")
    ]


@pytest.mark.parametrize(("gpu", "name"), [(False, "cpu.yaml"), (True, "one_gpu.yaml")])
def test_the_launch_file_is_the_machines(gpu: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert default_launch_file() == REPOSITORY / "launch" / name


def test_without_the_repository_a_launch_file_must_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_PACKAGE", tmp_path / "planet_dist")
    with pytest.raises(ConfigError, match="no such file beside the package; give --launch-config"):
        default_launch_file()


def test_a_status_other_than_0_is_an_error_that_names_the_run() -> None:
    run_training([sys.executable, "-c", ""], "member 1")
    with pytest.raises(TrainingError, match="member 2: training ended with status 7"):
        run_training([sys.executable, "-c", "raise SystemExit(7)"], "member 2")


def test_training_ends_with_the_process_that_started_it_however_that_ends(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    child = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    call = f"run_training([sys.executable, '-c', {child!r}], 'x')"
    code = f"import sys; from planet_dist.launching import run_training; {call}"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.02)
    trainer = psutil.Process(int(mark.read_text()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert not psutil.wait_procs([trainer], timeout=20)[1]


SAVES = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def save(number, frame):
    time.sleep(0.6)  # longer than what subprocess.run allows after a Ctrl-C
    (folder / "saved").write_text(signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
(folder / "begun").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("asked_by", ["SIGTERM", "SIGINT"])
def test_training_may_save_when_the_process_that_started_it_is_asked_to_end(tmp_path: Path, asked_by: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(SAVES)
    call = f"run_training([sys.executable, {str(script)!r}, {str(tmp_path)!r}], 'x')"
    code = f"import sys; from planet_dist.launching import run_training; {call}"
    parent = subprocess.Popen(
        [*HEARS_CTRL_C, sys.executable, "-c", code],
        cwd=REPOSITORY,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.02)
    [trainer] = psutil.Process(parent.pid).children()
    if asked_by == "SIGINT":
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    else:
        parent.terminate()
    parent.wait()
    assert not psutil.wait_procs([trainer], timeout=20)[1]
    assert (tmp_path / "saved").read_text() == asked_by
