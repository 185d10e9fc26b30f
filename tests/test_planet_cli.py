"""The command `planet-dist`, through click's runner."""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from planet_dist.cli import main
from planet_dist.config import ensemble_recipe_paths, load_config, recipe_paths
from planet_dist.decision import read_decision
from planet_dist.ensemble_train import load_ensemble_recipe
from planet_dist.predictions import write_predictions
from shards.labels import PLANET


@pytest.fixture
def predictions(tmp_path):
    rng = np.random.default_rng(0)
    targets_NC = rng.random((200, 2)) < [0.7, 0.2]
    logits_NC = rng.normal(np.where(targets_NC, 1.5, -1.5), 1.0)
    path = tmp_path / "predictions.npz"
    write_predictions(path, ["clear", "water"], np.arange(200), logits_NC, targets_NC)
    return path


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_thresholds_prints_both_tables_and_writes_the_chosen_rule(predictions, tmp_path):
    out = tmp_path / "thresholds.json"
    result = run("thresholds", "--predictions", predictions, "--out", out)
    assert result.exit_code == 0, result.output
    chosen = read_decision(out)
    assert f"* {chosen.rule}" in result.stdout
    assert chosen.labels == ("clear", "water")
    for shown in ("flat-0.2", "grid-joint", "cross-fitted", "water", "recall", "support", str(out)):
        assert shown in result.stdout.replace("\n", "")


def test_thresholds_prints_json_alone_when_asked(predictions, tmp_path):
    out = tmp_path / "thresholds.json"
    result = run("thresholds", "--predictions", predictions, "--json", "--folds", 3, "--out", out)
    assert result.exit_code == 0
    table = json.loads(result.stdout)
    assert (table["rows"], table["folds"]) == (200, 3)
    assert table["chosen"] == read_decision(out).rule
    assert [row["threshold"] for row in table["labels"]] == list(read_decision(out).values)


def test_thresholds_compares_expected_f2_by_planets_rules_where_the_labels_are_planets(tmp_path):
    rng = np.random.default_rng(1)
    targets_NC = rng.random((60, 17)) < 0.3
    path = tmp_path / "predictions.npz"
    write_predictions(path, PLANET.labels, np.arange(60), rng.normal(np.where(targets_NC, 1.0, -1.0), 1.0), targets_NC)
    shown = run("thresholds", "--predictions", path).stdout
    for rule in ("shrunk", "expected-f2 ", "expected-f2-rules"):
        assert rule in shown


def test_thresholds_takes_label_rules_from_a_file(predictions, tmp_path):
    words = tmp_path / "words.toml"
    words.write_text('labels = ["clear", "water"]\nalone = ["clear"]\n')
    out = tmp_path / "thresholds.json"
    assert "expected-f2-rules" not in run("thresholds", "--predictions", predictions).stdout
    result = run("thresholds", "--predictions", predictions, "--vocabulary", words, "--out", out)
    assert "expected-f2-rules" in result.stdout
    words.write_text('labels = ["clear", "lava"]\n')
    result = run("thresholds", "--predictions", predictions, "--vocabulary", words)
    assert result.exit_code == 1
    assert "differ in lava, water" in result.stderr


def test_thresholds_says_how_many_tags_were_repeated(tmp_path):
    path = tmp_path / "predictions.csv"
    rows = [f"train_{i},{0.9 - i / 20},{i % 2 + (i == 3)}" for i in range(10)]
    path.write_text("\n".join(["image_name,clear_pred,clear_true", *rows]))
    result = run("thresholds", "--predictions", path)
    assert result.exit_code == 0
    assert "1 labels stand more than once" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folds", 1], "give 2 to 200"),
        (["--seed", -1], "seed -1 is negative"),
        (["--out", "no/such/folder/thresholds.json"], "No such file or directory"),
    ],
)
def test_a_mistake_is_one_message_without_a_traceback(predictions, arguments, message):
    result = run("thresholds", "--predictions", predictions, *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert result.stdout == ""


def test_a_bad_file_is_named(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text("image_name,tags\n")
    result = run("thresholds", "--predictions", path)
    assert result.exit_code == 1
    assert f"{path}:1: no column ends with _pred" in result.stderr


def test_help_imports_neither_numpy_nor_torch():
    code = (
        "import sys, planet_dist.cli\n"
        "print(sorted({'numpy', 'torch', 'rich', 'pydantic', 'sklearn'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_judging_rules_imports_neither_torch_nor_scikit_learn():
    code = (
        "import sys, planet_dist.crossfit, planet_dist.predictions, planet_dist.tables, planet_dist.split\n"
        "print(sorted({'torch', 'sklearn'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_recipes_are_listed_each_with_its_network_and_its_description_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = run("recipes").stdout
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    for name in recipe_paths():
        config = load_config(name)
        assert f"{name} {config.model.name} " in words
        assert config.description in words
    for name in ensemble_recipe_paths():
        assert f"{name} {load_ensemble_recipe(name).description}" in words
