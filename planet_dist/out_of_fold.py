"""Finished runs of several recipes on several folds, gathered by chip: each recipe's answers on what it never saw.

    recipe = runs that were trained alike on each of K folds
    a chip's answer of a recipe = that of the one run of it which held the chip out

Nothing is taken on trust. Each run's split is drawn again from its own configuration, and must lead to as many training
chips, with the same labels, as its bundle says it was trained on. Its predictions must be of the chips that this split
holds out: a chip that the run was trained on would make its answers look better than they are, and is refused. Each
labelled chip has exactly one answer of each recipe, and all recipes have the same folds.

Suffixes: R recipes, N samples, C labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planet_dist.bundle_description import Description
from planet_dist.bundle_files import read_description
from planet_dist.config import Config
from planet_dist.data import Data, open_data
from planet_dist.predictions import Predictions, read_predictions
from planet_dist.runfolder import RunFolder, settings
from planet_dist.split import SplitRule, parse_split
from planet_dist.stack_choice import Material
from planet_dist.trained_on import trained_on
from shards.errors import RunError


@dataclass(frozen=True)
class FoldRun:
    """A finished run that held out a fold.

    Attributes:
        root: its folder.
        config: as it was resolved.
        bundle: what it left.
        predictions: of the chips that it held out.
        split: which those are.
    """

    root: Path
    config: Config
    bundle: Description
    predictions: Predictions
    split: SplitRule


@dataclass(frozen=True)
class Recipe:
    """Runs that were trained alike, one on each fold, in the order of the folds."""

    name: str
    runs: tuple[FoldRun, ...]


@dataclass
class Splits:
    """Datasets with their splits, drawn once for all runs that share one.

    Attributes:
        location: of the dataset.
    """

    location: str | Path
    _drawn: dict[str, Data] = field(default_factory=dict)

    def of(self, config: Config) -> Data:
        """The dataset as a run has it; errors as those of open_data."""
        seed = config.seed if config.data.split_seed < 0 else config.data.split_seed
        key = json.dumps([config.data.split, seed, config.data.limit, config.data.kind])
        if key not in self._drawn:
            self._drawn[key] = open_data(config, self.location)
        return self._drawn[key]


def gather(runs: Sequence[Path], location: str | Path) -> tuple[list[Recipe], Material]:
    """Reads runs, sorts them by recipe and fold, and lays their answers side by side.

    Args:
        runs: folders of finished runs, in any order.
        location: the dataset that all of them were trained on.

    Returns:
        The recipes in the order in which they first come, and their answers on all labelled chips.

    Raises:
        RunError: a run isn't finished or is an ensemble; folds are missing or come twice; a run answers for a chip that
            it was trained on, or not for all that it held out; runs that don't belong together; or a label that no
            recipe was trained on.
        DatasetError, ConfigError: the dataset cannot be opened, or isn't of the runs' kind.
    """
    recipes = _by_recipe([_read(run) for run in runs])
    splits, first = Splits(location), recipes[0].runs[0]
    held_out = []
    for recipe in recipes:
        _check_folds(recipe)
        if recipe.runs[0].split != first.split:
            raise RunError(
                f"{recipe.runs[0].root}: its split is {recipe.runs[0].config.data.split}, and that of {first.root} "
                f"{first.config.data.split}; recipes are combined over the same folds"
            )
        held_out.append([_held_out(run, splits) for run in recipe.runs])
        for fold, (ids, others) in enumerate(zip(held_out[-1], held_out[0], strict=True)):
            if not np.array_equal(ids, others):
                raise RunError(
                    f"{recipe.runs[fold].root}: holds out other chips than {recipes[0].runs[fold].root}; recipes are "
                    "combined over the same folds: give all one seed, or one data.split_seed"
                )
    ids_N = np.concatenate(held_out[0])
    order_N = np.argsort(ids_N)
    ids_N, fold_of_N = (
        ids_N[order_N],
        np.repeat(np.arange(len(held_out[0])), [len(ids) for ids in held_out[0]])[order_N],
    )
    data = splits.of(first.config)
    _check_whole(ids_N, data, first)
    return recipes, Material(
        labels=tuple(data.labels),
        recipes=tuple(recipe.name for recipe in recipes),
        ids_N=ids_N,
        answers_RNC=np.stack([_answers(recipe, ids_N) for recipe in recipes]),
        true_NC=data.targets_NC[ids_N].astype(bool),
        fold_of_N=fold_of_N.astype(np.int64),
        speaks_RC=_speaks(recipes),
    )


def _read(root: Path) -> FoldRun:
    folder = RunFolder(root)
    bundle = read_description(folder.bundle)
    if len(bundle.members) != 1:
        raise RunError(f"{root}: is an ensemble of {len(bundle.members)} itself; give its members' runs")
    config = folder.read_config(remedy="restore it or train again")
    rule = parse_split(config.data.split)
    if not rule.kind.startswith("kfold"):
        raise RunError(
            f"{root}: its split is {config.data.split}, which has no folds; train with data.split=kfold:K/I, or "
            "combine runs that share their validation chips by --rule vote, mean or any-rare"
        )
    return FoldRun(root, config, bundle, read_predictions(folder.evaluation / "predictions.npz"), rule)


def _by_recipe(runs: Sequence[FoldRun]) -> list[Recipe]:
    """Runs whose configurations differ in nothing but the fold belong to one recipe."""
    found: dict[str, list[FoldRun]] = {}
    for run in runs:
        trained_by = settings(run.config)
        trained_by["data"]["split"] = [run.split.kind, run.split.count]
        found.setdefault(json.dumps(trained_by, sort_keys=True), []).append(run)
    ordered = [sorted(group, key=lambda run: run.split.fold) for group in found.values()]
    return [Recipe(name, tuple(group)) for name, group in zip(_names(ordered), ordered, strict=True)]


def _names(groups: Sequence[Sequence[FoldRun]]) -> list[str]:
    """Of the folders that hold the recipes' folds, or of the networks; told apart by place where they're the same."""
    parents = [{run.root.resolve().parent.name for run in group} for group in groups]
    if len(set().union(*parents)) == len(groups) and all(len(names) == 1 for names in parents):
        return [next(iter(names)) for names in parents]
    networks = [group[0].config.model.name for group in groups]
    return networks if len(set(networks)) == len(networks) else [f"{i}-{name}" for i, name in enumerate(networks)]


def _check_folds(recipe: Recipe) -> None:
    count = recipe.runs[0].split.count
    by_fold: dict[int, list[str]] = {fold: [] for fold in range(count)}
    for run in recipe.runs:
        by_fold[run.split.fold].append(str(run.root))
    doubled = [roots for roots in by_fold.values() if len(roots) > 1]
    if doubled:
        raise RunError(
            f"{', '.join(doubled[0])}: trained alike on one fold; give each fold of a recipe once, "
            "or train those that come from other networks with another seed"
        )
    missing = [str(fold) for fold, roots in by_fold.items() if not roots]
    if missing:
        raise RunError(
            f"{recipe.name}: fold(s) {', '.join(missing)} of {count} are missing; give the runs of all its folds"
        )


def _held_out(run: FoldRun, splits: Splits) -> NDArray[np.int64]:
    """The ids that a run held out, ascending, once its split, its bundle and its predictions agree."""
    data = splits.of(run.config)
    split = trained_on(run.root, run.bundle, data)
    train_ids, val_ids = split.train_ids, split.val_ids
    given = run.predictions.ids_N
    _refuse(run, data, np.intersect1d(given, train_ids), "it was trained on: they would flatter it")
    _refuse(run, data, np.setdiff1d(given, val_ids), "don't belong to its fold")
    missing = np.setdiff1d(val_ids, given)
    if len(missing):
        raise RunError(
            f"{run.root}: predicts none of {len(missing):,} of the {len(val_ids):,} chips that it held out, for "
            f"instance {data.dataset.keys([int(missing[0])])[0]} (id {missing[0]}); restore its evaluation, or train "
            "it again"
        )
    ordered_N = np.argsort(given)
    if list(run.predictions.labels) != data.labels or run.bundle.labels != data.labels:
        raise RunError(f"{run.root}: its labels are {list(run.predictions.labels)}, and the dataset's {data.labels}")
    if not np.array_equal(run.predictions.targets_NC[ordered_N], data.targets_NC[val_ids].astype(bool)):
        raise RunError(f"{run.root}: its chips bear other labels than in {data.dataset.shown}; train it again")
    return val_ids


def _refuse(run: FoldRun, data: Data, ids: NDArray[np.int64], why: str) -> None:
    if not len(ids):
        return
    known = 0 <= ids[0] < data.dataset.manifest.count
    name = f"{data.dataset.keys([int(ids[0])])[0]} (id {ids[0]})" if known else f"id {ids[0]}"
    raise RunError(
        f"{run.root}: has out-of-fold predictions of {len(ids):,} chip(s) that {why}; the first is {name}. "
        "Restore its evaluation, or train it again"
    )


def _check_whole(ids_N: NDArray[np.int64], data: Data, run: FoldRun) -> None:
    """Each chip that takes part is held out exactly once."""
    all_ids = np.sort(np.concatenate([data.split.train_ids, data.split.val_ids]))
    if not np.array_equal(ids_N, all_ids):
        distinct, times = np.unique(ids_N, return_counts=True)
        raise RunError(
            f"the folds of {run.config.data.split} hold out {len(ids_N):,} chips, {np.count_nonzero(times > 1):,} of "
            f"them more than once, and {len(np.setdiff1d(all_ids, distinct)):,} of {len(all_ids):,} never; "
            "train them again"
        )


def _answers(recipe: Recipe, ids_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """A recipe's probabilities (N, C) in the order of ids."""
    given = np.concatenate([run.predictions.ids_N for run in recipe.runs])
    probabilities_NC = np.concatenate([run.predictions.probabilities_NC for run in recipe.runs])
    order_N = np.argsort(given)
    assert np.array_equal(given[order_N], ids_N), "each run's ids were held against its split"
    return probabilities_NC[order_N]


def _speaks(recipes: Sequence[Recipe]) -> NDArray[np.bool_]:
    labels = recipes[0].runs[0].bundle.labels
    heard = [recipe.runs[0].bundle.members[0].speaks_for for recipe in recipes]
    speaks_RC = np.array([[label in spoken for label in labels] for spoken in heard])
    silent = [label for label in labels if not any(label in spoken for spoken in heard)]
    if silent:
        raise RunError(
            f"no recipe was trained on {', '.join(silent)}: each has loss.label_weights of 0 for it; "
            "add one that was trained on all labels"
        )
    return speaks_RC
