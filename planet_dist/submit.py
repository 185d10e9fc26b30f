"""Jobs for SLURM: fills in the scripts in slurm/, and calls sbatch.

What can be seen before a job waits in a queue is refused here: recipes, overrides and scripts.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planet_dist.config import load_config
from planet_dist.ensemble_train import EnsembleRecipe, load_members, member_names, member_words
from shards.errors import ConfigError

_REPOSITORY = Path(__file__).parent.parent
_PREVIOUS = "JOB"


@dataclass(frozen=True)
class Resources:
    """What a job asks SLURM for; what is None or empty is left to the cluster's defaults.

    Attributes:
        nodes: over which a run's processes stand.
        gpus_per_node: 0 for nodes without.
        cpus_per_node: cores on each.
        time: the limit of one start, as sbatch takes it ("24:00:00").
        more: further words for sbatch.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_node: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    more: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """The options of sbatch."""
        given = {
            "--nodes": self.nodes,
            "--gpus-per-node": self.gpus_per_node or None,
            "--cpus-per-task": self.cpus_per_node,
            "--time": self.time,
            "--partition": self.partition,
            "--account": self.account,
        }
        return [f"{name}={value}" for name, value in given.items() if value is not None] + list(self.more)


@dataclass(frozen=True)
class TrainingJob:
    """How slurm/train.sbatch goes about a run.

    Attributes:
        tries: starts in all, when the script requeues the job itself.
        processes_per_node: None for as many as a node has GPUs, or 1.
        launch_config: for accelerate launch; None for launch/multi_node.yaml or its like for CPUs.
        save_seconds: that a run may take to save once its time limit is near; SLURM says so twice that before.
    """

    tries: int = 20
    processes_per_node: int | None = None
    launch_config: Path | None = None
    save_seconds: int = 60

    def sbatch_words(self) -> list[str]:
        """The options of sbatch that belong to it."""
        return [f"--signal=B:USR1@{2 * self.save_seconds}"]

    def words(self) -> list[str]:
        """The script's options."""
        words = ["--tries", str(self.tries), "--save-seconds", str(self.save_seconds)]
        if self.processes_per_node is not None:
            words += ["--processes-per-node", str(self.processes_per_node)]
        if self.launch_config is not None:
            words += ["--launch-config", str(self.launch_config.resolve())]
        return words


@dataclass(frozen=True)
class Job:
    """One call of sbatch.

    Attributes:
        options: of sbatch.
        script: and what follows it.
        after_previous: starts once the job before it has ended well.
    """

    options: list[str]
    script: list[str]
    after_previous: bool = False

    def command(self, previous: str) -> list[str]:
        """The words, with the previous job's number."""
        waits = [f"--dependency=afterok:{previous}", "--kill-on-invalid-dep=yes"] if self.after_previous else []
        return ["sbatch", "--parsable", *waits, *self.options, *self.script]


def train_jobs(
    recipe: str, data: str, out: Path, overrides: Sequence[str], resources: Resources, how: TrainingJob
) -> list[Job]:
    """One run.

    Args:
        recipe: its name, or the path of a TOML file.
        data: the dataset's folder or URL.
        out: the run's folder.
        overrides: "section.key=value".

    Raises:
        ConfigError: the recipe or an override cannot be used, or the package stands without its repository.
    """
    load_config(recipe, overrides)
    run = ["--recipe", _file(recipe), "--data", _place(data), "--out", _place(str(out)), *overrides]
    options = [*_common(out, "%j"), *how.sbatch_words(), *resources.words()]
    return [Job(options, [_script("train"), *how.words(), *run])]


def ensemble_jobs(
    recipe: str | None,
    recipes: str | None,
    data: str,
    out: Path,
    overrides: Sequence[str],
    resources: Resources,
    how: TrainingJob,
    folds: int = 0,
    *,
    grouped: bool = False,
) -> list[Job]:
    """An array of a job for each member, on each fold, and the job that combines them.

    Members that others learn or start from have an array before that of those others.

    Args:
        recipe: an ensemble's name, or the path of a TOML file.
        recipes: in its place, recipes to train over folds, with commas between.
        folds: into how many the chips are cut, each validating once; 0 for the members' own split.
        grouped: whether related chips stay in one fold.

    Raises:
        ConfigError: a recipe or an override cannot be used, or the number of folds.
    """
    ensemble = load_members(recipe, recipes, folds, grouped=grouped)
    for member, own in zip(ensemble.members, member_words(ensemble, overrides, folds), strict=True):
        load_config(member.recipe, own)
    named = ["--recipes", ",".join(map(_file, recipes.split(",")))] if recipes else ["--recipe", _file(str(recipe))]
    of_folds = [*(["--folds", str(folds)] if folds else []), *(["--grouped"] if grouped else [])]
    words = [*named, *of_folds, "--data", _place(data), "--out", _place(str(out)), *overrides]
    members = [
        Job(
            [*_common(out, "%A_%a"), f"--array={tasks[0]}-{tasks[-1]}", *how.sbatch_words(), *resources.words()],
            [_script("ensemble"), *how.words(), *words],
            after_previous=tasks[0] > 0,
        )
        for tasks in _stages(ensemble, folds)
    ]
    one_node = Resources(1, 0, resources.cpus_per_node, resources.time, resources.partition, resources.account)
    combined = Job(
        [*_common(out, "%j"), *one_node.words(), *resources.more],
        [_script("ensemble"), "--combine", *words],
        after_previous=True,
    )
    return [*members, combined]


def _stages(ensemble: EnsembleRecipe, folds: int) -> list[range]:
    """The tasks of the members, in their order, cut where one needs another of the same stage."""
    starts, names = [0], member_names(ensemble)
    for i, member in enumerate(ensemble.members):
        if {member.teacher, member.starts_from} & set(names[starts[-1] : i]):
            starts.append(i)
    of_each = max(folds, 1)
    ends = [*starts[1:], len(ensemble.members)]
    return [range(start * of_each, end * of_each) for start, end in zip(starts, ends, strict=True)]


def build_jobs(
    images: Path, labels: Path | None, out: Path, more: Sequence[str], parts: int, on: Resources
) -> list[Job]:
    """An array of a job for each part of a dataset, and the job that publishes it.

    Args:
        images, labels, out: of planet-shard build.
        more: its further options.
    """
    sources = ["--images", _place(str(images)), *(["--labels", _place(str(labels))] if labels else [])]
    target = ["--out", _place(str(out))]
    packing = Job(
        [*_common(out, "%A_%a"), f"--array=0-{parts - 1}", *on.words()],
        [_script("build"), "--parts", str(parts), *sources, *target, *more],
    )
    publishing = Job([*_common(out, "%j"), *on.words()], [_script("build"), "--publish", *target], after_previous=True)
    return [packing, publishing]


def dry_run(jobs: Sequence[Job]) -> list[str]:
    """What `submit` would run, a line each; JOB stands for the number that the line before prints."""
    return [shlex.join(job.command(_PREVIOUS)) for job in jobs]


def submit(jobs: Sequence[Job]) -> list[str]:
    """Calls sbatch for each in turn.

    Returns:
        The jobs' numbers.

    Raises:
        ConfigError: there is no sbatch, or it refuses; earlier jobs of the same call stay submitted, and are named.
    """
    numbers: list[str] = []
    for job in jobs:
        command = job.command(numbers[-1] if numbers else "")
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise ConfigError("sbatch: not found; submit where SLURM's commands are, or look with --dry-run") from error
        if done.returncode:
            before = f"; already submitted: {', '.join(numbers)} (scancel takes them back)" if numbers else ""
            raise ConfigError(f"{shlex.join(command)}: {done.stderr.strip() or done.returncode}{before}")
        numbers.append(done.stdout.strip().split(";")[0])  # NUMBER or NUMBER;CLUSTER
    return numbers


def _script(name: str) -> str:
    path = _REPOSITORY / "slurm" / f"{name}.sbatch"
    if not path.is_file():
        raise ConfigError(f"{path}: no such script beside the package; submit from a clone of the repository")
    return str(path)


def _common(out: Path, number: str) -> list[str]:
    """Where the job starts, and its log: beside `out`, for a folder of a dataset takes no other files."""
    absolute = out.absolute()
    return [f"--chdir={_REPOSITORY}", f"--output={absolute.parent / absolute.name}-{number}.log"]


def _place(path: str) -> str:
    """A path as it reads from the repository's folder, where the jobs run; URLs stay as they are."""
    return path if "://" in path else str(Path(path).absolute())


def _file(recipe: str) -> str:
    return _place(recipe) if recipe.endswith(".toml") else recipe
