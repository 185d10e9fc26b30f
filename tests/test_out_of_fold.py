"""Out-of-fold answers gathered by id: each labelled chip once for each recipe, and none that a run was trained on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from planet_dist.config import load_config
from planet_dist.data import open_data
from planet_dist.out_of_fold import gather
from planet_dist.predictions import read_predictions
from shards.errors import RunError
from shards.reader import Dataset
from tests.made_runs import made_fold_run, made_run

FOLDS = 3


@pytest.fixture(scope="module")
def runs(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two recipes on three folds; the second has a seed of its own, and the first's folds."""
    folder = tmp_path_factory.mktemp("folds")
    own_seed = ["seed=7", "data.split_seed=0", "loss.label_smoothing=0.1"]
    return [
        made_fold_run(folder / recipe / f"fold-{fold}", dataset, 10 * r + fold, f"kfold:{FOLDS}/{fold}", words=words)
        for r, (recipe, words) in enumerate({"plain": [], "smoothed": own_seed}.items())
        for fold in range(FOLDS)
    ]


def truth(dataset: Dataset) -> np.ndarray:
    return dataset.manifest.vocabulary.matrix(dataset.index()["labels"]).astype(bool)


def test_each_chip_has_the_answer_of_the_run_that_held_it_out(runs: list[Path], dataset: Dataset) -> None:
    shuffled = [runs[i] for i in (4, 0, 5, 2, 1, 3)]
    recipes, found = gather(shuffled, dataset.root)
    assert [recipe.name for recipe in recipes] == ["smoothed", "plain"]
    assert [[run.split.fold for run in recipe.runs] for recipe in recipes] == [[0, 1, 2], [0, 1, 2]]
    assert found.recipes == ("smoothed", "plain")
    assert found.ids_N.tolist() == np.flatnonzero(dataset.index()["labelled"]).tolist()
    assert (found.true_NC == truth(dataset)[found.ids_N]).all()
    for fold in range(FOLDS):
        split = open_data(load_config("small-resnet-32", [f"data.split=kfold:{FOLDS}/{fold}"]), dataset.root).split
        assert np.array_equal(found.ids_N[found.fold_of_N == fold], split.val_ids)
        for r, first in enumerate((3, 0)):
            predictions = read_predictions(runs[first + fold] / "evaluation" / "predictions.npz")
            for chip, expected_C in zip(predictions.ids_N.tolist(), predictions.probabilities_NC, strict=True):
                assert (found.answers_RNC[r, np.searchsorted(found.ids_N, chip)] == expected_C).all()


def copied(runs: list[Path], place: int, tmp_path: Path) -> tuple[list[Path], Path]:
    """The runs with one of them copied, to be changed."""
    copy = tmp_path / runs[place].parent.name / runs[place].name
    shutil.copytree(runs[place], copy)
    return [*runs[:place], copy, *runs[place + 1 :]], copy


def change(run: Path, how: Callable[[dict[str, np.ndarray]], None]) -> None:
    path = run / "evaluation" / "predictions.npz"
    with np.load(path) as file:
        arrays = dict(file)
    how(arrays)
    np.savez(path, **arrays)


def test_a_chip_that_a_run_was_trained_on_is_refused_by_name(
    runs: list[Path], dataset: Dataset, tmp_path: Path
) -> None:
    changed, copy = copied(runs, 1, tmp_path)
    leaked = int(read_predictions(runs[0] / "evaluation" / "predictions.npz").ids_N.min())

    def leak(arrays: dict[str, np.ndarray]) -> None:
        arrays["ids"][0] = leaked
        arrays["targets"][0] = truth(dataset)[leaked]

    change(copy, leak)
    with pytest.raises(
        RunError, match=r"fold-1: has out-of-fold predictions of 1 chip\(s\) that it was trained on"
    ) as error:
        gather(changed, dataset.root)
    assert f"{dataset.keys([leaked])[0]} (id {leaked})" in str(error.value)


def test_a_run_that_was_trained_on_other_chips_than_its_configuration_says_is_refused(
    runs: list[Path], dataset: Dataset, tmp_path: Path
) -> None:
    """As if a run of fold 1, whose bundle says what it was trained on, stood in for one of fold 0."""
    changed, copy = copied(runs, 0, tmp_path)
    shutil.rmtree(copy / "bundle")
    shutil.copytree(runs[1] / "bundle", copy / "bundle")
    with pytest.raises(RunError, match=r"fold-0: its split, drawn again, has 80 chips .* train it again"):
        gather(changed, dataset.root)


def test_missing_foreign_and_doubled_chips_are_refused(runs: list[Path], dataset: Dataset, tmp_path: Path) -> None:
    changed, copy = copied(runs, 2, tmp_path / "missing")
    change(copy, lambda arrays: arrays.update({name: arrays[name][1:] for name in ("ids", "targets", "logits")}))
    with pytest.raises(RunError, match=r"fold-2: predicts none of 1 of the 40 chips that it held out, for instance "):
        gather(changed, dataset.root)
    changed, copy = copied(runs, 2, tmp_path / "foreign")
    change(copy, lambda arrays: arrays["ids"].__setitem__(3, 9999))
    with pytest.raises(RunError, match=r"1 chip\(s\) that don't belong to its fold; the first is id 9999"):
        gather(changed, dataset.root)
    changed, copy = copied(runs, 2, tmp_path / "doubled")
    change(copy, lambda arrays: arrays["ids"].__setitem__(3, arrays["ids"][4]))
    with pytest.raises(RunError, match=r"comes 2 times; each must come once"):
        gather(changed, dataset.root)
    changed, copy = copied(runs, 2, tmp_path / "relabelled")
    change(copy, lambda arrays: arrays["targets"].__ixor__(1))
    with pytest.raises(RunError, match="bear other labels"):
        gather(changed, dataset.root)


def test_folds_that_are_missing_or_come_twice_are_refused(runs: list[Path], dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"smoothed: fold\(s\) 1 of 3 are missing"):
        gather([run for run in runs if run != runs[4]], dataset.root)
    _, copy = copied(runs, 0, tmp_path)
    with pytest.raises(RunError, match="trained alike on one fold; give each fold of a recipe once"):
        gather([*runs, copy], dataset.root)


def test_recipes_of_other_folds_are_refused(runs: list[Path], dataset: Dataset, tmp_path: Path) -> None:
    reseeded = [made_fold_run(tmp_path / "s" / f"{i}", dataset, i, f"kfold:3/{i}", words=["seed=5"]) for i in range(3)]
    with pytest.raises(RunError, match=r"holds out other chips than .*: give all one seed, or one data.split_seed"):
        gather([*runs, *reseeded], dataset.root)
    four = [made_fold_run(tmp_path / "f" / f"{i}", dataset, i, f"kfold:4/{i}") for i in range(4)]
    with pytest.raises(RunError, match=r"its split is kfold:4/0, and that of .* kfold:3/0"):
        gather([*runs, *four], dataset.root)


def test_runs_without_folds_and_of_other_datasets_are_refused(
    runs: list[Path], dataset: Dataset, tif_dataset: Dataset, tmp_path: Path
) -> None:
    plain = made_run(tmp_path / "plain", dataset, 1)
    (plain / "config.toml").write_text(load_config("small-resnet-32", ["data.split=tail:40"]).to_toml())
    with pytest.raises(RunError, match=r"its split is tail:40, which has no folds; .* --rule vote, mean or any-rare"):
        gather([*runs, plain], dataset.root)
    with pytest.raises(RunError, match="give the dataset of the runs"):
        gather(runs, tif_dataset.root)
    with pytest.raises(RunError, match="give RUN/bundle of a finished run"):
        gather([tmp_path / "nothing"], dataset.root)


def test_recipes_without_folders_of_their_own_are_named_by_their_networks(dataset: Dataset, tmp_path: Path) -> None:
    plain = [made_fold_run(tmp_path / f"a{i}", dataset, i, f"kfold:3/{i}") for i in range(3)]
    assert [recipe.name for recipe in gather(plain, dataset.root)[0]] == [tmp_path.name]
    other = [
        made_fold_run(tmp_path / f"b{i}", dataset, i, f"kfold:3/{i}", words=["augment.flip=false"]) for i in range(3)
    ]
    recipes, _ = gather([*plain, *other], dataset.root)
    assert [recipe.name for recipe in recipes] == ["0-small-resnet", "1-small-resnet"]


def test_a_label_that_no_recipe_speaks_for_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    specialists = [
        made_fold_run(tmp_path / f"{i}", dataset, i, f"kfold:3/{i}", speaks_for=dataset.manifest.labels[1:])
        for i in range(3)
    ]
    with pytest.raises(RunError, match="no recipe was trained on agriculture"):
        gather(specialists, dataset.root)
