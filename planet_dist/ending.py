"""What training says at its end, in the way that tracking.terminal asks for."""

from __future__ import annotations

import click

from planet_dist.crossfit import Evaluation
from planet_dist.progress import Mode, print_event
from planet_dist.runfolder import RunFolder
from planet_dist.tables import print_evaluation


def show_finished(mode: Mode, evaluation: Evaluation, run: RunFolder) -> None:
    """The two tables of evaluation, and where everything lies."""
    if mode == "json":
        print_event("finished", **evaluation.to_json(), bundle=str(run.bundle), report=str(run.report))
    elif mode == "auto":
        print_evaluation(evaluation)
        click.echo(
            f"\n{run.report}  all of this on a page"
            f"\n{run.metrics}  every step's and epoch's figures"
            f"\n{run.evaluation}  predictions, thresholds, scores"
            f"\nplanet-dist predict {run.bundle} --images DIR --out FILE.csv"
        )


def show_stopped(mode: Mode, line: str, total_steps: int) -> None:
    """That a run that was asked to end has saved."""
    if mode == "json":
        print_event("stopped", text=line, step=total_steps)
    elif mode == "auto":
        click.echo(line)


def show_failed(mode: Mode, error: str) -> None:
    """The error that ends a run, for the program that reads stdout; a person finds it on stderr."""
    if mode == "json":
        print_event("failed", error=error)
