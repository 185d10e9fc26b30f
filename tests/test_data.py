"""A run's chips: labels by id, the two halves of the split, and the order that a phase takes them in."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from planet_dist.config import Config, load_config
from planet_dist.data import open_data
from planet_dist.engine import run_identity
from planet_dist.runfolder import differences
from shards.build import BuildOptions, build
from shards.errors import ConfigError, DatasetError
from shards.groups import Groups, write_groups
from shards.labels import PLANET
from shards.reader import Dataset


def config(*overrides: str) -> Config:
    return load_config("small-resnet-32", ["data.split=tail:30", *overrides])


def test_targets_are_the_datasets_labels_by_id(dataset: Dataset, chips: Path) -> None:
    data = open_data(config(), dataset.root)
    rows = dict(line.split(",") for line in (chips / "train.csv").read_text().splitlines()[1:])
    assert data.targets_NC.shape == (len(rows), len(data.labels))
    assert data.targets_NC.dtype == np.uint8
    for key, target_C in zip(data.dataset.keys(range(len(rows))), data.targets_NC, strict=True):
        assert {data.labels[i] for i in np.flatnonzero(target_C)} == set(rows[key].split())


def test_the_split_parts_all_chips_as_the_configuration_says(dataset: Dataset) -> None:
    data = open_data(config(), dataset.root)
    keys = data.dataset.keys(data.split.val_ids.tolist())
    assert set(keys) == {f"train_{number}" for number in range(90, 120)}
    assert sorted([*data.split.train_ids, *data.split.val_ids]) == list(range(120))


def test_the_seed_of_the_configuration_draws_a_random_split(dataset: Dataset) -> None:
    found = [
        open_data(config("data.split=random:0.25", f"seed={seed}"), dataset.root).split.val_ids.tolist()
        for seed in (1, 1, 2)
    ]
    assert len(found[0]) == 30 and found[0] == found[1] != found[2]


def test_a_plan_takes_every_training_chip_once_an_epoch_whatever_the_lanes(dataset: Dataset) -> None:
    assert len(dataset.manifest.shards) > 1
    for lanes in (1, 3):
        settings = config("phases.0.batch_size=16", f"data.lanes={lanes}", "seed=5")
        data = open_data(settings, dataset.root)
        plan = data.plan(settings, settings.phases[0])
        assert (plan.lanes, plan.seed, plan.window, plan.batch_size) == (lanes, 5, settings.data.shuffle_window, 16)
        taken = np.concatenate([plan.batch(0, step) for step in range(plan.steps_per_epoch)])
        assert sorted(taken) == data.split.train_ids.tolist()
        assert not np.array_equal(taken, np.sort(taken))


def test_a_recipe_for_another_kind_of_image_is_refused_with_a_remedy(dataset: Dataset, tif_dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"chips are jpg, and the recipe is meant for tif; .*data\.kind=any"):
        open_data(config("data.kind=tif"), dataset.root)
    with pytest.raises(ConfigError, match=r"chips are tif, and the recipe is meant for jpg"):
        open_data(config("data.kind=jpg"), tif_dataset.root)
    for kind in ("tif", "any"):
        assert open_data(config(f"data.kind={kind}"), tif_dataset.root).dataset.manifest.image.bands == 4


def test_chips_without_labels_neither_train_nor_validate(chips: Path, tmp_path: Path) -> None:
    rows = (chips / "train.csv").read_text().splitlines()
    (tmp_path / "some.csv").write_text("\n".join(rows[:81]) + "\n")
    build(BuildOptions(chips / "train-jpg", tmp_path / "some.csv", tmp_path / "out", PLANET, unlabelled=True))
    data = open_data(config(), tmp_path / "out")
    labelled = {row.split(",")[0] for row in rows[1:81]}
    assert len(data.targets_NC) == 120
    used = data.dataset.keys([*data.split.train_ids, *data.split.val_ids])
    assert sorted(used) == sorted(labelled)


def test_a_split_larger_than_the_dataset_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="tail:200"):
        open_data(config("data.split=tail:200"), dataset.root)


def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=str(tmp_path)):
        open_data(config(), tmp_path)


def related(dataset: Dataset, tmp_path: Path, groups: list[list[str]]) -> Path:
    """The dataset with groups beside it."""
    copy = tmp_path / "related"
    shutil.copytree(dataset.root, copy, dirs_exist_ok=True)
    write_groups(copy, Groups(dataset=dataset.digest, groups=groups))
    return copy


def test_related_chips_stand_on_one_side_of_a_grouped_split(dataset: Dataset, tmp_path: Path) -> None:
    keys = dataset.keys(range(len(dataset)))
    groups = [keys[start : start + 3] for start in range(0, 60, 3)]
    root = related(dataset, tmp_path, groups)
    validated = set()
    for fold in range(3):
        data = open_data(config(f"data.split=kfold-grouped:3/{fold}"), root)
        fold_keys = set(dataset.keys(data.split.val_ids.tolist()))
        assert all(len(fold_keys & set(group)) in (0, 3) for group in groups)
        validated |= fold_keys
    assert validated == set(keys)


def test_a_grouped_split_without_groups_names_the_command(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match=r"groups.json: no such file.*run planet-shard groups"):
        open_data(config("data.split=kfold-grouped:3/0"), dataset.root)


def test_a_run_is_held_to_the_groups_that_it_began_with_and_others_go_on_without(
    dataset: Dataset, tmp_path: Path
) -> None:
    def identity(root: Path, split: str) -> dict[str, Any]:
        settings = config(f"data.split={split}")
        accelerator = SimpleNamespace(mixed_precision="no")
        return run_identity(settings, open_data(settings, root), accelerator)  # type: ignore[arg-type]

    keys = dataset.keys(range(len(dataset)))
    root = related(dataset, tmp_path, [keys[:2]])
    grouped, plain = (identity(root, f"{kind}:3/0") for kind in ("kfold-grouped", "kfold"))
    assert grouped["groups"] == hashlib.sha256((root / "groups.json").read_bytes()).hexdigest()
    related(dataset, tmp_path, [keys[:3]])
    ((where, old, new),) = differences(grouped, identity(root, "kfold-grouped:3/0"))
    assert where == "groups" and old == grouped["groups"] and new not in (old, None)
    assert differences(plain, identity(root, "kfold:3/0")) == []
