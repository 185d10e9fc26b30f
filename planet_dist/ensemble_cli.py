"""The commands `planet-dist ensemble`: many runs as one model.

planet-dist ensemble train --recipe paper1-ensemble --data DATASET --out DIR
planet-dist ensemble combine RUN RUN RUN --rule vote --out DIR
"""

from __future__ import annotations

from pathlib import Path

import click

from shards.errors import PlanetError


@click.group()
def ensemble() -> None:
    """Combine finished runs into one model, or train all members at once."""


@ensemble.command("combine")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...", type=click.Path(path_type=Path))
@click.option("--rule", required=True, type=click.Choice(["vote", "mean", "any-rare"]), help="How the members decide.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder for evaluation/ and bundle/.")
@click.option("--rare", multiple=True, metavar="LABEL", help="A label that any-rare calls rare; repeatable.")
@click.option(
    "--rare-share",
    default=0.01,
    show_default=True,
    help="Without --rare: labels borne by less than this share of the training chips are rare.",
)
@click.option("--seed", default=0, show_default=True, help="For the folds and the bootstrap.")
def ensemble_combine(
    runs: tuple[Path, ...], rule: str, out: Path, rare: tuple[str, ...], rare_share: float, seed: int
) -> None:
    """Evaluate finished runs together, and write one bundle of them.

    vote: a label stands where at least half of the members say so, each by its own rule. mean: by a rule fitted on
    the mean of their probabilities. any-rare: as mean, but for rare labels any member's word suffices.

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
    print_ensemble(combine_runs(runs, cast(CombinationRule, rule), out, rare=rare, rare_share=rare_share, seed=seed))
    click.echo(f"\nbundle: {folder.bundle}\npredict: planet-dist predict {folder.bundle} --images DIR --out FILE.csv")


@ensemble.command("train")
@click.option("--recipe", required=True, help="An ensemble's name, for instance paper1-ensemble, or a TOML file.")
@click.option("--data", required=True, help="A dataset of planet-shard build: its folder, or the URL of one.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The ensemble's folder.")
@click.option(
    "--launch-config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file for accelerate launch; by default launch/one_gpu.yaml where there is a GPU, or launch/cpu.yaml.",
)
@click.option("--dry-run", is_flag=True, help="Print the members' commands, one a line, and train nothing.")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
def ensemble_train(
    recipe: str, data: str, out: Path, launch_config: Path | None, dry_run: bool, overrides: tuple[str, ...]
) -> None:
    """Train all members of an ensemble in turn, and combine them.

    The same command goes on where it was stopped: finished members are kept. Overrides apply to every member.
    """
    import shlex

    from planet_dist.ensemble_tables import print_ensemble
    from planet_dist.ensemble_train import load_ensemble_recipe, plan_members, train_ensemble
    from planet_dist.launching import default_launch_file
    from planet_dist.runfolder import RunFolder
    from shards.location import redact

    plan = load_ensemble_recipe(recipe)
    members = plan_members(plan, data, out, overrides, launch_config or default_launch_file())
    if dry_run:
        for member in members:
            click.echo(redact(shlex.join(member.command), data))
        return
    print_ensemble(train_ensemble(plan, members, out, note=lambda line: click.echo(f"== {line}")))
    bundle = RunFolder(out).bundle
    click.echo(f"\nbundle: {bundle}\npredict: planet-dist predict {bundle} --images DIR --out FILE.csv")
