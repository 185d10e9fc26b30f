"""All members of an ensemble by one command, in turn, and their combination.

    OUT/members/0-RECIPE/     a run
    OUT/evaluation, OUT/bundle      of all of them (planet_dist.ensemble)

Whatever stops it, the same command goes on: members with a bundle are kept, and one that was stopped is resumed.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from planet_dist.combination import CombinationRule
from planet_dist.config import RECIPES, load_config
from planet_dist.data import open_data
from planet_dist.ensemble import RARE_SHARE, combine_runs
from planet_dist.ensemble_scores import EnsembleEvaluation
from planet_dist.launching import run_training, training_command
from planet_dist.runfolder import RunFolder
from shards.errors import ConfigError, RunError


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MemberRecipe(_Section):
    """One member: a recipe, and what is changed in it ("section.key=value")."""

    recipe: str
    overrides: tuple[str, ...] = ()


class EnsembleRecipe(_Section):
    """An ensemble.

    Attributes:
        description: one line.
        rule: how the members decide together (planet_dist.combination).
        rare: labels that "any-rare" calls rare; none leaves it to the share.
        rare_share: labels borne by less than this share of the training chips are rare.
        shared: overrides of every member, before its own.
        members: at least two.
    """

    description: str
    rule: CombinationRule
    rare: tuple[str, ...] = ()
    rare_share: float = Field(RARE_SHARE, ge=0, le=1)
    shared: tuple[str, ...] = ()
    members: tuple[MemberRecipe, ...] = Field(min_length=2)


@dataclass(frozen=True)
class PlannedMember:
    """A member to train.

    Attributes:
        run: its folder.
        command: the words that train it.
        finished: it has a bundle, and its configuration is the planned one.
    """

    run: Path
    command: list[str]
    finished: bool


def ensemble_recipe_paths() -> dict[str, Path]:
    """The ensembles that come with the package, by name."""
    return {path.stem: path for path in sorted((RECIPES / "ensembles").glob("*.toml"))}


def load_ensemble_recipe(recipe: str) -> EnsembleRecipe:
    """Reads the recipe of an ensemble.

    Args:
        recipe: the name of one of ensemble_recipe_paths(), or the path of a TOML file.

    Raises:
        ConfigError: there is none of that name, an unknown key, or a value that its key does not take.
    """
    known = ensemble_recipe_paths()
    path = known.get(recipe, Path(recipe))
    if path.suffix != ".toml" or not path.is_file():
        close = difflib.get_close_matches(recipe, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"ensemble recipe {recipe!r}: {hint}there are {', '.join(known)}, or give the path of a .toml file"
        )
    try:
        return EnsembleRecipe.model_validate(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"ensemble recipe {path}: not TOML: {error}") from error
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        valid = f"  valid keys: {', '.join(EnsembleRecipe.model_fields)}; of a member: recipe, overrides"
        raise ConfigError("\n".join([f"ensemble recipe {path}:", *lines, valid])) from error


def plan_members(
    ensemble: EnsembleRecipe, data: str | Path, out: Path, overrides: Sequence[str], launch_file: Path
) -> list[PlannedMember]:
    """The members' runs, after a look at all that would only show once they are trained.

    Args:
        data: the dataset.
        out: the ensemble's folder.
        overrides: of every member, after its own.
        launch_file: for accelerate launch.

    Raises:
        ConfigError: a member's configuration cannot be used, or the members would validate on different chips.
        DatasetError: the dataset cannot be opened.
        RunError: a member was trained with another configuration.
    """
    planned, first_ids = [], None
    for i, member in enumerate(ensemble.members):
        group = f"tracking.group={json.dumps(_group(out, overrides))}"  # JSON, for a folder may be named like a number
        words = [group, *ensemble.shared, *member.overrides, *overrides]
        config = load_config(member.recipe, words)
        val_ids_N = open_data(config, data).split.val_ids
        if first_ids is not None and not np.array_equal(np.sort(val_ids_N), first_ids):
            raise ConfigError(
                f"member {i} ({member.recipe}): data.split={config.data.split} with seed={config.seed} holds out other "
                "chips than that of member 0, and members are judged on the same; use tail:N, or one seed for all"
            )
        first_ids = np.sort(val_ids_N)
        run = out / "members" / f"{i}-{Path(member.recipe).stem}"
        planned.append(
            PlannedMember(
                run,
                training_command(member.recipe, data, run, words, launch_file),
                RunFolder(run).is_finished(config),
            )
        )
    return planned


def _group(out: Path, overrides: Sequence[str]) -> str:
    """The members' group at W&B: the ensemble's folder, and which of its folds where it is trained on several."""
    folder = out.resolve()
    of_a_fold = any(word.startswith(("data.split=kfold:", "data.split=kfold-grouped:")) for word in overrides)
    return f"{folder.parent.name}-{folder.name}" if of_a_fold else folder.name


def train_ensemble(
    ensemble: EnsembleRecipe,
    members: Sequence[PlannedMember],
    out: Path,
    *,
    note: Callable[[str], None] = lambda line: None,
) -> EnsembleEvaluation:
    """Trains the members that are not finished, in turn, and combines all of them.

    Args:
        members: of plan_members.
        out: the ensemble's folder.
        note: is told which member comes next.

    Raises:
        TrainingError: a member's training failed.
        RunError: a member was stopped before its end, or the members cannot be combined.
    """
    for i, member in enumerate(members):
        what = f"member {i + 1} of {len(members)}, {member.run}"
        note(f"{what}: finished already" if member.finished else what)
        if member.finished:
            continue
        run_training(member.command, what)
        if not _has_bundle(RunFolder(member.run)):  # a run that is asked to stop saves, and ends with status 0
            raise RunError(f"{what}: stopped before its end; run the same command again to go on")
    runs = [member.run for member in members]
    return combine_runs(runs, ensemble.rule, out, rare=ensemble.rare, rare_share=ensemble.rare_share)


def _has_bundle(run: RunFolder) -> bool:
    return (run.bundle / "bundle.json").is_file()
