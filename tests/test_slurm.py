"""Training across two hosts of a real SLURM, taken off them in the middle of an epoch, comes to what it would have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.reader import Dataset
from tests.conftest import REPOSITORY, launch
from tests.slurm_cluster import Cluster, missing_for_a_cluster
from tests.test_train import results, words

SCRIPTS = sorted((REPOSITORY / "slurm").glob("*.sbatch"))
# Many short steps, so that a job is requeued within an epoch.
MANY_STEPS = ["phases.0.batch_size=4"]
STEPS_PER_EPOCH, EPOCHS = 23, 3


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two hosts that wait for jobs."""
    missing = missing_for_a_cluster()
    if missing:
        pytest.skip(missing)
    with Cluster.start(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


def log_of(run: Path) -> list[str]:
    return [json.loads(line)["what"] for line in (run / "slurm.jsonl").read_text().splitlines()]


def test_a_job_requeued_in_an_epoch_ends_with_the_bytes_of_an_undisturbed_run(
    cluster: Cluster, dataset: Dataset, tmp_path: Path
) -> None:
    run, job_log = tmp_path / "requeued", tmp_path / "job.log"
    training = words(dataset, run) + MANY_STEPS
    job = cluster.sbatch("--nodes=2", f"--chdir={REPOSITORY}", f"--output={job_log}", "slurm/train.sbatch", *training)
    deadline = time.monotonic() + 180
    while not any(int(path.name[5:]) >= STEPS_PER_EPOCH + 3 for path in (run / "checkpoints").glob("step-*")):
        assert time.monotonic() < deadline and cluster.job(job)["JobState"] in ("PENDING", "RUNNING"), (
            job_log.read_text()
        )
        time.sleep(0.01)
    cluster.slurm("scontrol", "requeue", job)
    done = cluster.wait_for(job, "COMPLETED", "FAILED", timeout_seconds=240)
    printed = job_log.read_text()
    assert (done["JobState"], done["Restarts"]) == ("COMPLETED", "1"), printed
    assert done["NumNodes"] == "2" and "2 process(es) on cpu" in printed
    (resumed,) = re.findall(r"resumed at phase 1, epoch (\d), step (\d+)", printed)
    assert 0 < (int(resumed[0]) - 1) * STEPS_PER_EPOCH + int(resumed[1]) < EPOCHS * STEPS_PER_EPOCH
    assert log_of(run)[0] == "2 node(s) from node0, 1 process(es) each, from the beginning"
    assert log_of(run)[-1] == "finished"
    straight = tmp_path / "straight"
    undisturbed = launch("planet_dist/train.py", *words(dataset, straight), *MANY_STEPS)
    assert undisturbed.returncode == 0, undisturbed.stderr
    expected, found = results(straight), results(run)
    assert [name for name in expected if expected[name] != found[name]] == []


def test_a_configuration_that_cannot_run_ends_the_job_and_is_not_tried_again(
    cluster: Cluster, dataset: Dataset, tmp_path: Path
) -> None:
    run, job_log = tmp_path / "run", tmp_path / "job.log"
    training = [*words(dataset, run), "phases.0.epochs=none"]
    job = cluster.sbatch("--nodes=2", f"--chdir={REPOSITORY}", f"--output={job_log}", "slurm/train.sbatch", *training)
    done = cluster.wait_for(job, "COMPLETED", "FAILED", timeout_seconds=120)
    assert (done["JobState"], done["Restarts"]) == ("FAILED", "0")
    assert "phases.0.epochs" in job_log.read_text()
    assert "no new checkpoint" in log_of(run)[-1]


def test_a_dataset_packed_by_an_array_of_jobs_has_the_bytes_of_an_undivided_build(
    cluster: Cluster, chips: Path, dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "parts"
    sources = ["--images", str(chips / "train-jpg"), "--labels", str(chips / "train.csv"), "--out", str(out)]
    command = [str(Path(sys.executable).with_name("planet-dist")), "submit", "build", *sources, "--parts", "3"]
    printed = cluster.slurm(*command, "--shard-bytes", str(64 * 1024))
    packing, publishing = re.findall(r"^job (\d+): build.sbatch", printed, re.MULTILINE)
    cluster.wait_for(publishing, "COMPLETED", "FAILED", "CANCELLED")
    logs = {path.name: path.read_text() for path in tmp_path.glob("parts-*.log")}
    assert set(logs) == {*(f"parts-{packing}_{part}.log" for part in range(3)), f"parts-{publishing}.log"}
    assert "120 chips" in logs[f"parts-{publishing}.log"], logs
    expected = {path.name: path.read_bytes() for path in Path(dataset.root).iterdir()}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_started_without_sbatch_says_how_it_is_meant(script: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", str(script), "--recipe", "small-resnet-32", "--out", "RUN"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"{script.name}: is for sbatch" in done.stderr


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed: apt-get install shellcheck"
)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in_a_script(script: Path) -> None:
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
