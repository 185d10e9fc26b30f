"""The page of a run, as a browser shows it: whole, quiet, and deaf to what names try."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from planet_dist import report, report_parts
from planet_dist.cli import main
from planet_dist.config import parse_config
from planet_dist.crossfit import evaluate_rules
from planet_dist.decision import DecisionRule
from planet_dist.decision_rules import EXPECTED_F2
from planet_dist.evaluate import Logits
from planet_dist.figures import RunFigures
from planet_dist.figures_scores import f2_contour
from planet_dist.report import MOST_BYTES, warn_of_failure, write_epoch_report, write_final_report
from planet_dist.runfolder import RunFolder
from planet_dist.thresholds import RULES
from shards.build import BuildOptions, build
from shards.errors import DatasetError, RunError
from shards.labels import Vocabulary
from shards.reader import Dataset
from tests.browser import MISSING, Browser, browser
from tests.conftest import launch

CHIPS = 80
# Each would set a variable if a page took it for more than text. A chip's name has no dot, a label no space.
KEY = "<img src=x onerror=hacked=1>"
LABEL = "<img/src=x/onerror=hacked=1>"
RUN = "<svg onload=hacked=1>"
needs_browser = pytest.mark.skipif(bool(MISSING), reason=MISSING or "there is one")


@pytest.fixture(scope="module")
def hostile(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Made chips whose names and one of whose labels are HTML."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "chips").mkdir()
    with (chips / "train.csv").open() as file:
        rows = list(csv.DictReader(file))[:CHIPS]
    labels = sorted({tag for row in rows for tag in row["tags"].split()})
    with (folder / "train.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["image_name", "tags"])
        for number, row in enumerate(rows):
            key = f"{KEY}{number}"
            shutil.copy(chips / "train-jpg" / f"{row['image_name']}.jpg", folder / "chips" / f"{key}.jpg")
            out.writerow([key, " ".join(LABEL if tag == "primary" else tag for tag in row["tags"].split())])
    vocabulary = Vocabulary(tuple(LABEL if label == "primary" else label for label in labels))
    build(BuildOptions(folder / "chips", folder / "train.csv", folder / "dataset", vocabulary))
    return Dataset(folder / "dataset")


@pytest.fixture(scope="module")
def trained(hostile: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run of two epochs in the JSON mode, and the lines that it printed."""
    out = tmp_path_factory.mktemp("report") / RUN
    words = ["data.split=tail:40", "model.width=8", "phases.0.epochs=2", "phases.0.batch_size=20", "evaluate.turns=1"]
    words += ["tracking.wandb=off", "tracking.terminal=json", "runtime.log_every_steps=1", "data.size=16"]
    data = str(hostile.root)
    done = launch(
        "planet_dist/train.py", "--recipe", "small-resnet-32", "--data", data, "--out", str(out), *words, ranks=1
    )
    assert done.returncode == 0, done.stderr
    assert "warning: " not in done.stderr, done.stderr
    return out, done.stdout.splitlines()


@pytest.fixture(scope="module")
def shown() -> Iterator[Browser]:
    with browser() as found:
        yield found


def page_of(run: Path) -> str:
    return (run / "report.html").read_text()


def answers(dataset: Dataset, count: int = 40, seed: int = 0) -> tuple[Logits, np.ndarray]:
    """Logits around the truth of the last chips."""
    targets_NC = dataset.manifest.vocabulary.matrix(dataset.index()["labels"])[-count:]
    logits_NC = np.random.default_rng(seed).normal(np.where(targets_NC, 1.0, -1.5), 1.0).astype(np.float32)
    return Logits(np.arange(len(dataset) - count, len(dataset)), logits_NC), targets_NC


def copied(trained: tuple[Path, list[str]], tmp_path: Path) -> RunFolder:
    """A run of one's own that has not yet come to its end."""
    out = tmp_path / "run"
    shutil.copytree(trained[0], out, symlinks=True)
    shutil.rmtree(out / "evaluation")
    shutil.rmtree(out / "bundle")
    return RunFolder(out)


def test_json_mode_prints_events_and_nothing_else(trained: tuple[Path, list[str]]) -> None:
    run, lines = trained
    events = [json.loads(line) for line in lines]
    kinds = [event["event"] for event in events]
    assert [kind for kind in kinds if kind != "step"] == ["note", "phase", "epoch", "epoch", "phase_end", "finished"]
    scores = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert events[-1]["f2"] == scores["f2"]
    assert events[-1]["report"] == str(run / "report.html")


def test_a_run_ends_with_a_page_of_all_parts_within_its_bound(trained: tuple[Path, list[str]]) -> None:
    page = page_of(trained[0])
    for title in ("Curves", "Labels", "Decision rules", "Mistakes", "Figures", "Where the time went"):
        assert f"<h2>{title}</h2>" in page
    assert "<h2>Configuration</h2>" in page and "<h2>Environment</h2>" in page
    assert "recipe small-resnet-32, small-resnet, finished." in page
    assert "grid-joint" in page and page.count("data:image/webp") >= 12 + 5
    assert len(page.encode()) < MOST_BYTES
    start = json.loads((trained[0] / "start.json").read_text())
    assert start["versions"]["torch"] in page and start["device"] in page
    # where it ran is nobody's business
    assert sys.prefix not in page and f">{start['process']['host']}<" not in page
    assert start["process"]["boot"] not in page


@needs_browser
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_whole_and_asks_for_nothing(
    trained: tuple[Path, list[str]], shown: Browser, width: int, dark: bool
) -> None:
    shown.open(trained[0] / "report.html", width, dark=dark)
    assert shown.run("return document.documentElement.scrollWidth") <= width
    # a table or chart that is cut off would not show in the page's own width
    wide = "[...document.querySelectorAll('h1, p, svg, img, figure, li, dl, .panel')]"
    assert shown.run(f"return {wide}.filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5).length") == 0
    sizes = shown.run("return [...document.images].map((image) => image.naturalWidth)")
    assert len(sizes) >= 17 and min(sizes) > 0
    assert shown.run("return document.querySelectorAll('svg').length") == 6
    ground, ink = shown.run("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
    brightness = [sum(int(part) for part in colour[4:-1].split(",")) for colour in (ground, ink)]
    assert (brightness[0] < brightness[1]) == dark
    assert shown.console() == []
    assert {address.split(":")[0] for address in shown.requests()} <= {"file", "data"}


@needs_browser
def test_names_that_are_html_stay_text(trained: tuple[Path, list[str]], shown: Browser) -> None:
    shown.open(trained[0] / "report.html", 1280)
    assert shown.run("return window.hacked") is None
    assert shown.run("return document.querySelectorAll('[onerror], [onload], img[src=x]').length") == 0
    assert shown.run("return document.querySelector('h1').textContent") == RUN
    assert LABEL in shown.run("return document.querySelector('#labels').textContent")
    assert KEY in shown.run("return document.querySelector('#mistakes').textContent")


@needs_browser
def test_the_policy_stops_a_script_even_if_one_slipped_through(
    trained: tuple[Path, list[str]], shown: Browser, tmp_path: Path
) -> None:
    (tmp_path / "a.html").write_text(page_of(trained[0]).replace("<h1>", f"{KEY}<script>hacked=1</script><h1>"))
    shown.open(tmp_path / "a.html", 1280)
    assert shown.run("return window.hacked") is None
    assert any("Content Security Policy" in line for line in shown.console())


@needs_browser
def test_the_table_of_labels_sorts_by_any_column_both_ways(trained: tuple[Path, list[str]], shown: Browser) -> None:
    shown.open(trained[0] / "report.html", 1280)
    cells = "[...document.querySelectorAll('#labels tbody tr')].map((row) => row.cells[%d].textContent)"
    heading = "document.querySelectorAll('#labels th')[%d]"
    unsorted = shown.run(f"return {cells % 5}")
    shown.run(f"{heading % 5}.querySelector('button').click()")
    counts = [int(count.replace(",", "")) for count in shown.run(f"return {cells % 5}")]
    assert counts == sorted(counts, reverse=True) and sorted(unsorted) == sorted(map(str, counts))
    assert shown.run(f"return {heading % 5}.getAttribute('aria-sort')") == "descending"
    shown.run(f"{heading % 5}.querySelector('button').click()")
    assert [int(count) for count in shown.run(f"return {cells % 5}")] == sorted(counts)
    shown.run(f"{heading % 0}.querySelector('button').click()")
    names = shown.run(f"return {cells % 0}")
    assert all(a <= b for a, b in pairwise(names))
    assert shown.run(f"return {heading % 5}.getAttribute('aria-sort')") is None


@needs_browser
def test_it_prints(trained: tuple[Path, list[str]], shown: Browser) -> None:
    shown.open(trained[0] / "report.html", 1280, dark=True)
    data = shown.printed()
    assert data.startswith(b"%PDF") and len(data) > 50_000


def test_after_an_epoch_there_is_a_page_of_that_epochs_answers(
    trained: tuple[Path, list[str]], hostile: Dataset, tmp_path: Path
) -> None:
    run = copied(trained, tmp_path)
    lines = run.metrics.read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if '"epoch"' in line and json.loads(line)["kind"] == "epoch")
    run.metrics.write_text("".join(lines[: first + 1]))
    write_epoch_report(run, hostile, *answers(hostile))
    page = page_of(run.root)
    assert "after epoch 1 of 2" in page and "finished" not in page.split("</header>")[0]
    assert "best-single" in page and "grid-joint" not in page
    assert "&#x27; figures</h2>" not in page
    assert page.count("data:image/webp") == 12
    other = page.replace("x", "")
    write_epoch_report(run, hostile, *answers(hostile, seed=1))
    assert page_of(run.root).replace("x", "") != other


def test_a_specialists_page_says_what_its_figures_leave_out(
    trained: tuple[Path, list[str]], hostile: Dataset, tmp_path: Path
) -> None:
    run = copied(trained, tmp_path)
    label, *others = hostile.manifest.labels
    config = parse_config(tomllib.loads(run.config.read_text()), "the run's")
    loss = config.loss.model_copy(update={"label_weights": dict.fromkeys(others, 0.0)})
    run.config.write_text(config.model_copy(update={"loss": loss}).to_toml())
    write_epoch_report(run, hostile, *answers(hostile))
    page = page_of(run.root)
    assert f"A specialist of {label}:" in page
    # all other labels count as answered rightly, so that none of them is missed or added
    gallery = page.split('id="mistakes"')[1].split("</section>")[0]
    assert "missed: " + label in gallery or "added: " + label in gallery
    assert not any(f"missed: {other}" in gallery for other in others if "<" not in other)


def test_a_page_that_cannot_be_written_is_a_warning_and_the_old_one_stays(
    trained: tuple[Path, list[str]], hostile: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(trained, tmp_path)
    before = page_of(run.root)
    warnings: list[str] = []

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(report, "write_whole", full)
    warn_of_failure(lambda: write_epoch_report(run, hostile, *answers(hostile)), warnings.append)
    assert page_of(run.root) == before
    assert len(warnings) == 1
    assert warnings[0].startswith("report.html is not written anew, training goes on: [Errno 28] No space left")


def test_a_fault_of_the_page_itself_costs_no_training_either(
    trained: tuple[Path, list[str]], hostile: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(trained, tmp_path)
    warnings: list[str] = []
    monkeypatch.setattr(Dataset, "pixels", lambda self, chip_id, out=None: 1 / 0)
    warn_of_failure(lambda: write_epoch_report(run, hostile, *answers(hostile)), warnings.append)
    assert warnings == ["report.html is not written anew, training goes on: ZeroDivisionError: division by zero"]


def test_figures_beyond_the_bound_are_left_out_by_name(
    trained: tuple[Path, list[str]], hostile: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def big() -> Figure:
        figure = f2_contour()
        figure.figimage(np.random.default_rng(0).random((2000, 2000, 3)))
        return figure

    out = tmp_path / "run"
    shutil.copytree(trained[0], out, symlinks=True)
    monkeypatch.setattr(RunFigures, "makers", lambda self, certain: {"f2-contour": f2_contour, "augmentation": big})
    monkeypatch.setattr(report, "MOST_BYTES", 200_000)
    write_final_report(RunFolder(out), hostile)
    page = page_of(out)
    assert "<li>augmentation: the page would be larger than" in page
    assert "<figcaption>F2 over precision and recall" in page  # what fits is there


def test_the_command_writes_a_finished_runs_page_again(
    trained: tuple[Path, list[str]], hostile: Dataset, tif_dataset: Dataset
) -> None:
    run = trained[0]
    before = page_of(run)
    (run / "report.html").unlink()
    done = CliRunner().invoke(main, ["report", str(run), "--data", str(hostile.root)])
    assert done.exit_code == 0, done.output
    assert len(page_of(run)) == pytest.approx(len(before), rel=0.01)
    with pytest.raises(RunError, match="give the dataset of the run"):
        write_final_report(RunFolder(run), tif_dataset)


def test_a_figure_that_cannot_be_drawn_costs_no_other(
    trained: tuple[Path, list[str]], hostile: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained[0], out, symlinks=True)
    monkeypatch.setattr(
        RunFigures, "makers", lambda self, certain: {"augmentation": lambda: 1 / 0, "f2-contour": f2_contour}
    )
    write_final_report(RunFolder(out), hostile)
    assert "<li>augmentation: could not be drawn (ZeroDivisionError: division by zero)</li>" in page_of(out)
    assert "<figcaption>F2 over precision and recall" in page_of(out)


def test_a_run_without_the_papers_figures_is_shown_as_finished_and_says_how_to_draw_them(
    trained: tuple[Path, list[str]], hostile: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained[0], out, symlinks=True)
    written = out / "config.toml"
    assert "figures = true" in written.read_text()
    written.write_text(written.read_text().replace("figures = true", "figures = false"))
    monkeypatch.setattr(RunFigures, "makers", lambda self, certain: pytest.fail("figures were drawn"))
    write_final_report(RunFolder(out), hostile)
    page = page_of(out)
    assert "<li>all: runtime.figures is off; planet-dist figures draws them</li>" in page
    assert "finished" in page and "this page follows every epoch" not in page


def test_an_unfinished_run_keeps_the_page_that_its_last_epoch_wrote(
    trained: tuple[Path, list[str]], hostile: Dataset, tmp_path: Path
) -> None:
    run = copied(trained, tmp_path)
    before = page_of(run.root)
    with pytest.raises(RunError, match="not a finished run"):
        write_final_report(run, hostile)
    assert page_of(run.root) == before


def test_a_damaged_chip_is_named_in_the_warning(
    trained: tuple[Path, list[str]], hostile: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []

    def damaged(self: Dataset, chip_id: int, out: object = None) -> None:
        raise DatasetError("chips-000000.tar: chip 3 is damaged")

    monkeypatch.setattr(Dataset, "pixels", damaged)
    run = copied(trained, tmp_path)
    warn_of_failure(lambda: write_epoch_report(run, hostile, *answers(hostile)), warnings.append)
    assert warnings[0].endswith("training goes on: chips-000000.tar: chip 3 is damaged")


@pytest.mark.parametrize(("rule", "shown"), [(RULES[2], True), (EXPECTED_F2, False)], ids=["flat-0.2", "expected-f2"])
def test_labels_show_thresholds_where_the_chosen_rule_has_them(rule: DecisionRule, shown: bool) -> None:
    p_NC = np.random.default_rng(0).random((100, 2))
    scores = evaluate_rules(p_NC, p_NC > 0.4, ["clear", "water"], rules=[rule]).to_json()
    page = report_parts.labels(scores)
    assert ("threshold" in page) == shown
    for text in (f"decided by {rule.name} fitted", "precision", f"{scores['labels'][1]['f2']:.3f}"):
        assert text in page
