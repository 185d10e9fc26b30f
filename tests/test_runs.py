"""The list of runs: every state, the newest first, and no damage that ends it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from planet_dist.cli import main
from planet_dist.config import load_config
from planet_dist.runfolder import RunFolder
from planet_dist.runs import list_runs
from planet_dist.runstate import this_process
from shards.errors import RunError


def begun(folder: Path, time: float, f2: float | None = None, **process: Any) -> RunFolder:
    """A run of one of four epochs, begun by this process or by one that was like it."""
    run = RunFolder(folder)
    about = {"recipe": "small-resnet-32", "time": time, "process": this_process() | process}
    run.create(load_config("small-resnet-32", ["phases.0.epochs=4"]), about)
    if f2 is not None:
        epoch = {"kind": "epoch", "phase": 0, "epoch": 0, "step": 5, "f2": f2, "best": True}
        run.metrics.write_text(json.dumps(epoch) + "\n")
        timing = {"kind": "train", "step": 5, "images_per_second": 1234.0, "seconds": 1.0}
        run.timing.write_text(json.dumps(timing) + "\n")
    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A run in each state, some of them deeper."""
    begun(tmp_path / "running", 70.0, 0.5)
    begun(tmp_path / "deep" / "er" / "killed", 60.0, 0.6, ticks=1)
    begun(tmp_path / "stopped", 50.0, 0.7, ticks=1).write_stopped("SIGTERM", 40)
    begun(tmp_path / "failed", 40.0, ticks=1).write_failed("the disk is [bold]full[/bold]")
    begun(tmp_path / "elsewhere", 30.0, 0.8, host="node-7")
    finished = begun(tmp_path / "finished", 20.0, 0.9, ticks=1)
    finished.bundle.mkdir()
    (finished.bundle / "bundle.json").write_text("{}")
    finished.evaluation.mkdir()
    scores = {"rules": [], "labels": [], "chosen": "exact", "f2": 0.91}
    (finished.evaluation / "metrics.json").write_text(json.dumps(scores))
    begun(tmp_path / "damaged", 10.0, 0.9).metrics.write_text("no json\n")
    (tmp_path / "no-run").mkdir()
    (tmp_path / "no-run" / "config.toml").write_text("")
    return tmp_path


def test_every_run_is_a_row_with_its_state_the_newest_first(root: Path) -> None:
    rows = {row.run: row for row in list_runs(root)}
    assert list(rows) == ["running", "deep/er/killed", "stopped", "failed", "elsewhere", "finished", "damaged"]
    states = {name: (row.state, row.why) for name, row in rows.items()}
    assert states["running"] == ("running", "")
    assert states["deep/er/killed"] == ("killed", "ended without a word")
    assert states["stopped"] == ("stopped", "SIGTERM after step 40")
    assert states["failed"] == ("failed", "the disk is [bold]full[/bold]")
    assert states["elsewhere"] == ("unknown", "started on node-7, not seen from here")
    assert states["finished"] == ("finished", "")
    assert states["damaged"][0] == "damaged" and "metrics.jsonl:1" in states["damaged"][1]
    assert (rows["running"].epoch, rows["running"].total_epochs, rows["running"].f2) == (1, 4, 0.5)
    assert (rows["failed"].epoch, rows["failed"].f2, rows["failed"].images_per_second) == (0, None, None)
    assert (rows["finished"].f2, rows["finished"].images_per_second) == (0.91, 1234.0)  # the cross-fitted one


def test_the_table_has_every_run_and_shows_names_as_they_are(root: Path) -> None:
    done = CliRunner().invoke(main, ["runs", str(root)], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    assert "the disk is [bold]full[/bold]" in done.output
    assert "Traceback" not in done.output
    line = next(line for line in done.output.splitlines() if line.startswith("stopped"))
    assert line.split()[:5] == ["stopped", "small-resnet-32", "1/4", "0.7000", "1,234"]
    assert len(done.output.splitlines()) == 8


def test_json_has_the_same_rows(root: Path) -> None:
    done = CliRunner().invoke(main, ["runs", str(root), "--json"])
    table = json.loads(done.output)
    assert [row["run"] for row in table] == [row.run for row in list_runs(root)]
    assert table[0]["state"] == "running" and table[0]["images_per_second"] == 1234.0


def test_a_run_itself_can_be_asked_for_and_an_empty_folder_has_none(root: Path) -> None:
    assert [row.run for row in list_runs(root / "running")] == ["running"]
    assert "no runs below" in CliRunner().invoke(main, ["runs", str(root / "no-run")]).output
    with pytest.raises(RunError, match="no such folder"):
        list_runs(root / "gone")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("start.json", "[1]"),
        ("start.json", '{"start": 1, "process": 7}'),
        ("config.toml", "seed = ["),
        ("metrics.jsonl", '{"kind": "epoch", "best": true, "f2": "high"}\n'),
        ("timing.jsonl", '{"kind": "train", "images_per_second": "fast"}\n'),
        ("evaluation/metrics.json", "[]"),
        ("evaluation/metrics.json", "\x00"),
    ],
)
def test_no_damage_keeps_the_other_runs_from_the_list(root: Path, file: str, text: str) -> None:
    begun(root / "struck", 90.0, 0.5, ticks=1)
    path = root / "struck" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    rows = {row.run: row for row in list_runs(root)}
    assert rows["struck"].state == "damaged" and rows["struck"].why
    assert len(rows) == 8 and rows["running"].state == "running"
    done = CliRunner().invoke(main, ["runs", str(root)])
    assert done.exit_code == 0 and "damaged" in done.output


def test_what_a_run_holds_is_not_searched_for_other_runs(root: Path) -> None:
    begun(root / "running" / "wandb" / "inner", 80.0)
    assert not any("inner" in row.run for row in list_runs(root))


def test_listing_loads_no_torch() -> None:
    code = "import sys, planet_dist.runs\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
