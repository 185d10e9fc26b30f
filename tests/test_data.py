"""A run's chips: which take part."""

from __future__ import annotations

import pytest

from planet_dist.config import Config, DataConfig, ModelConfig, PhaseConfig
from planet_dist.data import open_data
from shards.errors import ConfigError
from shards.names import natural_order
from shards.reader import Dataset


def config(limit: int, split: str) -> Config:
    return Config(
        description="made",
        data=DataConfig(limit=limit, split=split),
        model=ModelConfig(name="small-resnet"),
        phases=(PhaseConfig(epochs=1, batch_size=8, learning_rate=0.1),),
    )


def test_a_limit_takes_the_first_chips_by_number_and_splits_those(dataset: Dataset) -> None:
    found = open_data(config(50, "tail:10"), dataset.root).split
    in_order = sorted(dataset.keys(list(range(len(dataset)))), key=natural_order)
    assert set(dataset.keys(found.train_ids)) == set(in_order[:40])
    assert set(dataset.keys(found.val_ids)) == set(in_order[40:50])


def test_a_limit_beyond_the_dataset_and_none_take_all(dataset: Dataset) -> None:
    for limit in (0, len(dataset), 10 * len(dataset)):
        found = open_data(config(limit, "tail:10"), dataset.root).split
        assert len(found.train_ids) + len(found.val_ids) == len(dataset)


def test_a_limit_too_small_for_the_split_is_an_error(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="leaves 0 to train"):
        open_data(config(10, "tail:10"), dataset.root)
