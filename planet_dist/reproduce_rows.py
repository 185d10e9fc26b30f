"""The rows of the papers' tables as runs: which recipe each is, on which chips, and what is trained already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from planet_dist.config import Config, load_config
from planet_dist.data import open_data
from planet_dist.ensemble_train import EnsembleRecipe, PlannedMember, load_ensemble_recipe, plan_members
from planet_dist.launching import training_command
from planet_dist.models import OWN_NETWORKS
from planet_dist.runfolder import RunFolder
from shards.errors import ConfigError, RunError
from shards.reader import Dataset
from shards.schema import write_whole

Paper = Literal["paper1", "paper2"]
Scale = Literal["quick", "full"]

_QUICK_SMALL, _QUICK_LARGE = (480, 4), (160, 1)  # chips and epochs a phase: our own networks, and the large ones
_QUICK_BATCH = 16


@dataclass(frozen=True)
class Row:
    """A row of a paper's table.

    Attributes:
        name: what the run is called.
        recipe: of a run, or of an ensemble where `ensemble`.
        phases: how many of the recipe's phases are trained; 0 for all.
        overrides: what differs from the recipe.
    """

    name: str
    recipe: str
    ensemble: bool = False
    phases: int = 0
    overrides: tuple[str, ...] = ()


def _same(*names: str) -> tuple[Row, ...]:
    return tuple(Row(name, name) for name in names)


FIRST_PHASE, WITHOUT_TERM = "paper2-inception-v3-first-phase", "paper2-inception-v3-without-term"
ROWS: dict[Paper, tuple[Row, ...]] = {
    "paper1": (
        *_same("paper1-baseline", "paper1-vgg16", "paper1-inception-v3", "paper1-resnet50"),
        Row("paper1-ensemble", "paper1-ensemble", ensemble=True),
    ),
    "paper2": (
        *_same("paper2-simple-cnn-64", "paper2-simple-cnn-128", "paper2-simple-cnn-128-l2", "paper2-simple-cnn-140"),
        # its Table 2 stands for the end of the first phase, whose weights the second one overwrites
        Row(FIRST_PHASE, "paper2-inception-v3", phases=1),
        *_same("paper2-inception-v3"),
        Row(WITHOUT_TERM, "paper2-inception-v3", overrides=("loss.cooccurrence=none",)),  # its Table 4
    ),
}


@dataclass(frozen=True)
class PlannedRow:
    """A row that can be trained on the chips at hand.

    Attributes:
        row: which.
        data: the dataset that fits it.
        folder: its run's, or its ensemble's.
        config: of the run, or of the ensemble's first member.
        command: the words that train a run; empty for an ensemble.
        ensemble: its recipe, and `members` its members' runs.
        finished: a run that needs no training.
    """

    row: Row
    data: Path
    folder: Path
    config: Config
    command: tuple[str, ...] = ()
    ensemble: EnsembleRecipe | None = None
    members: tuple[PlannedMember, ...] = ()
    finished: bool = False


@dataclass(frozen=True)
class LeftOut:
    """A row that is not on the page, and why."""

    row: Row
    reason: str


def plan_rows(
    paper: Paper,
    data: Path,
    tiff: Path | None,
    scale: Scale,
    out: Path,
    *,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    launch_file: Path,
) -> list[PlannedRow | LeftOut]:
    """Fits a paper's rows to the chips at hand, before anything is trained.

    Args:
        data, tiff: datasets; a row takes the first whose kind of image its recipe is meant for.
        scale: "quick" trains few chips for few epochs from random weights.
        out: holds runs/ROW and recipes/ROW.toml.
        only: names of rows; none for all.
        overrides: of every row, above everything else.
        launch_file: for accelerate launch.

    Raises:
        ConfigError: no such row.
        DatasetError: a dataset cannot be opened.
        RunError: a finished row was trained otherwise.
    """
    unknown = sorted(set(only) - {row.name for row in ROWS[paper]})
    if unknown:
        raise ConfigError(f"row {unknown[0]!r}: {paper} has {', '.join(row.name for row in ROWS[paper])}")
    datasets = [Dataset(path) for path in (data, tiff) if path is not None]
    planned: list[PlannedRow | LeftOut] = []
    for row in ROWS[paper]:
        if only and row.name not in only:
            planned.append(LeftOut(row, "not asked for"))
            continue
        try:
            planned.append(_plan(row, datasets, scale, out, overrides, launch_file))
        except ConfigError as error:
            planned.append(LeftOut(row, str(error)))
    return planned


def _plan(
    row: Row, datasets: Sequence[Dataset], scale: Scale, out: Path, overrides: Sequence[str], launch_file: Path
) -> PlannedRow:
    ensemble = load_ensemble_recipe(row.recipe) if row.ensemble else None
    words = [f"tracking.group={json.dumps(out.resolve().name)}", *row.overrides]
    recipe = row.recipe
    if ensemble is not None:
        recipe, words = ensemble.members[0].recipe, [*ensemble.shared, *ensemble.members[0].overrides]
    plain = load_config(recipe, words)
    more = [*(quick_overrides(plain) if scale == "quick" else ()), *overrides]
    config = load_config(recipe, [*words, *more])
    if row.phases:
        config = config.model_copy(update={"phases": config.phases[: row.phases]})
    data = _fitting(config, datasets)
    opened = open_data(config, data)  # raises where the split doesn't fit
    folder = out / "runs" / row.name
    if ensemble is not None:
        members = tuple(plan_members(ensemble, data, folder, more, launch_file))
        return PlannedRow(row, data, folder, config, ensemble=ensemble, members=members)
    path = out / "recipes" / f"{row.name}.toml"
    command = tuple(training_command(str(path), data, folder, (), launch_file))
    finished = RunFolder(folder).is_finished(config, opened.dataset.digest)
    return PlannedRow(row, data, folder, config, command, finished=finished)


def quick_overrides(config: Config) -> list[str]:
    """What makes a recipe a trial of minutes: few chips, few epochs, random weights. It trains, and learns little."""
    own = config.model.name in OWN_NETWORKS
    chips, epochs = _QUICK_SMALL if own else _QUICK_LARGE
    if config.data.split.startswith("tail:"):  # the first paper's rows stand beside each other, on the same chips
        chips = _QUICK_LARGE[0]
    words = [f"data.limit={chips}", "tracking.wandb=off", "runtime.log_every_steps=1", "evaluate.batch_size=32"]
    if config.data.split.startswith("tail:"):
        words.append(f"data.split=tail:{chips // 4}")
    if not own:
        words.append("model.weights=none")
    for number, phase in enumerate(config.phases):
        words += [f"phases.{number}.epochs={epochs}", f"phases.{number}.batch_size={_QUICK_BATCH}"]
        if phase.trains == "head":  # on a backbone of random weights, whose untrained batch-norm lets features explode
            words.append(f"phases.{number}.trains=all")
    return words


def write_recipe(planned: PlannedRow) -> None:
    """Writes the resolved recipe that a row's command names.

    Raises:
        RunError: it cannot be written.
    """
    path = Path(planned.command[planned.command.index("--recipe") + 1])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, planned.config.to_toml().encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error}); give another --out") from error


def _fitting(config: Config, datasets: Sequence[Dataset]) -> Path:
    for dataset in datasets:
        if config.data.kind in ("any", dataset.manifest.image.kind):
            return dataset.root
    wanted = {"tif": "TIFF chips; give --tiff DATASET", "jpg": "JPEG chips; give them as --data DATASET"}
    raise ConfigError(f"needs {wanted[config.data.kind]}")
