"""A paper's rows: which fit, what is trained, and the page beside the paper's numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from planet_dist.cli import main
from planet_dist.config import load_config
from planet_dist.finished import FinishedRun
from planet_dist.papers import PAPER1_TABLE1, PAPER2_TABLE4, PAPER2_TABLE5, PAPER2_THRESHOLDS
from planet_dist.predictions import Predictions
from planet_dist.reproduce import Failed, make_page, train_rows
from planet_dist.reproduce_found import Found
from planet_dist.reproduce_paper1 import sections as sections1
from planet_dist.reproduce_paper2 import sections as sections2
from planet_dist.reproduce_paper2 import table4
from planet_dist.reproduce_rows import FIRST_PHASE, ROWS, WITHOUT_TERM, LeftOut, PlannedRow, plan_rows, quick_overrides
from planet_dist.runfolder import RunFolder
from planet_dist.thresholds import Thresholds
from shards.errors import ConfigError, RunError
from shards.labels import PLANET
from shards.reader import Dataset
from tests.conftest import REPOSITORY

LAUNCH = REPOSITORY / "launch" / "cpu.yaml"
TINY = ["data.limit=90", "data.size=16", "phases.0.epochs=1", "evaluate.batch_size=16"]


def planned(paper: str, dataset: Dataset, out: Path, **more: object) -> dict[str, PlannedRow | LeftOut]:
    given: dict[str, object] = {"tiff": None, "scale": "quick", "launch_file": LAUNCH, **more}
    rows = plan_rows(paper, dataset.root, out=out, **given)  # type: ignore[arg-type]
    return {one.row.name: one for one in rows}


def test_without_tiff_chips_only_the_baseline_is_left_out(
    dataset: Dataset, tif_dataset: Dataset, tmp_path: Path
) -> None:
    small = ["data.limit=100", "data.split=tail:20"]
    rows = planned("paper1", dataset, tmp_path, overrides=small)
    left_out = {name: one.reason for name, one in rows.items() if isinstance(one, LeftOut)}
    assert left_out == {"paper1-baseline": "needs TIFF chips; give --tiff DATASET"}
    resnet = rows["paper1-resnet50"]
    assert isinstance(resnet, PlannedRow) and resnet.config.tracking.group == tmp_path.name
    with_tiff = planned("paper1", dataset, tmp_path, overrides=small, tiff=tif_dataset.root)
    baseline = with_tiff["paper1-baseline"]
    assert isinstance(baseline, PlannedRow)
    assert baseline.data == tif_dataset.root


def test_at_full_scale_recipes_are_the_papers_own_and_too_few_chips_are_the_reason(
    dataset: Dataset, tmp_path: Path
) -> None:
    first = planned("paper1", dataset, tmp_path, scale="full")
    assert all(isinstance(one, LeftOut) for one in first.values())
    assert "split 'tail:8000' of 120 labelled chips" in first["paper1-vgg16"].reason  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"no row can be trained:\n  paper1-baseline: needs TIFF"):
        train_rows(list(first.values()))
    second = planned("paper2", dataset, tmp_path, scale="full")
    for name in ("paper2-simple-cnn-64", "paper2-inception-v3"):
        own = load_config(name, [f"tracking.group={tmp_path.name}"])
        assert second[name].config == own  # type: ignore[union-attr]


def test_the_variants_of_the_second_papers_network_differ_in_one_thing(dataset: Dataset, tmp_path: Path) -> None:
    rows = {name: one.config for name, one in planned("paper2", dataset, tmp_path).items()}  # type: ignore[union-attr]
    whole = rows["paper2-inception-v3"]
    assert rows[FIRST_PHASE] == whole.model_copy(update={"phases": whole.phases[:1]})
    loss = whole.loss.model_copy(update={"cooccurrence": "none"})
    assert rows[WITHOUT_TERM] == whole.model_copy(update={"loss": loss})


def test_quick_overrides_shorten_every_recipe_without_changing_its_network() -> None:
    for row in (*ROWS["paper1"], *ROWS["paper2"]):
        if row.ensemble:
            continue
        plain = load_config(row.recipe)
        quick = load_config(row.recipe, quick_overrides(plain))
        assert 0 < quick.data.limit <= 480
        assert quick.model == plain.model.model_copy(update={"weights": "none"})
        assert len(quick.phases) == len(plain.phases)
        assert all(phase.trains != "head" for phase in quick.phases)  # nothing learns above random, frozen layers
        assert max(phase.epochs for phase in quick.phases) <= 4


def test_an_unknown_row_names_those_there_are(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="paper2 has paper2-simple-cnn-64, "):
        planned("paper2", dataset, tmp_path, only=["paper2-resnet"])


def made_run(p_NC: np.ndarray, true_NC: np.ndarray) -> FinishedRun:
    predictions = Predictions(PLANET.labels, np.arange(len(p_NC)), p_NC, true_NC)
    thresholds = Thresholds("flat-0.2", PLANET.labels, (0.2,) * 17)
    return FinishedRun(RunFolder(Path("made")), load_config("small-resnet-32"), predictions, thresholds, {}, [], [])


def test_table_4_is_the_mean_product_of_each_pairs_probabilities_and_its_factor() -> None:
    rng = np.random.default_rng(2)
    true_NC = np.zeros((30, 17), dtype=bool)
    p_NC = rng.random((30, 17))
    without, with_term = made_run(p_NC, true_NC), made_run(p_NC / 10, true_NC)
    grid = table4(without, with_term).grid
    assert grid is not None
    clear = PLANET.labels.index("clear")
    for row, (other, paper) in zip(grid.rows, PAPER2_TABLE4.items(), strict=True):
        before = np.mean(p_NC[:, clear] * p_NC[:, PLANET.labels.index(other)])
        assert row[0] == f"clear, {other}"
        assert float(row[3]) == pytest.approx(paper[0] / paper[1], abs=0.05)
        assert float(row[4]) == pytest.approx(before, abs=5e-5)
        assert float(row[6]) == pytest.approx(100, abs=0.1)


def test_table_4_of_probabilities_that_vanish_has_no_factor() -> None:
    true_NC = np.zeros((4, 17), dtype=bool)
    grid = table4(made_run(np.full((4, 17), 0.5), true_NC), made_run(np.zeros((4, 17)), true_NC)).grid
    assert grid is not None
    assert {row[-1] for row in grid.rows} == {"-"}


def test_tables_without_any_row_still_show_the_papers_numbers() -> None:
    table1 = sections1(Found())[0].grid
    assert table1 is not None
    assert [row[3] for row in table1.rows] == [f"{paper.val_f2:.3f}" for paper in PAPER1_TABLE1.values()]
    assert {row[4] for row in table1.rows} == {"-"}
    assert all(section.grid is not None for section in sections2(Found(), 10))


def test_the_papers_numbers_are_consistent_with_themselves() -> None:
    assert set(PAPER2_THRESHOLDS) == set(PLANET.labels)
    assert PAPER2_TABLE5[1] - PAPER2_TABLE5[0] == pytest.approx(PAPER2_TABLE5[2], abs=0.001)
    factors = [before / after for before, after in PAPER2_TABLE4.values()]
    assert 70 < min(factors) < max(factors) < 135


def test_the_command_trains_a_row_once_and_writes_both_pages(dataset: Dataset, tmp_path: Path) -> None:
    words = ["reproduce", "paper2", "--data", str(dataset.root), "--scale", "quick", "--out", str(tmp_path)]
    one_process = tmp_path / "one.yaml"
    one_process.write_text(
        LAUNCH.read_text().replace("MULTI_GPU", "'NO'").replace("num_processes: 2", "num_processes: 1")
    )
    words += ["--launch-config", str(one_process), "--row", "paper2-simple-cnn-64", *TINY]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    page, text = (tmp_path / "page.html").read_text(), (tmp_path / "page.md").read_text()
    for shown in ("0.8974", "random weights", "left out: not asked for", "Table 1: class thresholds"):
        assert shown in page
        assert shown in text
    again = planned("paper2", dataset, tmp_path, overrides=TINY, only=["paper2-simple-cnn-64"])["paper2-simple-cnn-64"]
    assert isinstance(again, PlannedRow)
    assert again.finished
    notes: list[str] = []
    # trained again, it would need a launcher that this machine lacks
    train_rows([dataclasses.replace(again, command=("no-such-launcher",))], notes.append)
    assert notes == ["row 1 of 1: paper2-simple-cnn-64: finished already"]
    with pytest.raises(RunError, match=r"trained with another configuration \(seed differ\)"):
        planned("paper2", dataset, tmp_path, overrides=[*TINY, "seed=1"], only=["paper2-simple-cnn-64"])


def test_a_row_whose_training_fails_is_on_the_page_and_the_others_go_on(dataset: Dataset, tmp_path: Path) -> None:
    rows = planned("paper2", dataset, tmp_path, only=["paper2-simple-cnn-64"])
    one = rows["paper2-simple-cnn-64"]
    assert isinstance(one, PlannedRow)
    broken = PlannedRow(one.row, one.data, one.folder, one.config, ("false", "--recipe", str(tmp_path / "a.toml")))
    trained = train_rows([broken])
    assert isinstance(trained[0], Failed)
    made = make_page("paper2", "quick", trained, tmp_path)
    assert [failed.row.name for failed in made.failed] == ["paper2-simple-cnn-64"]
    assert "its training failed" in made.html.read_text()
