"""All members of an ensemble by one command, in turn or side by side.

    OUT/members/RECIPE/             a run; 0-RECIPE, 1-RECIPE ... where recipes bear one name
    OUT/members/RECIPE/fold-0/      over folds: a run for each of them
    OUT/evaluation, OUT/bundle      of all of them (planet_dist.ensemble, or planet_dist.ensemble_folds)

Over folds all members have one seed of the split, and so the same folds, whatever their own seeds; and each keeps its
last epoch's weights, for choosing an epoch by the chips that it holds out would flatter its answers on them.

Whatever stops it, the same command goes on: members with a bundle are kept, and one that was stopped is resumed.
"""

from __future__ import annotations

import difflib
import json
import queue
import threading
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from planet_dist.bundle_files import read_description
from planet_dist.combination import CombinationRule
from planet_dist.config import ensemble_recipe_paths, load_config
from planet_dist.ensemble import RARE_SHARE, combine_runs
from planet_dist.ensemble_scores import EnsembleEvaluation
from planet_dist.launching import run_training, training_command, visible_devices
from planet_dist.lineage import START, TEACHER
from planet_dist.out_of_fold import Splits
from planet_dist.runfolder import RunFolder, settings
from planet_dist.stack_choice import LEAST_FOLDS
from shards.errors import ConfigError, RunError


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MemberRecipe(_Section):
    """One member.

    Attributes:
        recipe: by name or path.
        overrides: what is changed in it, "section.key=value".
        teacher: the name of an earlier member (member_names), which teaches this one: over folds, each fold's run of
            it that fold's. None for "".
        starts_from: the name of an earlier member, with whose network this one goes on, likewise.
    """

    recipe: str
    overrides: tuple[str, ...] = ()
    teacher: str = ""
    starts_from: str = ""


class EnsembleRecipe(_Section):
    """An ensemble.

    Attributes:
        description: one line.
        rule: how the members decide together (planet_dist.combination).
        rare: labels that "any-rare" calls rare; none leaves it to the share.
        rare_share: labels borne by less than this share of the training chips are rare.
        shared: overrides of every member, before its own.
        members: at least two, or one that is trained over folds.
    """

    description: str
    rule: CombinationRule
    rare: tuple[str, ...] = ()
    rare_share: float = Field(RARE_SHARE, ge=0, le=1)
    shared: tuple[str, ...] = ()
    members: tuple[MemberRecipe, ...] = Field(min_length=1)


@dataclass(frozen=True)
class PlannedMember:
    """A member to train.

    Attributes:
        run: its folder.
        command: the words that train it.
        finished: it has a bundle, and its configuration is the planned one.
        needs: the runs that have to be finished before this one begins: its teacher's, and that which it starts from.
    """

    run: Path
    command: list[str]
    finished: bool
    needs: tuple[Path, ...] = ()


def load_ensemble_recipe(recipe: str) -> EnsembleRecipe:
    """Reads the recipe of an ensemble.

    Args:
        recipe: the name of one of ensemble_recipe_paths(), or the path of a TOML file.

    Raises:
        ConfigError: there is none of that name, an unknown key, a value that its key does not take, or a teacher, or
            a member to start from, that is no earlier member.
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
        ensemble = EnsembleRecipe.model_validate(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"ensemble recipe {path}: not TOML: {error}") from error
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        keys = ", ".join(EnsembleRecipe.model_fields), ", ".join(MemberRecipe.model_fields)
        valid = f"  valid keys: {keys[0]}; of a member: {keys[1]}"
        raise ConfigError("\n".join([f"ensemble recipe {path}:", *lines, valid])) from error
    names = member_names(ensemble)
    for i, member in enumerate(ensemble.members):
        for key in ("teacher", "starts_from"):
            named = getattr(member, key)
            if named and named not in names[:i]:
                earlier = f"those before it are {', '.join(names[:i])}" if i else "none is before it"
                raise ConfigError(
                    f"ensemble recipe {path}: members.{i}.{key}: {named!r} is no earlier member; {earlier}"
                )
    return ensemble


def load_members(recipe: str | None, recipes: str | None, folds: int, *, grouped: bool = False) -> EnsembleRecipe:
    """What `--recipe` or `--recipes` names.

    Args:
        recipe: of an ensemble, as load_ensemble_recipe takes it.
        recipes: as recipes_as_ensemble takes them.
        folds: of `--folds`.
        grouped: of `--grouped`.

    Raises:
        ConfigError: both are given or none is, or recipes without folds, or what is named cannot be used.
    """
    if (recipe is None) == (recipes is None):
        raise ConfigError("give either --recipe ENSEMBLE, or --recipes A,B,... with --folds K")
    if grouped and not folds:
        raise ConfigError("--grouped says how --folds K are dealt; give both")
    if recipe is not None:
        return load_ensemble_recipe(recipe)
    assert recipes is not None
    if not folds:
        raise ConfigError("--recipes needs --folds K: what recipes answer on held-out chips says how to combine them")
    return recipes_as_ensemble(recipes)


def recipes_as_ensemble(names: str) -> EnsembleRecipe:
    """Recipes that stand beside each other, as an ensemble of them.

    Args:
        names: of recipes, or paths of TOML files, with commas between.

    Raises:
        ConfigError: one comes twice, or none is named.
    """
    recipes = [name.strip() for name in names.split(",") if name.strip()]
    doubled = sorted({name for name in recipes if recipes.count(name) > 1})
    if doubled or not recipes:
        raise ConfigError(
            f"--recipes {names!r}: {f'{doubled[0]} comes twice' if doubled else 'names none'}; name each recipe once, "
            "or write an ensemble's TOML whose members differ in their overrides, and give it as --recipe"
        )
    members = tuple(MemberRecipe(recipe=recipe) for recipe in recipes)
    return EnsembleRecipe(description=", ".join(recipes), rule="mean", members=members)


def member_words(ensemble: EnsembleRecipe, overrides: Sequence[str], folds: int = 0) -> list[list[str]]:
    """The overrides of each member; over folds, without that of its fold.

    Args:
        overrides: of every member, after its own.
        folds: 0 for the members' own split.

    Raises:
        ConfigError: a configuration cannot be used, or a number of folds or of members.
    """
    if folds and folds < LEAST_FOLDS:
        raise ConfigError(
            f"--folds {folds}: give {LEAST_FOLDS} or more, for combining is judged by leaving out two at a time; or 0 "
            "for the members' own split"
        )
    if not folds and len(ensemble.members) < 2:
        raise ConfigError("an ensemble of one member: give more, or train it over --folds")
    words = [[*ensemble.shared, *member.overrides, *overrides] for member in ensemble.members]
    if not folds:
        return words
    _require_different(ensemble, words)
    given = [word for word in overrides if word.startswith("data.split=")]
    if given:
        raise ConfigError(f"{given[0]}: --folds {folds} splits the chips already; leave one of them out")
    first = load_config(ensemble.members[0].recipe, words[0])
    seed = first.seed if first.data.split_seed < 0 else first.data.split_seed
    return [[f"data.split_seed={seed}", "evaluate.best_by=last", *some] for some in words]


def _require_different(ensemble: EnsembleRecipe, words: Sequence[Sequence[str]]) -> None:
    """Refuses members whose runs over folds could not be told apart when they are combined."""
    alike: dict[str, int] = {}
    for i, (member, own) in enumerate(zip(ensemble.members, words, strict=True)):
        # Which members it comes from shows in no run's configuration, whether it comes from one does.
        told = json.dumps([settings(load_config(member.recipe, own)), bool(member.teacher), bool(member.starts_from)])
        if told in alike:
            raise ConfigError(
                f"member {i} ({member.recipe}) is configured as member {alike[told]} is, and their runs could not be "
                "told apart; give one another seed (a seed on the command line is every member's)"
            )
        alike[told] = i


def plan_members(
    ensemble: EnsembleRecipe,
    data: str | Path,
    out: Path,
    overrides: Sequence[str],
    launch_file: Path,
    folds: int = 0,
    *,
    grouped: bool = False,
) -> list[PlannedMember]:
    """The members' runs, after a look at all that would only show once they are trained.

    Args:
        data: the dataset.
        out: the ensemble's folder.
        overrides: of every member, after its own.
        launch_file: for accelerate launch.
        folds: on each of which every member is trained; 0 for the members' own split.
        grouped: whether related chips stay in one fold (split "kfold-grouped").

    Returns:
        One for each member, or one for each member and fold, member by member.

    Raises:
        ConfigError: a member's configuration cannot be used, or the members would validate on different chips.
        DatasetError: the dataset cannot be opened.
        RunError: a member was trained with another configuration, on another dataset, or by another teacher, or from
            another network.
    """
    kind = "kfold-grouped" if grouped else "kfold"
    planned: list[PlannedMember] = []
    first_ids = None
    splits = Splits(data)
    names, members = member_names(ensemble), out / "members"
    for i, (member, own) in enumerate(zip(ensemble.members, member_words(ensemble, overrides, folds), strict=True)):
        group = out.resolve().name + (f"-{names[i]}" if folds else "")
        words = [f"tracking.group={json.dumps(group)}", *own]  # JSON, for a folder may be named like a number
        trainings = []
        for fold in range(max(folds, 1)):
            part = f"fold-{fold}" if folds else ""
            of_fold = [*words, f"data.split={kind}:{folds}/{fold}"] if folds else list(words)
            named = {"teacher.run": member.teacher, "model.weights": member.starts_from}
            earlier = {key: members / name / part for key, name in named.items() if name}
            of_fold += [f"{key}={json.dumps(str(run))}" for key, run in earlier.items()]
            config, run = load_config(member.recipe, of_fold), members / names[i] / part
            command = training_command(member.recipe, data, run, of_fold, launch_file)
            trainings.append((config, run, earlier, command))
        opened = splits.of(config)
        for of_run, run, earlier, command in trainings:
            finished = RunFolder(run).is_finished(of_run, opened.dataset.digest)
            if finished:
                _check_lineage(run, earlier)
            planned.append(PlannedMember(run, command, finished, tuple(earlier.values())))
        val_ids_N = opened.split.val_ids
        if first_ids is not None and not np.array_equal(np.sort(val_ids_N), first_ids):
            raise ConfigError(
                f"member {i} ({member.recipe}): data.split={config.data.split} with seed={config.seed} holds out other "
                "chips than that of member 0, and members are judged on the same; use tail:N, or one seed or "
                "data.split_seed for all"
            )
        first_ids = np.sort(val_ids_N)
    return planned


def _check_lineage(run: Path, needs: dict[str, Path]) -> None:
    """Refuses a finished run that learned or started from another network than the one that now is in its place."""
    for key, earlier in needs.items():
        if not _has_bundle(RunFolder(earlier)):
            continue
        sha256 = read_description(RunFolder(earlier).bundle).members[0].sha256
        protocol = read_description(RunFolder(run).bundle).members[0].protocol
        if sha256 not in protocol.get({"teacher.run": TEACHER, "model.weights": START}[key], ""):
            raise RunError(
                f"{run}: learned or started from another network than that of {earlier} (sha256 {sha256[:12]}); give "
                "another --out, or remove that folder"
            )


def member_names(ensemble: EnsembleRecipe) -> list[str]:
    """The members' folders: of their recipes, with their place before it where two recipes bear one name."""
    stems = [Path(member.recipe).stem for member in ensemble.members]
    return stems if len(set(stems)) == len(stems) else [f"{i}-{stem}" for i, stem in enumerate(stems)]


def train_ensemble(
    ensemble: EnsembleRecipe,
    members: Sequence[PlannedMember],
    out: Path,
    *,
    at_once: int = 1,
    note: Callable[[str], None] = lambda line: None,
) -> EnsembleEvaluation:
    """Trains the members that are not finished, and combines all of them.

    Args:
        members: of plan_members, without folds.
        out: the ensemble's folder.
        at_once, note: of train_members.

    Raises:
        TrainingError: a member's training failed.
        RunError: a member was stopped before its end, or the members cannot be combined.
    """
    train_members(members, at_once=at_once, note=note)
    runs = [member.run for member in members]
    return combine_runs(runs, ensemble.rule, out, rare=ensemble.rare, rare_share=ensemble.rare_share)


def train_members(
    members: Sequence[PlannedMember], *, at_once: int = 1, note: Callable[[str], None] = lambda line: None
) -> None:
    """Trains the members that are not finished.

    One that another teaches, or that goes on from another, begins once that one has ended. When one fails no other
    begins, and those that train already go on to their ends before the failure is raised.

    Args:
        at_once: members that train side by side. Each then has as many of the GPUs as the others, and writes what it
            says to RUN.log; one GPU or none is shared.
        note: is told which member comes next, and which has ended.

    Raises:
        TrainingError: a member's training failed.
        RunError: a member was stopped before its end.
    """
    names = [f"member {i + 1} of {len(members)}, {member.run}" for i, member in enumerate(members)]
    ended = {member.run: threading.Event() for member in members}
    waiting: queue.SimpleQueue[tuple[str, PlannedMember]] = queue.SimpleQueue()
    for what, member in zip(names, members, strict=True):
        if member.finished:
            note(f"{what}: finished already")
            ended[member.run].set()
        else:
            waiting.put((what, member))
    failed = threading.Event()

    def train_in_turn(devices: Sequence[str]) -> None:
        while not failed.is_set():
            try:
                what, member = waiting.get_nowait()
            except queue.Empty:
                return
            # What it needs stands before it: another thread has it, or it's finished.
            for earlier in member.needs:
                while not ended[earlier].wait(timeout=1):
                    if failed.is_set():
                        return
            log = member.run.with_name(f"{member.run.name}.log") if at_once > 1 else None
            try:
                note(what if log is None else f"{what}: {log}")
                member.run.parent.mkdir(parents=True, exist_ok=True)
                run_training(member.command, what, log, devices)
                if not _has_bundle(RunFolder(member.run)):  # asked to stop, a run saves, and ends with status 0
                    raise RunError(f"{what}: stopped before its end; run the same command again to go on")
                ended[member.run].set()
                if log is not None:
                    note(f"{what}: trained")
            except BaseException:
                failed.set()
                raise

    if at_once == 1:
        train_in_turn(())
        return
    gpus = visible_devices()
    shares = [gpus[i * len(gpus) // at_once : (i + 1) * len(gpus) // at_once] or gpus for i in range(at_once)]
    with ThreadPoolExecutor(at_once) as pool:
        for done in [pool.submit(train_in_turn, share) for share in shares]:
            done.result()


def _has_bundle(run: RunFolder) -> bool:
    return (run.bundle / "bundle.json").is_file()
