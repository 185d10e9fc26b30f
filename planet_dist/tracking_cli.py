"""The commands `planet-dist sync` and `planet-dist dashboard`."""

from __future__ import annotations

from pathlib import Path

import click

from shards.errors import PlanetError, RunError


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--rebuild", is_flag=True, help="Send a fresh W&B run made of metrics.jsonl, whatever was logged or sent."
)
def sync(runs: tuple[Path, ...], rebuild: bool) -> None:
    """Send to W&B what runs have logged offline.

    All starts of a RUN become one W&B run, every step once; what was sent before is not sent again. Needs a key (wandb
    login, or WANDB_API_KEY) and a network; asks nothing.
    """
    from planet_dist.tracking_sync import check_service, rebuild_run, send_folder, send_run

    check_service()
    failed = []
    for run in runs:
        try:
            sent = rebuild_run(run, send_folder) if rebuild else send_run(run, send_folder)
            click.echo(f"{run}: {f'sent as {sent}' if sent else 'nothing new to send'}")
        except PlanetError as error:
            failed.append(str(error))
    if failed:
        raise RunError("\n".join(failed))


@click.command()
@click.option("--entity", required=True, help="A team or a user at W&B.")
@click.option("--project", required=True, help="Its project.")
@click.option("--data", help="A dataset whose labels the panels show.  [default: the Planet chips' labels]")
@click.option("--out", type=click.Path(path_type=Path), help="Write the definition here (JSON), and ask no network.")
def dashboard(entity: str, project: str, data: str | None, out: Path | None) -> None:
    """Build a team's W&B workspace and report: overview, per label, speed, ensembles, sweeps.

    Each call makes both anew. Without a key or a network the definition is written to a file instead:
    dashboard.json, or --out.
    """
    from planet_dist.tracking_dashboard import Dashboard, write_definition
    from planet_dist.tracking_sync import check_service
    from shards.labels import PLANET

    vocabulary = PLANET
    if data is not None:
        from shards.reader import Dataset

        vocabulary = Dataset(data).manifest.vocabulary
    made = Dashboard(entity, project, vocabulary)
    if out is None:
        try:
            check_service()
        except RunError as error:
            out = Path("dashboard.json")
            click.echo(f"note: {error}", err=True)
    if out is not None:
        write_definition(out, made.definition())
        click.echo(f"the workspace and the report, as W&B would be sent them: {out}")
        return
    for address in made.save():
        click.echo(address)
