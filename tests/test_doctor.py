"""A run that could not work is found before it's started, with what to do; one that could is measured truly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from click.testing import CliRunner

from planet_dist import doctor, doctor_machine, doctor_run, doctor_speed
from planet_dist.cli import main
from planet_dist.config import load_config
from planet_dist.data import open_data
from planet_dist.doctor import Patient, examine
from planet_dist.doctor_findings import Finding, Report, merge_hosts
from planet_dist.doctor_machine import disk, launch_fit, libraries, shared_memory
from planet_dist.doctor_run import chip_cache, whole_run
from planet_dist.doctor_speed import PhaseSpeed, extrapolated, run_seconds
from planet_dist.launched import Launch
from shards.pixels import PixelFormat
from shards.reader import Dataset
from tests.conftest import REPOSITORY

SMALL = [
    "data.split=tail:30",
    "model.width=8",
    "runtime.figures=false",
    "phases.0.batch_size=16",
    "evaluate.batch_size=16",
    "tracking.wandb=off",
]
CPU = Launch("x.yaml", 2, "cpu", "bf16")


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is a launch's only one, and measures for a moment."""
    threads = torch.get_num_threads()
    for module, name, value in (
        (doctor_speed, "_LOADER_SECONDS", 0.05),
        (doctor_speed, "_STRETCH_SECONDS", 0.02),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(doctor, "is_launched", lambda: True)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)


def run(*words: object) -> Any:
    return CliRunner().invoke(main, ["doctor", *map(str, words)])


def by_about(report: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {finding["about"]: finding for finding in report["findings"]}


def test_every_process_of_a_launch_takes_part_and_nothing_is_written(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "run"
    command = [sys.executable, "-m", "planet_dist.doctor_cli", "--data", str(dataset.root), "--out", str(out)]
    done = subprocess.run(
        [*command, "--recipe", "small-resnet-32", "--json", *SMALL],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    report = json.loads(done.stdout)
    assert report["works"] is True
    found = by_about(report)
    assert "all 2 process(es) read it" in found["dataset"]["text"]
    assert "launch/cpu.yaml: 2 process(es)" in found["launch"]["text"]
    assert "90 chips train, 30 validate" in found["recipe"]["text"]
    assert "batches of 16" in found["model"]["text"]
    figures = report["figures"]
    assert all(value > 0 for name, value in figures.items() if name != "wait_share")
    assert 0 <= figures["wait_share"] <= 1
    # 16 epochs of 90 chips and their validation, at the rates that it gives itself, and a final one of 8 views.
    training = 16 * (90 / figures["images_per_second"] + 30 / figures["validation_images_per_second"])
    assert figures["run_seconds"] == pytest.approx(training + 8 * 30 / figures["validation_images_per_second"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("one_process")
def test_a_damaged_chip_is_an_error_with_its_name_and_remedy(dataset: Dataset, tmp_path: Path) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(dataset.root, copy)
    record = dataset.index()[0]
    with (copy / "chips-000000.tar").open("r+b") as tar:
        tar.seek(int(record["offset"]) + int(record["size"]) // 2)
        tar.write(b"damaged")
    result = run("--data", copy)
    assert result.exit_code == 1
    assert "its bytes have changed since the build" in " ".join(result.stdout.split())
    assert "-> run planet-shard verify" in result.stdout
    assert "This run would not work: 1 error(s)" in result.stdout


@pytest.mark.usefixtures("one_process")
def test_without_a_recipe_the_dataset_and_the_loader_are_looked_at(dataset: Dataset) -> None:
    result = run("--data", dataset.root, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert list(report["figures"]) == ["loader_images_per_second"]
    assert by_about(report)["recipe"]["text"].startswith("none was given")


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("override", "said"),
    [("data.split=tail:500", "split another way"), ("data.kind=tif", "meant for tif")],
)
def test_a_recipe_that_does_not_fit_the_chips_is_an_error(dataset: Dataset, override: str, said: str) -> None:
    result = run("--data", dataset.root, "--recipe", "small-resnet-32", *SMALL, override)
    assert result.exit_code == 1
    shown = " ".join(result.stdout.split())
    assert "error recipe" in shown and said in shown and "Traceback" not in result.output


@pytest.mark.usefixtures("one_process")
def test_a_run_to_start_from_that_is_not_there_is_an_error(dataset: Dataset) -> None:
    result = run("--data", dataset.root, "--recipe", "small-resnet-32", *SMALL, "model.weights=nowhere")
    assert result.exit_code == 1
    assert "model.weights nowhere: not a finished run" in result.output and "Traceback" not in result.output


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("step_seconds", [0.0, 1e9])
def test_a_large_batch_is_extrapolated_and_a_quick_one_measured_whole(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_seconds: float
) -> None:
    monkeypatch.setattr(doctor_speed, "_STEP_SECONDS", step_seconds)
    config = load_config("small-resnet-32", SMALL)
    accelerator = Accelerator(cpu=True)
    report = whole_run(config, open_data(config, dataset.root), tmp_path / "run", accelerator)
    text = next(finding.text for finding in report.findings if finding.about == "model")
    assert ("extrapolated from 4 chips a process" in text) == (step_seconds == 0)
    assert ("batches of 16" in text) == (step_seconds > 0)
    assert report.works and report.figures["peak_memory_bytes"] > 2**20


def test_memory_is_extrapolated_along_a_line() -> None:
    assert extrapolated([(2, 100), (4, 140)], 10) == 260
    assert extrapolated([(2, 100), (10, 150)], 10) == 150
    assert extrapolated([(2, 100), (4, 90)], 10) == 90  # memory that came back is no slope
    assert extrapolated([(2, 100)], 2) == 100


def test_a_run_is_as_long_as_its_phases_and_its_validations(dataset: Dataset) -> None:
    phases = ["data.split=tail:30", "phases.0.epochs=2", "phases.1.epochs=3", "evaluate.turns=8", "model.weights=none"]
    config = load_config("paper2-inception-v3", phases)
    data = open_data(config, dataset.root)
    assert run_seconds(config, data, [9.0, 1.0], 10.0) == 2 * (10 + 3) + 3 * (90 + 3) + 8 * 3


@pytest.mark.parametrize(
    ("loader", "level", "said"),
    [(50.0, "warning", "gives 0.50 of the images"), (300.0, "ok", "3.0 times as fast")],
)
def test_the_slower_of_loader_and_network_is_the_bottleneck(loader: float, level: str, said: str) -> None:
    speed = PhaseSpeed(16, True, 100.0, 90.0, 0.1, 2**30)
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"))
    found = doctor_run._bottleneck(loader, speed, accelerator)
    assert (found.level, said in found.text, bool(found.remedy)) == (level, True, level == "warning")


@pytest.mark.parametrize(("left", "level"), [(2**40, "ok"), (0, "error")])
def test_a_batch_that_would_not_fit_into_memory_is_an_error(
    left: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_machine, "memory_left_bytes", lambda: left)
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"))
    found = doctor_run._memory(2**39, [PhaseSpeed(4, False, 1.0, 1.0, 0.0, 2**39)], accelerator)
    assert found.level == level
    assert ("accumulate" in found.remedy) == (level == "error")


def test_a_launch_file_that_this_machine_cannot_serve_is_an_error(dataset: Dataset) -> None:
    patient = Patient(str(dataset.root), "small-resnet-32", tuple(SMALL), Path("run"))
    report = examine(patient, REPOSITORY / "launch" / "multi_gpu.yaml")
    assert not report.works
    launch = report.findings[0]
    assert (launch.level, launch.about) == ("error", "launch")
    assert "asks for GPUs, and torch sees none" in launch.text and "launch/cpu.yaml" in launch.remedy


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "because memory ran out"),
        ("import sys; sys.exit('Error: batch_size 2 is odd; take another')", "batch_size 2 is odd"),
        ("raise RuntimeError('the network is down')", "RuntimeError: the network is down"),
    ],
)
def test_processes_that_fall_are_an_error_that_says_why(
    code: str, said: str, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "launcher", lambda file: [sys.executable, "-c", code])
    report = examine(Patient(str(dataset.root), "", (), Path("run")), None)
    assert not report.works
    assert report.findings[0].level == "error" and said in report.findings[0].text
    assert any(finding.about == "devices" for finding in report.findings)


def test_a_launch_for_several_machines_is_tried_with_this_ones_processes(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def pretend(command: list[str], **_: Any) -> Any:
        seen.append(command)
        return SimpleNamespace(stdout=Report([Finding("ok", "a", "b")]).to_json(), stderr="", returncode=0)

    monkeypatch.setattr(subprocess, "run", pretend)
    report = examine(Patient(str(dataset.root), "", (), Path("run")), REPOSITORY / "launch" / "multi_node_cpu.yaml")
    [command] = seen
    assert command[command.index("--num_processes") + 1] == "1" and command[command.index("--num_machines") + 1] == "1"
    assert "is for 2 machines" in report.findings[0].text and "--machine_rank N" in report.findings[0].remedy


@pytest.mark.parametrize(
    ("cores", "threads", "said"), [(2, 1, ""), (1, 1, "compute on 1 core(s)"), (16, 1, "compute_threads=8")]
)
def test_cores_and_processes_are_held_against_each_other(
    cores: int, threads: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_machine, "available_cores", lambda: cores)
    first, *more = launch_fit(CPU, 2, threads)
    assert first.level == "ok"
    assert [finding.level for finding in more] == ["warning"] * bool(said)
    assert all(said in finding.text + finding.remedy for finding in more)


def test_a_cpu_without_bf16_is_named_and_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planet_dist.precision.cpu_has_bf16", lambda: False)
    first = launch_fit(CPU, 2, 1)[0]
    assert first.level == "ok" and "CPU, float32 (bf16 was asked for" in first.text
    monkeypatch.setattr("planet_dist.precision.cpu_has_bf16", lambda: True)
    assert "CPU, bf16;" in launch_fit(CPU, 2, 1)[0].text


def test_idle_gpus_and_a_precision_that_they_lack_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    found = launch_fit(Launch("x.yaml", 2, "gpu", "bf16"), 2, 1)
    assert [finding.level for finding in found] == ["ok", "warning", "warning"]
    assert "2 of 4 GPUs" in found[1].text and "fp16" in found[2].remedy
    [refused] = launch_fit(Launch("x.yaml", 8, "gpu", "bf16"), 8, 1)
    assert refused.level == "error" and "8 processes on this host, which has 4 GPU(s)" in refused.text


def test_little_shared_memory_matters_to_several_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    assert shared_memory(8, on_gpu=True).level == "warning"
    assert shared_memory(1, on_gpu=True).level == shared_memory(8, on_gpu=False).level == "ok"


@pytest.mark.parametrize(("needed", "level"), [(10, "ok"), (60, "warning"), (200, "error")])
def test_room_is_that_of_the_disk_where_a_folder_would_be(
    needed: int, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    found = disk(tmp_path / "not" / "yet", needed, "disk", "checkpoints", "make room")
    assert found.level == level and str(tmp_path) in found.text
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(
    ("override", "free", "level", "said"),
    [
        ("data.cache=host", 2**30, "ok", "decoded chips take 192 MiB"),
        ("data.cache=host", 2**27, "error", "128 MiB free"),
        ("data.cache=device", 2**30, "ok", "192 MiB of the 1.0 GiB"),
        ("data.cache=device", 2**28, "error", "more than half"),
    ],
)
def test_decoded_chips_need_room_where_they_are_kept(
    override: str, free: int, level: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setattr(doctor_machine, "memory_left_bytes", lambda: free)
    config = load_config("small-resnet-32", [override, f"runtime.cache_dir={tmp_path}"])
    found = chip_cache(config, 1024, PixelFormat(256, 256, 3, "uint8"))
    assert found.level == level and said in found.text
    small = load_config("small-resnet-32", ["data.cache=host", "runtime.cache_gib=0.1"])
    assert "runtime.cache_gib allows" in chip_cache(small, 1024, PixelFormat(256, 256, 3, "uint8")).text


def test_a_place_that_cannot_be_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert disk(tmp_path / "file" / "run", 1, "disk", "checkpoints", "").level == "error"


def test_libraries_are_held_against_what_the_package_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert libraries().level == "ok"
    needs = ["numpy>=99", "no-such-library>=1", "s3fs>=99; extra == 's3'"]
    monkeypatch.setattr(doctor_machine, "requires", lambda name: needs)
    found = libraries()
    assert found.level == "error"
    assert "is not >=99" in found.text and "no-such-library is missing" in found.text and "s3fs" not in found.text


def test_what_all_hosts_found_is_said_once_and_the_rest_with_names() -> None:
    same, other = Finding("ok", "libraries", "torch 2"), Finding("warning", "libraries", "torch 1", "the same")
    disks = Finding("ok", "disk", "9 GiB")
    assert merge_hosts([("a", [same, disks]), ("b", [other, disks])]) == [
        Finding("ok", "libraries", "a: torch 2"),
        Finding("warning", "libraries", "b: torch 1", "the same"),
        disks,
    ]


def test_a_report_is_read_as_it_was_written_and_shows_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report([Finding("ok", "disk", "9 GiB"), Finding("warning", "cores", "few", "use more")], {"a": 1.5})
    assert Report.from_json(report.to_json()) == report
    report.show()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ok", "disk", "9", "GiB"]
    assert lines[1].startswith("warning  cores") and lines[2].strip() == "-> use more"
    assert lines[-1] == "This run would work; see the 1 warning(s)."
