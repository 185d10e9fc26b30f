"""What a run trains with fits its chips and its phases, or is refused with a reason."""

from __future__ import annotations

import pytest
import torch

from planet_dist.assembly import assemble
from planet_dist.config import Config, parse_config
from planet_dist.data import open_data
from shards.errors import ConfigError
from shards.reader import Dataset


def make_config(model: str, *sizes: int) -> Config:
    phase = {"epochs": 1, "batch_size": 4, "learning_rate": 0.1}
    table = {
        "description": "x",
        "data": {"split": "tail:30", "size": 32},
        "model": {"name": model, "width": 8},
        "phases": [phase | {"size": size} for size in sizes],
    }
    return parse_config(table, "test")


def test_a_phase_may_train_on_smaller_chips_where_the_network_takes_them(dataset: Dataset) -> None:
    config = make_config("small-resnet", 24, 0)
    parts = assemble(config, open_data(config, dataset.root), torch.device("cpu"))
    assert parts.preprocess.side == 32
    assert parts.model.training


def test_a_phase_of_a_size_that_the_network_cannot_take_is_refused(dataset: Dataset) -> None:
    config = make_config("paper2-cnn", 0, 24)
    data = open_data(config, dataset.root)
    with pytest.raises(ConfigError, match=r"phases.1.size 24: paper2-cnn cannot take it .*another size or network"):
        assemble(config, data, torch.device("cpu"))
