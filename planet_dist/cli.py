"""The command `planet-dist`.

    planet-dist recipes
    planet-dist predict RUN/bundle --images DIR --out FILE.csv
    planet-dist thresholds --predictions RUN/evaluation/predictions.npz --out thresholds.json

Commands import what they need inside, so that --help answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shards.errors import PlanetError


class _Group(click.Group):
    """Prints a user's mistake as one message, without a traceback, and exits with status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (PlanetError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="planet-dist")
def main() -> None:
    """Work with trained models and their predictions."""


@main.command()
@click.option(
    "--predictions",
    required=True,
    type=click.Path(path_type=Path),
    help="predictions.npz (ids, logits, targets), or a CSV with LABEL_pred and LABEL_true columns.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the chosen rule here (thresholds.json).")
@click.option("--folds", default=5, show_default=True, help="Parts that cross-fitting holds out in turn.")
@click.option("--seed", default=0, show_default=True, help="For the folds and the bootstrap.")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON instead of tables.")
def thresholds(predictions: Path, out: Path | None, folds: int, seed: int, as_json: bool) -> None:
    """Compare decision rules on predictions, and fit the one to deploy.

    Every rule is scored on the rows that it was fitted on, as papers do, and cross-fitted, on rows that it
    wasn't fitted on. The simplest rule that isn't behind the best by more than noise is chosen and refitted
    on all rows.
    """
    import json

    from planet_dist.crossfit import evaluate_rules
    from planet_dist.predictions import read_predictions
    from planet_dist.tables import print_evaluation
    from planet_dist.thresholds import write_thresholds

    given = read_predictions(predictions)
    if given.repeated_tags:
        click.echo(f"note: {given.repeated_tags} labels stand more than once in a row, counted once", err=True)
    evaluation = evaluate_rules(
        given.probabilities_NC, given.targets_NC, given.labels, ids_N=given.ids_N, seed=seed, folds=folds
    )
    if out is not None:
        write_thresholds(out, evaluation.chosen)
    if as_json:
        click.echo(json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False))
        return
    print_evaluation(evaluation)
    if out is not None:
        click.echo(f"{evaluation.chosen.rule} written to {out}")


@main.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the recipes, or print one with all its defaults filled in."""
    from planet_dist.config import load_config, recipe_paths

    if name is not None:
        click.echo(load_config(name).to_toml(), nl=False)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Recipes", caption="planet-dist recipes NAME prints one whole")
    for heading in ("name", "network", "pixels", "epochs", "description"):
        table.add_column(heading, no_wrap=heading == "name")
    for known in recipe_paths():
        config = load_config(known)
        epochs = " + ".join(str(phase.epochs) for phase in config.phases)
        table.add_row(known, config.model.name, str(config.data.size or "as is"), epochs, config.description)
    Console().print(table)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--images", required=True, type=click.Path(path_type=Path), help="A folder of images.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The CSV to write: image_name,tags.")
def predict(bundle: Path, images: Path, out: Path) -> None:
    """Apply a trained model to a folder of images."""
    import torch

    from planet_dist.predict import predict_folder, write_predictions_csv
    from shards.progress import ProgressLine
    from shards.workers import available_cores

    torch.set_num_threads(available_cores())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with ProgressLine("predict") as line:
        predicted = predict_folder(bundle, images, device=device, progress=line.update)
    rejects = write_predictions_csv(out, predicted)
    click.echo(f"{len(predicted.keys):,} images predicted, written to {out}")
    if rejects is not None:
        raise click.ClickException(f"{len(predicted.rejected):,} images could not be used; {rejects} lists them")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("run2", required=False, type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="The dataset of the run.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder for the PNG files.")
@click.option("--certain", multiple=True, metavar="LABEL", help="Show the surest chips of this label; repeatable.")
def figures(run: Path, run2: Path | None, data: Path, out: Path, certain: tuple[str, ...]) -> None:
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
