"""The command `planet-dist`.

    planet-dist recipes
    planet-dist doctor --data DATASET --recipe paper1-resnet50
    planet-dist predict RUN/bundle --images DIR --out FILE.csv
    planet-dist predict RUN/bundle --scene FILE.tif --out map.geojson
    planet-dist export RUN/bundle --onnx FILE.onnx
    planet-dist thresholds --predictions RUN/evaluation/predictions.npz --out thresholds.json
    planet-dist ensemble train --recipe paper1-ensemble --data DATASET --out DIR
    planet-dist ensemble combine RUN RUN RUN --rule vote --out DIR
    planet-dist runs DIR
    planet-dist compare RUN RUN
    planet-dist report RUN --data DATASET
    planet-dist weights fetch resnet50
    planet-dist describe paper2-inception-v3
    planet-dist sync RUN
    planet-dist dashboard --entity TEAM --project PROJECT
    planet-dist submit train --nodes 4 --gpus-per-node 8 --recipe paper1-resnet50 --data DATASET --out RUN

Commands import what they need inside, so that --help answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from planet_dist.doctor_cli import doctor
from planet_dist.ensemble_cli import ensemble
from planet_dist.runs_cli import compare, figures, report, runs
from planet_dist.scene_cli import SceneRequest, predict_scene, scene_options
from planet_dist.submit_cli import submit
from planet_dist.tracking_cli import dashboard, sync
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
@click.option(
    "--vocabulary",
    type=click.Path(path_type=Path),
    help="As in planet-shard build: label rules for expected-f2-rules.  [default: Planet's, where the labels are its]",
)
def thresholds(
    predictions: Path, out: Path | None, folds: int, seed: int, as_json: bool, vocabulary: Path | None
) -> None:
    """Compare decision rules on predictions, and fit the one to deploy.

    Every rule is scored on the rows that it was fitted on, as papers do, and cross-fitted, on rows that it
    wasn't fitted on. The simplest rule that isn't behind the best by more than noise is chosen and refitted
    on all rows: thresholds, or the label set of greatest expected F2 (docs/recipes.md).
    """
    import json

    from planet_dist.crossfit import evaluate_rules
    from planet_dist.decision import write_decision
    from planet_dist.decision_rules import rules_for, vocabulary_of
    from planet_dist.predictions import read_predictions
    from planet_dist.tables import print_evaluation

    given = read_predictions(predictions)
    rules = rules_for(vocabulary_of(given.labels, vocabulary))
    if given.repeated_tags:
        click.echo(f"note: {given.repeated_tags} labels stand more than once in a row, counted once", err=True)
    evaluation = evaluate_rules(
        given.probabilities_NC, given.targets_NC, given.labels, ids_N=given.ids_N, seed=seed, folds=folds, rules=rules
    )
    if out is not None:
        write_decision(out, evaluation.chosen)
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
    import tomllib

    from planet_dist.config import ensemble_recipe_paths, load_config, recipe_paths

    if name is not None:
        click.echo(load_config(name).to_toml(), nl=False)
        return
    from rich.console import Console
    from rich.padding import Padding

    found = {known: load_config(known) for known in recipe_paths()}
    names, networks = max(map(len, found)), max(len(config.model.name) for config in found.values())
    console = Console(highlight=False)
    for known, config in found.items():
        size = f"{config.data.size} px" if config.data.size else "as is"
        epochs = " + ".join(str(phase.epochs) for phase in config.phases)
        console.print(f"[bold]{known:<{names}}[/]  {config.model.name:<{networks}}  {size:>6}  {epochs} epochs")
        console.print(Padding(config.description, (0, 0, 0, 4)), style="dim")
    console.print(
        "\nplanet-dist recipes NAME prints one whole\n\nof ensembles, for planet-dist ensemble train --recipe:\n"
    )
    for known, path in ensemble_recipe_paths().items():
        console.print(f"[bold]{known}[/]")
        console.print(Padding(tomllib.loads(path.read_text())["description"], (0, 0, 0, 4)), style="dim")


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--images",
    multiple=True,
    metavar="DIR|DATASET",
    help="A folder of images, or a dataset of planet-shard: its folder or URL; repeatable.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="FILE.csv: image_name,tags. FILE.parquet: probabilities and decisions too. Of a scene .geojson or .gpkg.",
)
@click.option("--sample", type=click.Path(path_type=Path), help="A sample submission: the names OUT has, in order.")
@click.option("--turns", type=click.Choice(["1", "8"]), help="Views averaged for each chip.  [default: the bundle's]")
@scene_options
def predict(
    bundle: Path, images: tuple[str, ...], scene: SceneRequest | None, out: Path, sample: Path | None, turns: Any
) -> None:
    """Apply a trained model to images, or to a georeferenced scene (docs/scenes.md).

    Under accelerate launch (-m planet_dist.cli predict ...) many processes share the work, with the bytes of one. When
    it's stopped, the same command goes on. What could not be read is listed in OUT.rejected.csv, and the exit status
    is 1 then.
    """
    from contextlib import nullcontext
    from typing import cast

    from planet_dist.bundle import Turns
    from planet_dist.predict import find_ranks, predict_files
    from shards.progress import ProgressLine

    views = None if turns is None else cast(Turns, int(turns))
    if bool(images) == (scene is not None) or (scene is not None and sample is not None):
        raise click.UsageError("give --images, or --scene without --sample")
    if scene is not None:
        predict_scene(bundle, scene, out, views)
        return
    ranks = find_ranks()
    what = "predict" if ranks.count == 1 else f"predict (process 1 of {ranks.count})"
    line = nullcontext(None) if ranks.index else ProgressLine(what)
    with line as shown:
        written = predict_files(
            bundle,
            images,
            out,
            ranks=ranks,
            sample=sample,
            turns=views,
            progress=shown.update if shown else lambda done, total: None,
        )
    ranks.close()
    if written is None:
        return
    click.echo(f"{len(written.predicted.keys):,} images predicted, written to {out}")
    if written.rejects is not None:
        count = len(written.predicted.rejected)
        raise click.ClickException(f"{count:,} images could not be used; {written.rejects} lists them")


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--onnx", required=True, type=click.Path(path_type=Path), help="The file to write.")
def export(bundle: Path, onnx: Path) -> None:
    """Write a trained model as ONNX, with the preprocessing and the decision inside.

    It's written only if onnxruntime gives PyTorch's probabilities (within 1e-5) and tags.
    """
    from planet_dist.onnx_export import export_onnx

    made = export_onnx(bundle, onnx)
    click.echo(
        f"{onnx}: {made.file_bytes:,} bytes; on {made.chips} made chips onnxruntime's probabilities are within "
        f"{made.largest_difference:.1e} of PyTorch's, with the same tags"
    )


@main.group(cls=_Group)
def weights() -> None:
    """Pretrained weights of backbones."""


@weights.command("fetch")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def weights_fetch(names: tuple[str, ...]) -> None:
    """Download the ImageNet weights of networks to where training looks for them.

    NAME is torchvision's, for instance resnet50, vgg16 or inception_v3. Training itself downloads nothing.
    """
    from planet_dist.backbones import fetch_weights, require_backbone

    for name in names:
        require_backbone(name)
    for name in names:
        click.echo(f"{name}: {fetch_weights(name)}")


@main.command()
@click.argument("recipe")
@click.option("--bands", type=click.IntRange(min=1), help="Of the chips.  [default: 4 for TIFF recipes, or 3]")
@click.option("--size", type=click.IntRange(min=1), help="Side in pixels.  [default: the recipe's, or 256]")
@click.option("--labels", default=17, show_default=True, type=click.IntRange(min=1), help="Logits a chip.")
@click.option("--every", is_flag=True, help="Show each single layer instead of the blocks.")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
def describe(
    recipe: str, bands: int | None, size: int | None, labels: int, every: bool, overrides: tuple[str, ...]
) -> None:
    """Show the layers of a RECIPE's network: shapes, numbers of weights, and what each phase trains.

    Needs neither a dataset nor pretrained weights.
    """
    from planet_dist.config import load_config
    from planet_dist.describe import describe as describe_network
    from planet_dist.describe import print_description

    config = load_config(recipe, overrides)
    description = describe_network(
        config,
        labels=labels,
        bands=bands or (4 if config.data.kind == "tif" else 3),
        size=size or config.data.size or 256,
        every=every,
    )
    print_description(recipe, description)


@main.command()
@click.argument("paper", type=click.Choice(["paper1", "paper2"]))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A dataset of JPEG chips.")
@click.option("--tiff", type=click.Path(path_type=Path), help="The same chips as TIFF, for the first paper's baseline.")
@click.option("--scale", type=click.Choice(["quick", "full"]), default="full", show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder for runs, figures and page.")
@click.option("--row", "rows", multiple=True, metavar="NAME", help="Only this row; repeatable.")
@click.option("--launch-config", type=click.Path(path_type=Path), help="For accelerate launch; else this machine's.")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
def reproduce(
    paper: Any,
    data: Path,
    tiff: Path | None,
    scale: Any,
    out: Path,
    rows: tuple[str, ...],
    launch_config: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Train a paper's rows, and write its tables and figures beside the numbers found."""
    from planet_dist.launching import default_launch_file
    from planet_dist.reproduce import make_page, train_rows
    from planet_dist.reproduce_rows import plan_rows

    launch_file = launch_config or default_launch_file()
    planned = plan_rows(paper, data, tiff, scale, out, only=rows, overrides=overrides, launch_file=launch_file)
    made = make_page(paper, scale, train_rows(planned, click.echo), out)
    click.echo(f"{made.html}\n{made.markdown}")
    if made.failed:
        raise click.ClickException("\n".join(f"{one.row.name}: {one.reason}" for one in made.failed))


for command in (compare, dashboard, doctor, ensemble, figures, report, runs, submit, sync):
    main.add_command(command)


if __name__ == "__main__":
    main()
