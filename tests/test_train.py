"""Whole runs under accelerate launch: from shards to a bundle, killed and resumed, and refused with a reason."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from planet_dist.bundle import Bundle
from planet_dist.host_cache import HostCache
from shards.reader import Dataset
from tests.conftest import HEARS_CTRL_C, REPOSITORY, launch

SMALL = [
    "data.split=tail:30",
    "model.width=8",
    "runtime.figures=false",
    "model.dropout=0.1",
    "phases.0.epochs=3",
    "phases.0.batch_size=16",
    "phases.0.accumulate=2",
    "evaluate.batch_size=16",
    "runtime.checkpoint_steps=2",
    "runtime.log_every_steps=1",
    "tracking.wandb=off",
]


def words(dataset: Dataset, out: Path, *more: str) -> list[str]:
    return ["--recipe", "small-resnet-32", "--data", str(dataset.root), "--out", str(out), *more, *SMALL]


def results(run: Path) -> dict[str, bytes]:
    """What a run comes to: its best and last weights, its figures, its thresholds."""
    last = max((run / "checkpoints").glob("step-*"))
    files = [
        *("metrics.jsonl", "bundle/model.safetensors", "evaluation/thresholds.json", "evaluation/predictions.npz"),
        *(f"checkpoints/{last.name}/{name}.safetensors" for name in ("model", "ema", "optimizer")),
    ]
    return {name: (run / name).read_bytes() for name in files}


@pytest.fixture(scope="module")
def finished(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two ranks that nobody disturbed, and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    done = launch("planet_dist/train.py", *words(dataset, run))
    assert done.returncode == 0, done.stderr
    return run, done.stdout


def test_a_run_ends_with_tables_and_a_bundle_that_predicts(finished: tuple[Path, str], dataset: Dataset) -> None:
    run, printed = finished
    assert "selective_logging" in printed
    assert "cross-fitted" in printed
    assert f"planet-dist predict {run}/bundle" in printed
    assert "\r" not in printed
    bundle = Bundle.load(run / "bundle")
    assert bundle.description.labels == dataset.manifest.labels
    assert bundle.description.dataset_digest == dataset.digest
    assert len(bundle.predict(dataset.pixels(0)[None]).tags) == 1


def test_the_log_has_every_step_and_epoch_once(finished: tuple[Path, str]) -> None:
    run, _ = finished
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 19))
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [0, 1, 2]
    assert all(0 <= line["f2"] <= 1 for line in lines if line["kind"] == "epoch")


def test_the_time_of_training_is_logged_by_activity(finished: tuple[Path, str]) -> None:
    run, _ = finished
    lines = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 19))
    seconds = sum(line["seconds"] for line in lines)

    def spent(name: str) -> float:
        return float(sum(line[f"{name}_share"] * line["seconds"] for line in lines))

    assert 0.2 * seconds < spent("wait") + spent("compute") + spent("exchange") <= seconds
    assert min(spent("wait"), spent("compute"), spent("exchange"), spent("decode")) > 0
    assert spent("copy") < 0.1 * seconds  # nothing is copied on a CPU
    assert all(16 / line["images_per_second"] > 1e-3 for line in lines)  # no step is read in no time


@pytest.mark.parametrize(("how", "reason"), [("Ctrl-C", "SIGINT"), ("launcher killed", "SIGTERM")])
def test_a_single_process_saves_though_its_launcher_is_gone(
    dataset: Dataset, tmp_path: Path, how: str, reason: str
) -> None:
    run = tmp_path / "alone"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/one_cpu.yaml"]
    launcher = subprocess.Popen(
        [*HEARS_CTRL_C, *command, "planet_dist/train.py", *words(dataset, run)],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "step-00000006").exists():
        assert time.monotonic() < deadline and launcher.poll() is None
        time.sleep(0.005)
    ranks = psutil.Process(launcher.pid).children()
    if how == "Ctrl-C":
        os.killpg(launcher.pid, signal.SIGINT)
    else:
        launcher.kill()
    launcher.wait()
    assert not psutil.wait_procs(ranks, timeout=20)[1], "it outlives its launcher"
    stopped = json.loads((run / "stopped.json").read_text())
    assert stopped["reason"] == reason
    assert (run / "checkpoints" / f"step-{stopped['step']:08d}").exists()


def test_a_run_asked_to_end_in_an_epoch_and_killed_twice_in_the_next_ends_with_the_same_bytes(
    finished: tuple[Path, str], dataset: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "ended"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/cpu.yaml"]
    launcher = subprocess.Popen(
        [*command, "planet_dist/train.py", *words(dataset, run, "--profile", "2")],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "step-00000006").exists():  # the first epoch's end
        assert time.monotonic() < deadline and launcher.poll() is None
        time.sleep(0.005)
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    launcher.terminate()
    launcher.wait()
    assert not psutil.wait_procs(ranks, timeout=20)[1], "ranks outlive their launcher"
    assert not (run / "bundle").exists()
    for rank in (0, 1):  # and what a start records of its steps leaves the bytes alone
        trace = json.loads(gzip.decompress((run / "profile" / f"rank-{rank}.json.gz").read_bytes()))
        spans = [event["name"] for event in trace["traceEvents"] if event.get("ph") == "X"]
        assert all(spans.count(name) == 2 for name in ("wait", "copy", "compute", "exchange"))
        assert "gloo:all_reduce" in spans
    stopped = json.loads((run / "stopped.json").read_text())
    assert stopped["reason"] == "SIGTERM"
    assert (run / "checkpoints" / f"step-{stopped['step']:08d}").exists()
    for step in ("15", "17"):  # of the third epoch, 13 to 18
        killed = launch("tests/ranks_killed.py", step, *words(dataset, run, "--resume", "auto"))
        assert killed.returncode != 0 and f"rank-0 killed at step {step}" in killed.stderr
    done = launch("planet_dist/train.py", *words(dataset, run, "--resume", "auto"))
    assert done.returncode == 0, done.stderr
    assert "resumed at phase 1, epoch 3, step 4 from step-00000016" in done.stdout
    assert not (run / "stopped.json").exists()
    expected, found = results(finished[0]), results(run)
    assert [name for name in expected if expected[name] != found[name]] == []


def test_a_run_that_keeps_decoded_chips_ends_with_the_same_bytes(
    finished: tuple[Path, str], dataset: Dataset, tmp_path: Path
) -> None:
    run, cache = tmp_path / "cached", tmp_path / "cache"
    done = launch("planet_dist/train.py", *words(dataset, run, "data.cache=host", f"runtime.cache_dir={cache}"))
    assert done.returncode == 0, done.stderr
    expected, found = results(finished[0]), results(run)
    assert [name for name in expected if expected[name] != found[name]] == []
    # Both ranks have filled one file, with every chip that trains or validates.
    assert HostCache(cache, dataset, 2**30).holds(np.arange(len(dataset))).all()


def test_resuming_a_finished_run_trains_nothing_and_says_the_same(finished: tuple[Path, str], dataset: Dataset) -> None:
    run, _ = finished
    before = results(run)
    done = launch("planet_dist/train.py", *words(dataset, run, "--resume", "auto"))
    assert done.returncode == 0, done.stderr
    assert results(run) == before


def test_an_existing_run_is_refused_and_untouched(finished: tuple[Path, str], dataset: Dataset) -> None:
    run, _ = finished
    before = results(run)
    done = subprocess.run(
        [sys.executable, "planet_dist/train.py", *words(dataset, run)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "exists already; give another --out, or --resume auto" in done.stderr
    assert results(run) == before


def test_a_launcher_that_fell_back_to_one_process_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run(
        [*command, "planet_dist/train.py", *words(dataset, tmp_path / "run")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "asks for 2 processes, and 1 run(s)" in done.stderr
    assert not (tmp_path / "run").exists()


def test_without_arguments_it_names_what_is_missing_and_shows_an_example() -> None:
    done = subprocess.run(
        [sys.executable, "planet_dist/train.py"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert "missing --recipe, --data, --out" in done.stderr
    assert "accelerate launch --config_file launch/cpu.yaml planet_dist/train.py --recipe" in done.stderr
    assert "Traceback" not in done.stderr
