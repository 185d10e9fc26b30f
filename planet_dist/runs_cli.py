"""Commands that look at runs.

planet-dist runs DIR
planet-dist compare RUN RUN
planet-dist report RUN --data DATASET
planet-dist figures RUN --data DATASET --out DIR
"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("run2", required=False, type=click.Path(path_type=Path))
@click.option("--data", required=True, help="The dataset of the run: its folder, or the URL of one.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder for the PNG files.")
@click.option("--certain", multiple=True, metavar="LABEL", help="Show the surest chips of this label; repeatable.")
def figures(run: Path, run2: Path | None, data: str, out: Path, certain: tuple[str, ...]) -> None:
    """Draw the papers' figures from a finished RUN; RUN2, a baseline, stands beside it."""
    from planet_dist.figures import RunFigures, certain_labels, check_pair, draw_all
    from planet_dist.finished import dataset_of, open_run
    from planet_dist.label_noise import write_suspicions
    from shards.reader import Dataset

    dataset, first = Dataset(data), open_run(run)
    dataset_of(first, dataset)
    second = None if run2 is None else open_run(run2)
    if second is not None:
        check_pair(first, second)
    made = RunFigures(first, dataset, second)
    drawn = draw_all(made, out, certain_labels(dataset.manifest.vocabulary, dataset.manifest.label_counts, certain))
    write_suspicions(out / "label-noise.csv", made.suspicions(), dataset)
    for path in drawn.files.values():
        click.echo(path)
    click.echo(out / "label-noise.csv")
    for name, reason in drawn.left_out.items():
        click.echo(f"left out: {name}: {reason}", err=True)


@click.command()
@click.argument("folder", default=".", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON instead of a table.")
def runs(folder: Path, as_json: bool) -> None:
    """List the runs below FOLDER, the newest first: recipe, epoch, F2, speed, state.

    A run is running if its process is alive on this host; of one that was started on another host it can't be known.
    """
    import json

    from planet_dist.runs import list_runs, print_runs, to_json

    rows = list_runs(folder)
    if as_json:
        click.echo(json.dumps(to_json(rows), indent=1, ensure_ascii=False))
    elif rows:
        print_runs(rows)
    else:
        click.echo(f"no runs below {folder}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("run2", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="For folds and the bootstrap.")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON instead of tables.")
def compare(run: Path, run2: Path, seed: int, as_json: bool) -> None:
    """Show what differs between two finished runs, and whether their results differ by more than noise.

    F2 is compared on the validation chips that both have, by a paired bootstrap over chips.
    """
    import json

    from planet_dist.compare import compare as compare_runs
    from planet_dist.compare import print_comparison
    from planet_dist.finished import open_run
    from planet_dist.runlogs import read_logs

    found = compare_runs(open_run(run), open_run(run2), (read_logs(run), read_logs(run2)), seed)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    else:
        print_comparison(found)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="The dataset of the run: its folder, or the URL of one.")
def report(run: Path, data: str) -> None:
    """Write the page of a finished RUN again, RUN/report.html. Training writes it after every epoch by itself."""
    from planet_dist.report import write_final_report
    from planet_dist.runfolder import RunFolder
    from shards.reader import Dataset

    click.echo(write_final_report(RunFolder(run), Dataset(data)))
