"""The commands `planet-dist submit`: work for SLURM.

planet-dist submit train --nodes 4 --gpus-per-node 8 --recipe paper1-resnet50 --data DATASET --out RUN
planet-dist submit ensemble --gpus-per-node 8 --recipe paper1-ensemble --data DATASET --out DIR
planet-dist submit build --parts 8 --images CHIPS --labels train.csv --out DATASET
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planet_dist.ensemble_cli import members_options

if TYPE_CHECKING:
    from planet_dist.submit import Job

_Decorator = Callable[[Callable[..., None]], Callable[..., None]]


@click.group()
def submit() -> None:
    """Hand work to SLURM: fill in the scripts in slurm/ and call sbatch (docs/operations.md)."""


def _resource_options(command: Callable[..., None]) -> Callable[..., None]:
    options: list[_Decorator] = [
        click.option("--cpus-per-node", type=click.IntRange(min=1), help="Cores on each node."),
        click.option("--time", "time_limit", metavar="D-HH:MM:SS", help="Limit of one start."),
        click.option("--partition", help="Where the job waits."),
        click.option("--account", help="Who pays."),
        click.option(
            "--sbatch", "more", multiple=True, metavar="OPTION", help="One more option of sbatch; repeatable."
        ),
        click.option("--dry-run", is_flag=True, help="Print what would be submitted, a line a job."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _training_options(command: Callable[..., None]) -> Callable[..., None]:
    options: list[_Decorator] = [
        click.option("--data", required=True, help="A dataset of planet-shard build, or its URL."),
        click.option(
            "--out", required=True, type=click.Path(path_type=Path), help="The folder to make, or to go on in."
        ),
        click.option("--nodes", default=1, show_default=True, type=click.IntRange(min=1)),
        click.option("--gpus-per-node", default=0, show_default=True, type=click.IntRange(min=0)),
        click.option("--processes-per-node", type=click.IntRange(min=1), help="[default: the GPUs of a node, or 1]"),
        click.option(
            "--tries",
            default=20,
            show_default=True,
            type=click.IntRange(min=1),
            help="Starts in all, when it requeues.",
        ),
        click.option(
            "--save-seconds",
            default=60,
            show_default=True,
            type=click.IntRange(min=1),
            help="How long a run may take to save; it is asked to twice as long before its time limit.",
        ),
        click.option(
            "--launch-config",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="A file for accelerate launch; by default launch/multi_node.yaml, or launch/multi_node_cpu.yaml.",
        ),
        _resource_options,
        click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]..."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _hand_over(jobs: Sequence[Job], dry_run: bool) -> None:
    from planet_dist.submit import dry_run as commands
    from planet_dist.submit import submit as submit_jobs

    if dry_run:
        click.echo("\n".join(commands(jobs)))
        return
    for job, number in zip(jobs, submit_jobs(jobs), strict=True):
        waits = ", after the one before" if job.after_previous else ""
        click.echo(f"job {number}: {Path(job.script[0]).name}{waits}")


@submit.command("train")
@click.option("--recipe", required=True, help="A recipe's name, or the path of a TOML file.")
@_training_options
def submit_train(
    recipe: str,
    data: str,
    out: Path,
    nodes: int,
    gpus_per_node: int,
    processes_per_node: int | None,
    tries: int,
    save_seconds: int,
    launch_config: Path | None,
    cpus_per_node: int | None,
    time_limit: str | None,
    partition: str | None,
    account: str | None,
    more: tuple[str, ...],
    dry_run: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train one run on any number of nodes.

    The same command goes on with a run that ended early.
    """
    from planet_dist.submit import Resources, TrainingJob, train_jobs

    resources = Resources(nodes, gpus_per_node, cpus_per_node, time_limit, partition, account, more)
    how = TrainingJob(tries, processes_per_node, launch_config, save_seconds)
    _hand_over(train_jobs(recipe, data, out, overrides, resources, how), dry_run)


@submit.command("ensemble")
@members_options
@_training_options
def submit_ensemble(
    recipe: str | None,
    recipes: str | None,
    folds: int,
    grouped: bool,
    data: str,
    out: Path,
    nodes: int,
    gpus_per_node: int,
    processes_per_node: int | None,
    tries: int,
    save_seconds: int,
    launch_config: Path | None,
    cpus_per_node: int | None,
    time_limit: str | None,
    partition: str | None,
    account: str | None,
    more: tuple[str, ...],
    dry_run: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train all members of an ensemble side by side, a job each, and combine them when all are finished."""
    from planet_dist.submit import Resources, TrainingJob, ensemble_jobs

    resources = Resources(nodes, gpus_per_node, cpus_per_node, time_limit, partition, account, more)
    how = TrainingJob(tries, processes_per_node, launch_config, save_seconds)
    _hand_over(ensemble_jobs(recipe, recipes, data, out, overrides, resources, how, folds, grouped=grouped), dry_run)


@submit.command("build", context_settings={"ignore_unknown_options": True})
@click.option("--images", required=True, type=click.Path(path_type=Path), help="Folder of KEY.jpg or KEY.tif.")
@click.option("--labels", type=click.Path(path_type=Path), help="CSV with columns image_name and tags.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the dataset to make.")
@click.option("--parts", default=8, show_default=True, type=click.IntRange(min=1), help="Jobs that pack side by side.")
@_resource_options
@click.argument("build_options", nargs=-1, metavar="[OPTIONS OF PLANET-SHARD BUILD]...")
def submit_build(
    images: Path,
    labels: Path | None,
    out: Path,
    parts: int,
    cpus_per_node: int | None,
    time_limit: str | None,
    partition: str | None,
    account: str | None,
    more: tuple[str, ...],
    dry_run: bool,
    build_options: tuple[str, ...],
) -> None:
    """Pack a dataset in parts, a job each, and publish it when all are done."""
    from planet_dist.submit import Resources, build_jobs

    resources = Resources(1, 0, cpus_per_node, time_limit, partition, account, more)
    _hand_over(build_jobs(images, labels, out, build_options, parts, resources), dry_run)
