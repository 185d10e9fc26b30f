"""The dashboard as a file, and the sweep's command as W&B's agent makes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from planet_dist.cli import main
from planet_dist.config import load_config
from planet_dist.tracking_names import METRICS
from planet_dist.train import main as train
from shards.reader import Dataset
from tests.conftest import REPOSITORY

NAMED = ["dashboard", "--entity", "team", "--project", "chips"]


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_the_definition_has_the_teams_sections_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one.json", "two.json"):
        done = CliRunner().invoke(main, [*NAMED, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    text = (tmp_path / "one.json").read_text()
    assert text == (tmp_path / "two.json").read_text()
    made = json.loads(text)
    assert (made["entity"], made["project"]) == ("team", "chips")
    sections = made["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == ["Overview", "Per label", "Speed", "Ensembles", "Sweeps"]
    assert all(section["panels"] for section in sections)
    headings = [
        block["children"][0]["text"] for block in made["report"]["spec"]["blocks"] if block["type"] == "heading"
    ]
    assert headings == [section["name"] for section in sections]


def test_labels_are_those_of_the_dataset(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "dashboard.json"
    done = CliRunner().invoke(main, [*NAMED, "--data", str(dataset.root), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert all(f'"label/{label}/recall"' in out.read_text() for label in dataset.manifest.labels)


def test_without_a_key_it_writes_the_definition_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, NAMED)
    assert done.exit_code == 0, done.output
    assert "no key for https://api.wandb.ai" in done.output
    assert "workspace" in json.loads((tmp_path / "dashboard.json").read_text())


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("wandb_workspaces", "wandb_workspaces.reports.v2", "wandb_workspaces.workspaces"):
        monkeypatch.setitem(sys.modules, name, None)
    done = CliRunner().invoke(main, [*NAMED, "--out", str(tmp_path / "dashboard.json")])
    assert done.exit_code == 1
    assert "pip install 'planet-dist[dashboard]'" in done.output


def made_value(parameter: dict[str, Any]) -> Any:
    return parameter["values"][-1] if "values" in parameter else (parameter["min"] + parameter["max"]) / 2


def test_the_sweeps_command_is_one_that_train_takes(tmp_path: Path) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((REPOSITORY / "launch" / "sweep.yaml").read_text())
    assert sweep["metric"]["name"] in {metric.key for metric in METRICS}
    given = {name: made_value(parameter) for name, parameter in sweep["parameters"].items()}
    macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in given.items()}})
    named = {"${program}": [sweep["program"]], "${args_no_hyphens}": macros["args_no_hyphens"]}
    words = [word for part in create_sweep_command(sweep["command"]) for word in named.get(part, [part])]
    assert not any("${" in word for word in words), "a macro that is not looked at here"
    launcher = tmp_path / "accelerate"
    launcher.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    launcher.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PLANET_DATA": "DATASET",
        "PLANET_LAUNCH": "launch/one_gpu.yaml",
        "PLANET_OUT": "runs",
        "WANDB_SWEEP_ID": "sweep1",
        "WANDB_RUN_ID": "run1",
    }
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    launched = done.stdout.splitlines()
    assert launched[:4] == ["launch", "--config_file", "launch/one_gpu.yaml", "planet_dist/train.py"]
    context = train.make_context("train", launched[4:])
    assert (context.params["data"], context.params["out"]) == ("DATASET", Path("runs/sweep1/run1"))
    config = load_config(context.params["recipe"], context.params["overrides"])
    assert config.phases[0].learning_rate == given["phases.0.learning_rate"]
    assert config.loss.name == given["loss.name"]
    assert config.phases[0].batch_size == given["phases.0.batch_size"]
