"""Trains a run.

    accelerate launch --config_file launch/cpu.yaml planet_dist/train.py \
        --recipe small-resnet-32 --data DATASET --out RUN
    accelerate launch --config_file launch/multi_gpu.yaml planet_dist/train.py \
        --recipe paper1-resnet50 --data DATASET --out RUN --resume auto phases.0.batch_size=512

This file only wires: configuration, launch, data, resume, training, end.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planet_dist.config import Config, load_config, recipe_paths
from shards.errors import ConfigError, PlanetError, RunError, TrainingError
from shards.location import redact

if TYPE_CHECKING:
    from planet_dist.runfolder import Resume

EXAMPLE = (
    "accelerate launch --config_file launch/cpu.yaml planet_dist/train.py "
    "--recipe small-resnet-32 --data DATASET --out RUN"
)


class _Command(click.Command):
    """Names all that is missing at once, with an example."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = {word.split("=")[0] for word in args}
        missing = [name for name in ("--recipe", "--data", "--out") if name not in given]
        if missing and not given & {"--help", "-h"} and not ctx.resilient_parsing:
            raise click.UsageError(f"missing {', '.join(missing)}. For example:\n\n  {EXAMPLE}", ctx)
        return super().parse_args(ctx, args)


@click.command(
    cls=_Command,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"Recipes: {', '.join(recipe_paths())}.  Example:  {EXAMPLE}",
)
@click.option("--recipe", required=True, help="A recipe's name, or the path of a TOML file.")
@click.option("--data", required=True, help="A dataset of planet-shard build: its folder, or the URL of one.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's folder, which must not exist.")
@click.option(
    "--resume",
    type=click.Choice(["never", "auto"]),
    default="never",
    show_default=True,
    help="auto goes on from the newest checkpoint in --out, or starts when there is none.",
)
@click.option(
    "--profile",
    "profile_steps",
    metavar="STEPS",
    type=click.IntRange(min=1),
    help="Write a trace of so many steps into OUT/profile, for ui.perfetto.dev; the run is the same.",
)
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
def main(
    recipe: str, data: str, out: Path, resume: Resume, profile_steps: int | None, overrides: tuple[str, ...]
) -> None:
    """Train a model on a dataset; run it with accelerate launch."""
    sys.argv[1:] = [redact(word, data) for word in sys.argv[1:]]  # W&B keeps the command line
    try:
        train(load_config(recipe, overrides), data, out, resume, recipe, profile_steps=profile_steps or 0)
    except PlanetError as error:
        # What is wrong with the input is wrong on every rank; one of them says it.
        if int(os.environ.get("RANK", "0")) == 0 or not isinstance(error, ConfigError | RunError | TrainingError):
            click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def train(
    config: Config, data_location: str, out: Path, resume: Resume, recipe: str, *, profile_steps: int = 0
) -> None:
    """Runs a configuration from its first step, or its newest checkpoint, to its bundle."""
    import torch

    from planet_dist.data import open_data
    from planet_dist.eager import leave_compiler_out
    from planet_dist.ending import failure_told, show_finished, show_stopped
    from planet_dist.engine import Stopped, Trainer, run_identity
    from planet_dist.launched import check_launch, end_with_launcher, find_launch, make_accelerator
    from planet_dist.lineage import open_lineage
    from planet_dist.liveness import Watch
    from planet_dist.provenance import describe_start
    from planet_dist.runfolder import RunFolder
    from planet_dist.tracking import Tracker

    warnings.filterwarnings("ignore", category=FutureWarning, module="accelerate|torch")
    end_with_launcher()
    run = RunFolder(out)
    on_cpu = check_launch(find_launch())
    run.check(resume)
    torch.set_num_threads(config.runtime.compute_threads)
    # Its own timeout is longer than the watch's, which can name the rank that the others wait for.
    timeout_minutes = config.runtime.timeout_minutes + 1
    accelerator = make_accelerator(
        on_cpu=on_cpu, timeout_minutes=timeout_minutes, log_with="wandb", project_dir=str(out)
    )
    leave_compiler_out()
    data = open_data(config, data_location)
    lineage = open_lineage(config, data, accelerator.device)
    checkpoint = run.checkpoint(resume, run_identity(config, data, accelerator, lineage))
    if accelerator.is_main_process:
        run.create(config, describe_start(recipe, data_location, accelerator))
    accelerator.wait_for_everyone()
    run.join()
    rank, num_ranks = accelerator.process_index, accelerator.num_processes
    terminal, evaluation = config.tracking.terminal, None
    watched = Watch(rank, num_ranks, config.runtime.timeout_minutes * 60, run.write_stopped)
    with failure_told(run, terminal, data_location, shown=accelerator.is_main_process), watched as watch:
        accelerator.wait_for_everyone()
        run_id = checkpoint.state.tracker_id if checkpoint else None
        tracker = Tracker(accelerator, config, run, name=f"{recipe}-{out.name}", run_id=run_id)
        try:
            parts = (config, data, run, tracker, accelerator, checkpoint, watch)
            trainer = Trainer(*parts, lineage=lineage, profile_steps=profile_steps)
            evaluation = trainer.train()
        except Stopped as stopped:
            if accelerator.is_main_process:
                run.write_stopped(stopped.reason, stopped.total_steps)
                show_stopped(terminal, str(stopped), stopped.total_steps)
        finally:
            tracker.close()
        # A rank that exits with its process group open may abort in the group's own threads.
        accelerator.wait_for_everyone()
    accelerator.end_training()
    if evaluation is not None:
        show_finished(terminal, evaluation, run)


if __name__ == "__main__":
    main()
