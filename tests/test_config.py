"""Recipes resolve to one configuration, and mistakes name what is valid."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from planet_dist.config import load_config, parse_config, recipe_paths
from shards.errors import ConfigError


@pytest.mark.parametrize("name", recipe_paths())
def test_every_recipe_resolves_and_survives_being_written_out(name: str) -> None:
    config = load_config(name)
    assert parse_config(tomllib.loads(config.to_toml()), "again") == config


@pytest.mark.parametrize("name", recipe_paths())
def test_every_recipe_opens_with_its_command(name: str) -> None:
    head = recipe_paths()[name].read_text()[:400]
    assert head.startswith("# ")
    assert f"--recipe {name}" in head


def test_the_command_line_stands_above_the_recipe_and_the_recipe_above_the_defaults() -> None:
    config = load_config("small-resnet-32", ["phases.0.epochs=3", "data.split=random:0.5", "augment.flip=false"])
    assert (config.phases[0].epochs, config.data.split, config.augment.flip) == (3, "random:0.5", False)
    assert config.augment.quarter_turns  # the recipe's
    assert config.data.lanes == 1  # the default


def test_a_recipe_may_be_a_file_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipe_paths()["small-resnet-32"].read_text().replace("epochs = 16", "epochs = 2"))
    assert load_config(str(path)).phases[0].epochs == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.widht=32", r"model\.widht: unknown key \(did you mean 'width'\?\); valid: name, width"),
        ("phases.0.lr=1", r"phases\.0\.lr: unknown key.*valid: epochs, size, batch_size"),
        ("optimiser.x=1", r"optimiser: unknown key.*valid: description, seed, data"),
        ("seed=-1", r"seed: Input should be greater than or equal to 0, not -1"),
        ("data.normalise=half", r"data\.normalise: .*'dataset'.*'imagenet'.*'per-chip'.*not 'half'"),
        ("phases.0.plain_epochs=99", r"phases\.0: plain_epochs 99 are more than the \d+ epochs of the phase"),
        ("phases.1.epochs=2", r"'1' is not the place of one of 1 item"),
        ("phases.epochs=2", r"name a key of one item, for instance phases\.0"),
        ("seed", r"give section\.key=value"),
        ("description.x=1", r"'description' is a value, not a section"),
    ],
)
def test_a_mistaken_override_names_the_key_and_what_is_valid(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("small-resnet-32", [override])


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("small-resnet-32", ["data.x=1", "model.y=2", "phases.0.z=3"])
    assert all(part in str(caught.value) for part in ("data.x", "model.y", "phases.0.z"))


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'small-resnet-32'\? there are .*paper1-baseline"):
        load_config("small-resnet32")


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("epochs = = 2")
    with pytest.raises(ConfigError, match=r"broken\.toml: not TOML"):
        load_config(str(path))
