"""The papers' figures: what they are drawn from, and that what is drawn can be read."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from planet_dist.calibration import reliability
from planet_dist.cli import main
from planet_dist.display import displayed
from planet_dist.figures import RunFigures, certain_labels, check_pair, draw_all
from planet_dist.figures_chips import Line, Tile, compared, gallery
from planet_dist.figures_reliability import reliability_panels, share_interval
from planet_dist.figures_scores import (
    LossCurve,
    cooccurrence,
    f2_contour,
    label_dots,
    losses,
    mean_products,
    rule_label_scores,
)
from planet_dist.figures_style import png_bytes
from planet_dist.finished import FinishedRun, Scorer, open_run
from planet_dist.metrics import probabilities
from planet_dist.predictions import read_predictions
from shards.errors import ConfigError, RunError
from shards.labels import PLANET
from shards.reader import Dataset
from shards.schema import ImageForm
from tests.conftest import launch

LABELS = ["clear", "haze", "water", "road"]


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Two epochs of a small network."""
    out = tmp_path_factory.mktemp("figures") / "run"
    words = ["data.split=tail:40", "model.width=8", "phases.0.epochs=2", "phases.0.batch_size=20", "evaluate.turns=1"]
    words += ["tracking.wandb=off", "runtime.log_every_steps=2", "evaluate.batch_size=20", "phases.0.ema_decay=0"]
    words = ["--recipe", "small-resnet-32", "--data", str(dataset.root), "--out", str(out), *words]
    done = launch("planet_dist/train.py", *words, ranks=1)
    assert done.returncode == 0, done.stderr
    return open_run(out)


def texts_overlap(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of a gallery's texts whose boxes overlap, and texts beyond the edge."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.dpi = 150
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.texts]
    page = figure.bbox
    bad = [(name, "edge") for name, box in boxes if not (page.x0 <= box.x0 and box.x1 <= page.x1 and box.y0 >= page.y0)]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]]
    # boxes of neighbouring lines share the room of their descenders
    return bad + [(a[0], b[0]) for a, b in pairs if a[1].padded(-4).overlaps(b[1].padded(-4))]


def test_the_same_figure_gives_the_same_bytes_under_any_user_settings() -> None:
    plain = png_bytes(f2_contour())
    with matplotlib.rc_context({"font.size": 30.0, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        assert png_bytes(f2_contour()) == plain


def test_drawing_leaves_the_users_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    png_bytes(f2_contour())
    assert dict(matplotlib.rcParams) == before


def test_mean_products_are_joint_shares_of_truth() -> None:
    true = np.array([[1, 0], [1, 1], [0, 1], [1, 1]], dtype=bool)
    np.testing.assert_allclose(mean_products(true), [[0.75, 0.5], [0.5, 0.75]])


def test_mean_products_of_probabilities_are_the_products_mean() -> None:
    p = np.random.default_rng(0).random((50, 3))
    np.testing.assert_allclose(mean_products(p)[0, 2], np.mean(p[:, 0] * p[:, 2]))


def test_labels_are_drawn_from_the_rarest_up_with_their_counts() -> None:
    rng = np.random.default_rng(1)
    true = rng.random((80, 4)) < [0.9, 0.1, 0.5, 0.0]
    p = np.clip(0.6 * true + 0.4 * rng.random((80, 4)), 0, 1)
    scores = rule_label_scores(p, true, LABELS)
    figure = label_dots(LABELS, scores, "made")
    counts = true.sum(axis=0)
    ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert ticks == [f"{LABELS[c]}  ({counts[c]})" for c in (3, 1, 2, 0)]
    drawn = figure.axes[2].collections[-1].get_offsets()
    np.testing.assert_allclose(drawn[1:, 0], scores["threshold per label"].recall_C[[1, 2, 0]])
    assert np.isnan(drawn[0, 0]) or np.ma.is_masked(drawn[0, 0])  # no chip bears it


def test_a_separable_label_scores_one_under_thresholds_and_not_under_one_half() -> None:
    true = np.arange(40)[:, None] % 2 == [[0, 1]]
    scores = rule_label_scores(np.where(true, 0.4, 0.1), true, LABELS[: true.shape[1]])
    assert scores["0.5"].f2_C.tolist() == [0, 0]
    assert scores["best single threshold"].f2_C.tolist() == [1, 1]
    assert scores["threshold per label"].f2_C.tolist() == [1, 1]


def test_co_occurrence_puts_the_exclusive_labels_first_and_clips_what_is_rarer_than_the_scale() -> None:
    matrix = np.arange(16.0).reshape(4, 4) / 16
    figure = cooccurrence(LABELS, {"a": matrix, "b": matrix}, ["road", "clear"])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["road", "clear", "haze", "water"]
    shown = np.asarray(figure.axes[1].images[0].get_array())
    order = [3, 0, 1, 2]
    np.testing.assert_allclose(shown, np.maximum(matrix[np.ix_(order, order)], 1e-5))


def test_loss_curves_bridge_epochs_that_were_not_logged_and_mark_phases() -> None:
    figure = losses([LossCurve("run", [0.6, float("nan"), 0.4], [0.5, 0.45, 0.42], [2])])
    training, validation, phase = figure.axes[0].lines
    assert training.get_xydata().tolist() == [[1, 0.6], [3, 0.4]]
    assert validation.get_xdata().tolist() == [1, 2, 3]
    assert phase.get_xdata() == [2.5, 2.5]
    assert figure.axes[0].get_yscale() == "linear"


def test_losses_that_exploded_are_drawn_on_a_logarithmic_axis() -> None:
    assert losses([LossCurve("run", [1e8, 0.5], [1e7, 0.6])]).axes[0].get_yscale() == "log"


def test_no_caption_of_a_gallery_overlaps_another_however_long_they_are() -> None:
    chip = np.zeros((32, 32, 3), np.uint8)
    many = compared(PLANET.labels[:9], PLANET.labels[5:])
    tiles = [Tile(chip, many), Tile(chip, [Line("short")]), Tile(chip, many), Tile(chip), Tile(chip, many)]
    figure = gallery("A title that is so long that it must be broken into several lines to fit " * 3, tiles)
    assert texts_overlap(figure) == []


def test_a_caption_tells_right_missed_and_added_apart() -> None:
    lines = compared(["clear", "water"], ["clear", "road"])
    assert [line.text for line in lines] == ["right: clear", "missed: water", "added: road"]
    assert len({line.colour for line in lines}) == 3


def test_tiff_chips_are_shown_in_red_green_blue_and_stretched() -> None:
    form = ImageForm(kind="tif", height=8, width=8, bands=4, dtype="uint16", band_order=["blue", "green", "red", "nir"])
    pixels = np.zeros((8, 8, 4), np.uint16)
    pixels[:4, :, 2] = 5000
    shown = displayed(pixels, form)
    assert shown.dtype == np.uint8
    assert shown[0, 0].tolist() == [255, 0, 0]


def test_every_figure_of_a_run_is_a_picture_or_left_out_with_a_reason(
    run: FinishedRun, dataset: Dataset, tmp_path: Path
) -> None:
    figures = RunFigures(run, dataset)
    drawn = draw_all(figures, tmp_path, ["road"])
    assert drawn.files.keys() | drawn.left_out.keys() == figures.makers(["road"]).keys()
    assert {"augmentation", "losses", "cooccurrence", "certain-road", "labelled-examples"} <= drawn.files.keys()
    assert drawn.left_out["labels-beside-other"] == "needs a second run"
    for path in drawn.files.values():
        with Image.open(path) as image:
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
            assert min(image.size) > 300


def test_a_scorer_gives_the_logits_that_training_kept(run: FinishedRun, dataset: Dataset) -> None:
    kept = read_predictions(run.folder.evaluation / "predictions.npz")
    found = probabilities(Scorer(run, dataset).logits(kept.ids_N))
    # validation ran in bf16
    np.testing.assert_allclose(found, kept.probabilities_NC, atol=0.02)


def test_train_losses_are_the_means_of_each_epochs_steps(run: FinishedRun) -> None:
    assert len(run.epochs) == 2
    expected = [np.mean([step["loss"] for step in run.steps if step["epoch"] == epoch]) for epoch in (0, 1)]
    np.testing.assert_allclose(run.train_losses(), expected)


def test_the_command_draws_two_runs_side_by_side_and_lists_noise(
    run: FinishedRun, dataset: Dataset, tmp_path: Path
) -> None:
    root = str(run.folder.root)
    done = CliRunner().invoke(main, ["figures", root, root, "--data", str(dataset.root), "--out", str(tmp_path / "a")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a" / "label-noise.csv").read_text().startswith("kind,image_name,tags\n")
    assert "left out: labels-beside-other: both runs have one name" in done.output


def test_an_unfinished_run_another_dataset_and_an_unknown_label_are_errors(
    run: FinishedRun, dataset: Dataset, tif_dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="not a finished run"):
        open_run(tmp_path)
    words = ["figures", str(run.folder.root), "--data", str(tif_dataset.root), "--out", str(tmp_path / "b")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert "give the dataset of the run" in done.output
    with pytest.raises(ConfigError, match="'lake' is not in the vocabulary"):
        certain_labels(PLANET, [1] * 17, ["lake"])


def test_runs_of_other_validation_chips_do_not_stand_beside_each_other(run: FinishedRun) -> None:
    predictions = run.predictions
    shifted = predictions.__class__(
        predictions.labels, predictions.ids_N + 1, predictions.probabilities_NC, predictions.targets_NC
    )
    other = FinishedRun(run.folder, run.config, shifted, run.thresholds, run.scores, run.epochs, run.steps)
    with pytest.raises(RunError, match="validated on other chips"):
        check_pair(run, other)


def test_reliability_has_a_panel_a_label_with_its_calibration_errors() -> None:
    rng = np.random.default_rng(2)
    p = rng.random((600, 4))
    true = rng.random((600, 4)) < p**2
    figure = reliability_panels(LABELS, true, {"before": p, "after": p**2})
    assert len([axes for axes in figure.axes if axes.axison]) == 4
    for c, axes in enumerate(figure.axes[:4]):
        errors = [reliability(said[:, c], true[:, c]).error for said in (p, p**2)]
        assert axes.get_title() == f"{LABELS[c]} ({true[:, c].sum()})\n{errors[0]:.4f}, {errors[1]:.4f}"
        assert errors[1] < errors[0] / 2
        drawn = np.asarray(axes.get_lines()[0].get_xydata())
        np.testing.assert_allclose(drawn[:, 1] ** 2, reliability(p[:, c], true[:, c]).true_B)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["before", "after"]
    assert not texts_overlap(figure)


def test_intervals_of_shares_hold_the_share_and_narrow_with_chips() -> None:
    low, high = share_interval(np.array([0.0, 0.5, 0.5, 1.0]), np.array([10, 10, 1000, 10]))
    assert low[0] == 0.0 and high[3] == 1.0 and (low <= [0, 0.5, 0.5, 1]).all() and (high >= [0, 0.5, 0.5, 1]).all()
    assert low[1:3] == pytest.approx([0.2366, 0.4691], abs=1e-4)
    assert high[0] == pytest.approx(0.2775, abs=1e-4)
