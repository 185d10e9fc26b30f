"""What training says at its end, in the way that tracking.terminal asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from planet_dist.crossfit import Evaluation
from planet_dist.progress import Mode, print_event
from planet_dist.runfolder import RunFolder
from planet_dist.tables import print_evaluation
from shards.location import redact


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


@contextmanager
def failure_told(run: RunFolder, mode: Mode, data_location: str, *, shown: bool) -> Iterator[None]:
    """Leaves word of an error that ends a run, without credentials, and lets it pass.

    It's told in RUN/failed.json, and in the JSON mode on stdout; a person finds it on stderr.

    Args:
        shown: on rank 0.
    """
    try:
        yield
    except Exception as error:
        if shown:
            told = redact(str(error) or repr(error), data_location)
            run.write_failed(told)
            if mode == "json":
                print_event("failed", error=told)
        raise
