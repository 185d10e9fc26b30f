"""The command `planet-dist doctor`.

    planet-dist doctor --data DATASET --recipe small-resnet-32
    planet-dist doctor --data DATASET --recipe paper1-resnet50 --launch-config launch/multi_gpu.yaml --out RUN

It starts the processes of the launch file by itself. For several machines, start it on each as training is started:

    accelerate launch --config_file launch/multi_node.yaml --machine_rank N planet_dist/doctor_cli.py \
        --data DATASET --recipe paper1-resnet50
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import click

from shards.errors import PlanetError


@click.command()
@click.option("--data", required=True, help="A dataset of planet-shard build: its folder, or the URL of one.")
@click.option("--recipe", default="", help="A recipe's name, or the path of a TOML file.")
@click.option(
    "--out",
    default=Path(),
    type=click.Path(path_type=Path),
    help="Where the run would be, for its disk.  [default: the current folder]",
)
@click.option(
    "--launch-config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The launch file that training would have.  [default: launch/cpu.yaml, or launch/one_gpu.yaml]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON: works, findings, figures.")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
def doctor(
    data: str, recipe: str, out: Path, launch_config: Path | None, as_json: bool, overrides: tuple[str, ...]
) -> None:
    """See whether a run would work on this machine, how fast, and for how long, before it is started.

    Looks at libraries, devices, the launch file, the dataset as every process sees it, disk and memory; measures the
    loader beside the network on some steps of the run itself. Writes nothing. Ends with status 1 where the run could
    not work.
    """
    from planet_dist.doctor import Patient, examine, examine_rank, is_launched

    warnings.filterwarnings("ignore", category=FutureWarning, module="accelerate|torch")
    patient = Patient(data, recipe, overrides, out)
    if is_launched():
        report = examine_rank(patient)
    else:
        click.echo("examining; this takes half a minute, and longer for large networks on a CPU", err=True)
        report = examine(patient, launch_config)
    if report is None:
        return
    if as_json:
        click.echo(report.to_json())
    else:
        report.show()
    if not report.works:
        sys.exit(1)


def main() -> None:
    """The command in a process of accelerate launch: a user's mistake is one line, without a traceback."""
    try:
        doctor(standalone_mode=False)
    except (PlanetError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
