"""Descriptions of networks, and the commands about networks and their weights."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

from planet_dist.cli import main
from planet_dist.config import load_config, recipe_paths
from planet_dist.describe import Description, describe, description_table
from planet_dist.models import build_model


def described(recipe: str, *overrides: str, bands: int = 3, every: bool = False) -> Description:
    config = load_config(recipe, overrides)
    return describe(config, labels=17, bands=bands, size=config.data.size or 256, every=every)


def run(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(main, list(words))


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("recipe", ["paper2-inception-v3", "paper1-vgg16", "small-resnet-32"])
def test_the_layers_weights_add_up_to_the_network(recipe: str, every: bool) -> None:
    found = described(recipe, every=every)
    for phase, (training, frozen) in enumerate(found.totals):
        assert sum(layer.trained[phase] for layer in found.layers) == training
        assert sum(layer.weights for layer in found.layers) == training + frozen


def test_shapes_are_those_of_the_first_papers_baseline() -> None:
    found = described("paper1-baseline", bands=4)
    assert [(layer.name, layer.output, layer.weights) for layer in found.layers if layer.weights] == [
        ("conv1", (32, 256, 256), (4 * 9 + 1) * 32),
        ("conv2", (64, 128, 128), (32 * 9 + 1) * 64),
        ("head.dense1", (128,), 64 * 64 * 64 * 128 + 128),
        ("head.dense2", (17,), 129 * 17),
    ]


def test_shapes_are_those_that_a_real_forward_gives() -> None:
    config = load_config("small-resnet-32")
    model = build_model(config.model, 17, 3, 32)
    by_name = {layer.name: layer.output for layer in described("small-resnet-32").layers}
    x_BCHW = torch.zeros(1, 3, 32, 32)
    for name, child in model.backbone.named_children():
        x_BCHW = child(x_BCHW)
        last = [layer for layer in by_name if layer.split(".")[0] == name][-1]
        assert by_name[last] == tuple(x_BCHW.shape[1:])


def test_each_phase_marks_what_it_trains() -> None:
    found = described("paper2-inception-v3")
    assert found.phases == ["head", "from:Mixed_6d"]
    trains = {layer.name: [count > 0 for count in layer.trained] for layer in found.layers if layer.weights}
    assert trains["Mixed_6c"] == [False, False]
    assert trains["Mixed_6d"] == [False, True]
    assert trains["head.dense1"] == [True, True]


@pytest.mark.parametrize("recipe", sorted(recipe_paths()))
def test_the_command_shows_every_recipe_within_100_columns(recipe: str) -> None:
    done = run("describe", recipe)
    assert done.exit_code == 0, done.output
    assert "frozen" in done.stdout and "head.dense1" in done.stdout
    assert "…" not in "".join(line.split("│")[-1] for line in done.stdout.splitlines())


def test_bands_size_and_overrides_change_the_network() -> None:
    done = run("describe", "small-resnet-32", "--bands", "6", "--size", "64", "model.width=8")
    assert "6 bands, 64x64" in done.stdout
    assert "8x32x32" in done.stdout


def test_a_network_that_cannot_be_built_is_one_message() -> None:
    done = run("describe", "paper2-inception-v3", "--size", "40")
    assert done.exit_code == 1
    assert "inception_v3' cannot take 40 px" in done.stderr
    wrong = run("describe", "paper2-inception-v3", "phases.1.trains=from:Mixed_9z")
    assert wrong.exit_code == 1 and "no module of that name" in wrong.stderr


def test_the_table_names_the_sum() -> None:
    console = Console(width=100, record=True, quiet=True)
    console.print(description_table("x", described("paper2-simple-cnn-64")))
    assert "2,196,209 weights" in run("describe", "paper2-simple-cnn-64").stdout


def test_weights_are_fetched_into_the_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def download(url: str, path: str, **_: object) -> None:
        asked.append(url)
        Path(path).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        done = run("weights", "fetch", "resnet50", "vgg16")
        assert done.exit_code == 0, done.output
    assert len(asked) == 2 and "resnet50" in asked[0] and "vgg16" in asked[1]
    assert str(tmp_path / "checkpoints") in done.stdout


def test_fetching_without_a_network_says_so_and_where_the_file_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    done = run("weights", "fetch", "resnet50")
    assert done.exit_code == 1
    assert "Name or service not known" in done.stderr
    assert f"copy the file to {tmp_path / 'checkpoints' / 'resnet50-'}" in done.stderr.replace("\n", "")


def test_an_unknown_network_is_refused_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("fetched"))
    done = run("weights", "fetch", "resnet50", "resnet5O")
    assert done.exit_code == 1
    assert "did you mean resnet50" in done.stderr
