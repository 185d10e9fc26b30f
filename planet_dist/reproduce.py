"""A paper's rows, trained where they are not yet, and one page of its tables and figures beside the numbers found.

    OUT/recipes/ROW.toml    what was trained, resolved
    OUT/runs/ROW/           a run, or an ensemble with its members
    OUT/figures/NAME.png
    OUT/page.html, page.md

Whatever stops it, the same command goes on: finished rows are kept, and one that was stopped is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from planet_dist import reproduce_paper1, reproduce_paper2
from planet_dist.describe import describe
from planet_dist.ensemble_train import train_ensemble
from planet_dist.figures import RunFigures, caption, certain_labels, check_pair, draw_all, loss_curve
from planet_dist.figures_scores import losses
from planet_dist.figures_style import write_png
from planet_dist.launching import run_training
from planet_dist.page import Grid, Picture, Section, write_page
from planet_dist.reproduce_found import Found, FoundRow, look_at
from planet_dist.reproduce_rows import WITHOUT_TERM, LeftOut, Paper, PlannedRow, Scale, write_recipe
from shards.errors import ConfigError, RunError, TrainingError

_TITLES: dict[Paper, str] = {
    "paper1": "First paper: a ResNet-50 ensemble for Amazon chips",
    "paper2": "Second paper: Inception-v3 with a co-occurrence loss",
}
_TRAIN_SAMPLE: dict[Scale, int] = {"quick": 64, "full": 2000}
_FIGURES: dict[Paper, tuple[str, ...]] = {
    "paper1": (
        "f2-contour",
        "labelled-examples",
        "augmentation",
        "losses",
        "labels-by-rule",
        "labels-beside-other",
        "certain-",
        "mistakes",
    ),
    "paper2": ("losses", "cooccurrence", "labels-by-rule", "mistakes", "noise-", "activation-maps"),
}


@dataclass(frozen=True)
class Reproduced:
    """What came of it: the two pages, and the rows whose training failed."""

    html: Path
    markdown: Path
    failed: list[LeftOut]


def train_rows(
    planned: Sequence[PlannedRow | LeftOut], note: Callable[[str], None] = lambda line: None
) -> list[PlannedRow | LeftOut]:
    """Trains what is not trained yet, in turn; a row whose training fails is left out, and the others go on.

    Args:
        note: is told which row comes next.

    Raises:
        ConfigError: no row fits the chips.
    """
    if not any(isinstance(one, PlannedRow) for one in planned):
        reasons = "\n".join(f"  {one.row.name}: {one.reason}" for one in planned if isinstance(one, LeftOut))
        raise ConfigError(f"no row can be trained:\n{reasons}")
    result: list[PlannedRow | LeftOut] = []
    for number, one in enumerate(planned, start=1):
        what = f"row {number} of {len(planned)}: {one.row.name}"
        if isinstance(one, LeftOut):
            note(f"{what}: left out, {one.reason}")
            result.append(one)
            continue
        note(f"{what}: {'finished already' if one.finished else 'training'}")
        try:
            _train(one, what, note)
            result.append(one)
        except TrainingError as error:
            note(str(error))
            result.append(Failed(one.row, f"its training failed: {error}"))
    return result


class Failed(LeftOut):
    """A row that should be on the page, and whose training failed."""


def _train(one: PlannedRow, what: str, note: Callable[[str], None]) -> None:
    if one.ensemble is not None:
        train_ensemble(one.ensemble, one.members, one.folder, note=note)
    elif not one.finished:
        write_recipe(one)
        run_training(one.command, what)


def make_page(paper: Paper, scale: Scale, trained: Sequence[PlannedRow | LeftOut], out: Path) -> Reproduced:
    """Draws the figures and writes the page from rows that are trained.

    Raises:
        RunError: a run cannot be read, or a file not be written.
    """
    sample = _TRAIN_SAMPLE[scale]
    rows = {one.row.name: look_at(one, sample) for one in trained if isinstance(one, PlannedRow)}
    found = Found(rows, [one for one in trained if isinstance(one, LeftOut)])
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error}); give another --out") from error
    tables = reproduce_paper1.sections(found) if paper == "paper1" else reproduce_paper2.sections(found, sample)
    parts = [_what_this_is(scale, found), *tables]
    main = found.first(*(reproduce_paper1.MAIN if paper == "paper1" else reproduce_paper2.MAIN))
    if main is not None:
        parts += [_figures(paper, found, main, out / "figures"), _layers(main)]
    html, markdown = write_page(out, _TITLES[paper], parts)
    return Reproduced(html, markdown, [one for one in found.left_out if isinstance(one, Failed)])


def _what_this_is(scale: Scale, found: Found) -> Section:
    text = ["Each number of the paper stands beside the one found by the runs listed below."]
    if scale == "quick":
        text.append(
            "Quick scale: few chips, few epochs, and random weights instead of ImageNet's, so that whole networks "
            "train where the papers train heads. The numbers show that every row runs from chips to page, and say "
            "nothing about the paper's."
        )
    items = []
    for name, row in found.rows.items():
        config, image = row.planned.config, row.dataset().manifest.image
        epochs = " + ".join(str(phase.epochs) for phase in config.phases)
        limit = f"first {config.data.limit:,} chips, " if config.data.limit else ""
        items.append(
            f"{name}: {epochs} epoch(s), {limit}split {config.data.split}, weights {config.model.weights}, "
            f"{len(row.run.predictions.ids_N):,} validation chips; {image.kind} of {image.height}x{image.width}, "
            f"{image.bands} bands, dataset {row.dataset().digest[:12]}"
        )
    items += [f"{one.row.name}: left out: {one.reason}" for one in found.left_out]
    return Section("What this is", text, items)


def _figures(paper: Paper, found: Found, main: FoundRow, folder: Path) -> Section:
    partner = found.first("paper1-baseline") if paper == "paper1" else found.first(WITHOUT_TERM)
    other = None if partner is None or partner is main else partner.run
    try:
        if other is not None:
            check_pair(main.run, other)
    except RunError:  # a baseline of other chips has figures of its own, and none beside these
        other = None
    dataset = main.dataset()
    figures = RunFigures(main.run, dataset, other)
    certain = certain_labels(dataset.manifest.vocabulary, dataset.manifest.label_counts, ())
    drawn = draw_all(figures, folder, certain, only=_FIGURES[paper])
    pictures = [Picture(path, caption(name)) for name, path in drawn.files.items()]
    sizes = [found.rows[name] for name in reproduce_paper2.SIMPLE if name in found.rows]
    if sizes:
        path = folder / "losses-by-size.png"
        write_png(path, losses([loss_curve(row.run) for row in sizes]))
        pictures.append(Picture(path, "Training and validation loss for various input sizes (second paper, Figure 4)."))
    left_out = [f"{name}: left out: {reason}" for name, reason in drawn.left_out.items()]
    return Section("Figures", [f"Drawn from {main.planned.row.name}."], left_out, pictures=pictures)


def _layers(main: FoundRow) -> Section:
    image, config = main.dataset().manifest.image, main.planned.config
    size = config.data.size or image.height
    found = describe(
        config, labels=len(main.run.predictions.labels), bands=image.bands, size=size, band_order=image.band_order
    )
    phases = [f"trains in phase {i} ({trains})" for i, trains in enumerate(found.phases, start=1)]
    rows = [
        [
            layer.name,
            layer.kind,
            "x".join(map(str, layer.output)),
            f"{layer.weights:,}",
            *map("{:,}".format, layer.trained),
        ]
        for layer in found.layers
    ]
    rows.append(["total", "", "", f"{sum(found.totals[0]):,}", *(f"{training:,}" for training, _ in found.totals)])
    return Section(
        f"Layers of {main.planned.row.name}",
        [f"Input: {image.bands} bands, {size}x{size} pixels."],
        grid=Grid(["layer", "kind", "output", "weights", *phases], rows),
    )
