"""The commands `planet-dist ensemble`: many runs as one model.

planet-dist ensemble train --recipe paper1-ensemble --data DATASET --out DIR
planet-dist ensemble train --recipes A,B,C --folds 5 --data DATASET --out DIR
planet-dist ensemble combine RUN RUN RUN --rule vote --out DIR
planet-dist ensemble combine DIR/members/*/fold-*/ --rule stacked --data DATASET --out OUT
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from shards.errors import ConfigError, PlanetError


def members_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that name an ensemble's members: the same wherever they are trained."""
    options: list[Callable[[Callable[..., None]], Callable[..., None]]] = [
        click.option("--recipe", help="An ensemble's name, for instance paper1-ensemble, or a TOML file."),
        click.option(
            "--recipes", metavar="A,B,...", help="In its place: recipes by name or TOML file, to train over --folds."
        ),
        click.option(
            "--folds", default=0, show_default=True, help="Train every member on each of so many folds, and stack them."
        ),
        click.option(
            "--grouped", is_flag=True, help="Of --folds: related chips stay in one fold (planet-shard groups)."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def ensemble() -> None:
    """Combine finished runs into one model, or train all members at once."""


@ensemble.command("combine")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...", type=click.Path(path_type=Path))
@click.option(
    "--rule", required=True, type=click.Choice(["vote", "mean", "any-rare", "stacked"]), help="How the members decide."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder for evaluation/ and bundle/.")
@click.option("--data", help="For stacked: the dataset of the runs.")
@click.option("--rare", multiple=True, metavar="LABEL", help="A label that any-rare calls rare; repeatable.")
@click.option(
    "--rare-share",
    default=0.01,
    show_default=True,
    help="Without --rare: labels borne by less than this share of the training chips are rare.",
)
@click.option("--seed", default=0, show_default=True, help="For the folds and the bootstrap.")
def ensemble_combine(
    runs: tuple[Path, ...], rule: str, out: Path, data: str | None, rare: tuple[str, ...], rare_share: float, seed: int
) -> None:
    """Evaluate finished runs together, and write one bundle of them.

    vote: a label stands where at least half of the members say so, each by its own rule. mean: by a rule fitted on
    the mean of their probabilities. any-rare: as mean, but for rare labels any member's word suffices. stacked: of
    runs over folds, one for each recipe and each of its folds (data.split=kfold:K/I), by what is fitted to the chips
    that each held out; needs --data.

    A member has no part in what is said about labels that it was not trained on: give a run
    loss.label_weights of 0 for all labels but one, and it is a specialist of that one.
    """
    from typing import cast

    from planet_dist.combination import CombinationRule
    from planet_dist.ensemble import combine_runs
    from planet_dist.ensemble_tables import print_ensemble
    from planet_dist.runfolder import RunFolder

    folder = RunFolder(out)
    if folder.bundle.exists() or folder.config.exists():
        raise PlanetError(f"{out}: holds a bundle or a run already; give another --out")
    if (rule == "stacked") != (data is not None):
        raise ConfigError(
            "--rule stacked needs --data: each run's split is drawn again, to see that it predicts what it never saw"
            if data is None
            else f"--data is for --rule stacked; {rule} needs none"
        )
    if data is not None:
        _combine_folds(runs, data, out, seed)
        return
    print_ensemble(combine_runs(runs, cast(CombinationRule, rule), out, rare=rare, rare_share=rare_share, seed=seed))
    _say_where(folder.bundle)


def _combine_folds(runs: Sequence[Path], data: str, out: Path, seed: int) -> None:
    from planet_dist.ensemble_folds import combine_folds
    from planet_dist.ensemble_folds_tables import print_folds
    from planet_dist.ensemble_page import write_page
    from planet_dist.runfolder import RunFolder

    evaluation = combine_folds(runs, data, out, seed=seed)
    page = write_page(evaluation, out)
    print_folds(evaluation)
    _say_where(RunFolder(out).bundle)
    click.echo(f"page: {page}")


def _say_where(bundle: Path) -> None:
    click.echo(f"\nbundle: {bundle}\npredict: planet-dist predict {bundle} --images DIR --out FILE.csv")


@ensemble.command("train")
@members_options
@click.option("--data", required=True, help="A dataset of planet-shard build: its folder, or the URL of one.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The ensemble's folder.")
@click.option(
    "--launch-config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file for accelerate launch; by default launch/one_gpu.yaml where there is a GPU, or launch/cpu.yaml.",
)
@click.option(
    "--at-once",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Train so many members side by side, the GPUs divided among them; what each says goes to its RUN.log.",
)
@click.option("--dry-run", is_flag=True, help="Print the members' commands, one a line, and train nothing.")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
def ensemble_train(
    recipe: str | None,
    recipes: str | None,
    folds: int,
    grouped: bool,
    data: str,
    out: Path,
    launch_config: Path | None,
    at_once: int,
    dry_run: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train all members of an ensemble, and combine them.

    Over folds each chip is held out by one network of each recipe. From these answers the best way to combine the
    recipes and the decision rule are chosen (DIR/report.html says what each gained), and all networks become one
    bundle. An ensemble's own rule, of members that share their validation chips, is not used then.

    The same command goes on where it was stopped: finished members are kept. Overrides apply to every member. On one
    host, members side by side with few processes each (--at-once 8 with a launch file of one process) take less time
    than one after the other with many: they never wait for each other.
    """
    import shlex

    from planet_dist.ensemble_tables import print_ensemble
    from planet_dist.ensemble_train import load_members, plan_members, train_ensemble, train_members
    from planet_dist.launching import default_launch_file
    from planet_dist.runfolder import RunFolder
    from shards.location import redact

    plan = load_members(recipe, recipes, folds, grouped=grouped)
    members = plan_members(plan, data, out, overrides, launch_config or default_launch_file(), folds, grouped=grouped)
    if dry_run:
        for member in members:
            click.echo(redact(shlex.join(member.command), data))
        return

    def note(line: str) -> None:
        click.echo(f"== {line}")

    if folds:
        train_members(members, at_once=at_once, note=note)
        _combine_folds([member.run for member in members], data, out, seed=0)
        return
    print_ensemble(train_ensemble(plan, members, out, at_once=at_once, note=note))
    _say_where(RunFolder(out).bundle)
