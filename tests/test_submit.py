"""What `planet-dist submit` asks of sbatch, and what it refuses before a job waits in a queue."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from planet_dist.cli import main
from tests.conftest import REPOSITORY

RUN = ["--recipe", "small-resnet-32", "--data", "DATASET", "--out", "RUN"]
ENSEMBLE = ["--recipe", "paper1-ensemble", "--data", "DATASET", "--out", "DIR"]


def submit(*words: str) -> Result:
    return CliRunner().invoke(main, ["submit", *words])


def shown(*words: str) -> list[list[str]]:
    result = submit(*words, "--dry-run")
    assert result.exit_code == 0, result.output
    return [shlex.split(line) for line in result.stdout.splitlines()]


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch that writes its words down and answers with numbers from 101, and refuses the partition "none"."""
    log = tmp_path / "sbatch.log"
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/bash\n"
        'case "$*" in *--partition=none*) echo "sbatch: error: invalid partition" >&2; exit 1;; esac\n'
        f'printf "%s\\n" "$*" >>{log}\n'
        f'echo "$((100 + $(wc -l <{log})));cluster"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return log


def test_a_run_asks_for_its_nodes_and_starts_the_script_from_the_repository() -> None:
    resources = ["--nodes", "4", "--gpus-per-node", "8", "--cpus-per-node", "64", "--time", "24:00:00"]
    more = ["--partition", "gpu", "--account", "us", "--sbatch", "--constraint=a100", "--sbatch=--exclusive"]
    (words,) = shown("train", *RUN, *resources, *more, "--tries", "5", "--save-seconds", "600", "phases.0.epochs=3")
    assert words == [
        *(
            "sbatch",
            "--parsable",
            f"--chdir={REPOSITORY}",
            f"--output={Path.cwd() / 'RUN'}-%j.log",
            "--signal=B:USR1@1200",
        ),
        *("--nodes=4", "--gpus-per-node=8", "--cpus-per-task=64", "--time=24:00:00", "--partition=gpu"),
        *("--account=us", "--constraint=a100", "--exclusive"),
        *(str(REPOSITORY / "slurm" / "train.sbatch"), "--tries", "5", "--save-seconds", "600"),
        *("--recipe", "small-resnet-32", "--data", str(Path.cwd() / "DATASET"), "--out", str(Path.cwd() / "RUN")),
        "phases.0.epochs=3",
    ]


def test_what_was_not_said_is_left_to_the_cluster_and_urls_stay_urls() -> None:
    (words,) = shown("train", "--recipe", "small-resnet-32", "--data", "s3://bucket/D", "--out", "/runs/1")
    assert [word for word in words if word.startswith("--") and "=" in word] == [
        *(f"--chdir={REPOSITORY}", "--output=/runs/1-%j.log", "--signal=B:USR1@120", "--nodes=1"),
    ]
    assert words[-4:] == ["--data", "s3://bucket/D", "--out", "/runs/1"]


def test_the_launch_file_and_the_processes_are_the_scripts_options(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("")
    (words,) = shown("train", *RUN, "--processes-per-node", "2", "--launch-config", str(own))
    script = words.index(str(REPOSITORY / "slurm" / "train.sbatch"))
    given = ["--save-seconds", "60", "--processes-per-node", "2", "--launch-config", str(own), "--recipe"]
    assert words[script + 3 : script + 10] == given


@pytest.mark.parametrize(("folds", "tasks"), [("0", 3), ("5", 15)])
def test_an_ensemble_is_an_array_of_members_and_folds_then_their_combination(folds: str, tasks: int) -> None:
    members, combined = shown("ensemble", *ENSEMBLE, "--folds", folds, "--gpus-per-node", "8")
    assert f"--array=0-{tasks - 1}" in members and "--gpus-per-node=8" in members
    assert "--dependency=afterok:JOB" in combined and "--combine" in combined
    assert not [word for word in combined if word.startswith(("--array", "--gpus"))]
    assert ("--folds" in members) == ("--folds" in combined) == (folds == "5")


def test_recipes_over_folds_are_an_array_of_all_their_runs(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    text = (REPOSITORY / "planet_dist" / "recipes" / "small-resnet-32.toml").read_text()
    own.write_text(f"seed = 1\n{text}")
    recipes = ["--recipes", f"small-resnet-32,{own}", "--folds", "4", "--data", "DATASET", "--out", "DIR"]
    members, combined = shown("ensemble", *recipes, "--grouped", "evaluate.turns=1")
    here = Path.cwd()
    given = [
        *("--recipes", f"small-resnet-32,{own}", "--folds", "4", "--grouped"),
        *("--data", str(here / "DATASET"), "--out", str(here / "DIR"), "evaluate.turns=1"),
    ]
    assert "--array=0-7" in members
    assert members[-len(given) :] == given == combined[-len(given) :]


def test_members_that_others_teach_are_an_array_before_theirs(tmp_path: Path) -> None:
    taught = ["--recipe", "best-32-taught", "--folds", "4", "--data", "DATASET", "--out", "DIR"]
    teachers, students, combined = shown("ensemble", *taught)
    assert "--array=0-3" in teachers and not [word for word in teachers if word.startswith("--dependency")]
    assert "--array=4-7" in students and "--dependency=afterok:JOB" in students
    assert "--combine" in combined and "--dependency=afterok:JOB" in combined


def test_members_that_start_from_others_are_arrays_one_after_the_other() -> None:
    chain = ["--recipe", "best-32-lites", "--folds", "4", "--data", "DATASET", "--out", "DIR"]
    *stages, _combined = shown("ensemble", *chain)
    arrays = [word for stage in stages for word in stage if word.startswith("--array=")]
    assert arrays == ["--array=0-3", "--array=4-7", "--array=8-11", "--array=12-19"]
    assert [any(word.startswith("--dependency") for word in stage) for stage in stages] == [False, True, True, True]


def test_a_dataset_is_an_array_of_parts_then_their_publication() -> None:
    sources = ["--images", "CHIPS", "--labels", "train.csv", "--out", "/data/D"]
    parts, last = shown("build", *sources, "--parts", "4", "--on-bad", "skip", "--shard-bytes", "1GB")
    assert "--array=0-3" in parts and "--output=/data/D-%A_%a.log" in parts
    script = parts.index(str(REPOSITORY / "slurm" / "build.sbatch"))
    here = Path.cwd()
    assert parts[script + 1 :] == [
        *("--parts", "4", "--images", str(here / "CHIPS"), "--labels", str(here / "train.csv"), "--out", "/data/D"),
        *("--on-bad", "skip", "--shard-bytes", "1GB"),
    ]
    assert "--dependency=afterok:JOB" in last and last[-3:] == ["--publish", "--out", "/data/D"]


def test_the_second_job_waits_for_the_number_that_the_first_was_given(sbatch: Path) -> None:
    result = submit("build", "--images", "CHIPS", "--out", "D", "--unlabelled")
    assert result.exit_code == 0, result.output
    assert result.stdout == "job 101: build.sbatch\njob 102: build.sbatch, after the one before\n"
    first, second = sbatch.read_text().splitlines()
    assert "--dependency" not in first and "--dependency=afterok:101 " in second


def test_what_sbatch_refuses_is_shown_with_its_reason(sbatch: Path) -> None:
    result = submit("train", *RUN, "--partition", "none")
    assert result.exit_code == 1
    assert "invalid partition" in result.stderr and "--partition=none" in result.stderr


def test_jobs_submitted_before_a_refusal_are_named(sbatch: Path) -> None:
    program = sbatch.parent / "bin" / "sbatch"
    program.write_text(program.read_text().replace("--partition=none", "--dependency"))
    result = submit("build", "--images", "CHIPS", "--out", "D", "--unlabelled")
    assert result.exit_code == 1
    assert "already submitted: 101 (scancel takes them back)" in result.stderr


def test_where_there_is_no_sbatch_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = submit("train", *RUN)
    assert result.exit_code == 1
    assert "sbatch: not found" in result.stderr and "--dry-run" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", *RUN, "phases.0.epochs=none"], "phases.0.epochs"),
        (["train", "--recipe", "small-resnet-23", "--data", "D", "--out", "R"], "did you mean 'small-resnet-32'"),
        (["ensemble", *ENSEMBLE, "phases.0.epoch=1"], "epoch"),
        (["ensemble", *ENSEMBLE, "--folds", "1"], "give 3 or more"),
        (["ensemble", *ENSEMBLE, "--folds", "3", "data.split"], "section.key=value"),
        (["ensemble", "--recipes", "small-resnet-32", "--data", "D", "--out", "R"], "--recipes needs --folds"),
    ],
)
def test_what_cannot_run_is_not_submitted(sbatch: Path, words: list[str], message: str) -> None:
    result = submit(*words)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not sbatch.exists()
