"""Every recipe trains, phase by phase, on two ranks, with the optimizer and the parts that its paper names."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from planet_dist.config import load_config, recipe_paths
from shards.reader import Dataset
from tests.conftest import launch

OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "muon": "Muon"}


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tif_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two steps of every phase of every recipe came to."""
    out = tmp_path_factory.mktemp("recipes") / "found.json"
    done = launch("tests/ranks_recipes.py", str(dataset.root), str(tif_dataset.root), str(out))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(out.read_text()))


@pytest.mark.parametrize("name", recipe_paths())
def test_every_phase_moves_what_it_trains_and_nothing_else_alike_on_both_ranks(
    trained: dict[str, Any], name: str
) -> None:
    phases = load_config(name).phases
    assert len(trained[name]) == len(phases)
    for phase, found in zip(phases, trained[name], strict=True):
        assert all(math.isfinite(loss) for loss in found["losses"])
        assert found["ranks_equal"] and found["trained_moved"] and not found["frozen_moved"]
        assert found["optimizer"] == OPTIMIZERS[phase.optimizer]
        assert (found["counts"][1] == 0) == (phase.trains == "all")


def test_the_first_papers_networks_train_their_three_dense_layers_alone(trained: dict[str, Any]) -> None:
    assert trained["paper1-vgg16"][0]["counts"] == [398_353, 14_714_688]
    assert trained["paper1-inception-v3"][0]["counts"] == [1_184_785, 21_785_568]
    assert trained["paper1-resnet50"][0]["counts"] == [1_184_785, 23_508_032]


def test_the_second_papers_network_trains_its_head_and_then_from_mixed_6d(trained: dict[str, Any]) -> None:
    head, joint = trained["paper2-inception-v3"]
    assert (head["optimizer"], joint["optimizer"]) == ("Adam", "SGD")
    assert head["counts"][0] == 2048 * 512 + 512 + 512 * 17 + 17
    assert head["counts"][0] < joint["counts"][0] < sum(joint["counts"])
