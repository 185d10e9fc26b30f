"""A run's logs, read while they are being written or after they were cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planet_dist.config import load_config
from planet_dist.runfolder import RunFolder
from planet_dist.runlogs import read_logs, read_records
from shards.errors import RunError


def epoch(number: int, f2: float, best: bool) -> dict[str, object]:
    return {"kind": "epoch", "phase": 0, "epoch": number, "step": 5 * number + 5, "f2": f2, "best": best}


def timing(step: int, seconds: float, **shares: float) -> dict[str, object]:
    rates = {"images_per_second": 100.0 * step, "seconds": seconds}
    return {"kind": "train", "phase": 0, "epoch": 0, "step": step, **rates, **shares}


def written(path: Path, records: list[dict[str, object]], torn: str = "") -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + torn)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create(load_config("small-resnet-32", ["phases.0.epochs=7"]), {"recipe": "small-resnet-32"})
    written(folder.metrics, [epoch(0, 0.5, True), epoch(1, 0.7, True), epoch(2, 0.6, False)], '{"kind": "ep')
    steps = [timing(1, 10.0, wait_share=0.5), timing(2, 30.0, wait_share=0.1), timing(30, 1.0)]
    written(folder.timing, steps)
    return folder


def test_a_line_that_is_still_being_written_does_not_count(run: RunFolder) -> None:
    logs = read_logs(run.root)
    assert [record["f2"] for record in logs.epochs] == [0.5, 0.7, 0.6]
    assert (logs.name, logs.total_epochs, logs.scores) == ("run", 7, None)
    assert logs.start["recipe"] == "small-resnet-32"


def test_the_best_epoch_is_the_last_that_was_marked(run: RunFolder) -> None:
    best = read_logs(run.root).best_epoch()
    assert best is not None and best["epoch"] == 1


def test_speed_is_the_median_so_that_validation_and_pauses_do_not_count(run: RunFolder) -> None:
    assert read_logs(run.root).images_per_second() == 200.0


def test_shares_of_time_are_weighted_by_time_and_lines_without_one_do_not_count(run: RunFolder) -> None:
    assert read_logs(run.root).time_shares() == {"wait": pytest.approx((10 * 0.5 + 30 * 0.1) / 40)}


def test_a_run_before_its_first_step_has_logs_of_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create(load_config("small-resnet-32"))
    logs = read_logs(tmp_path)
    assert (logs.epochs, logs.timings, logs.images_per_second(), logs.best_epoch()) == ([], [], None, None)
    assert logs.time_shares() == {}


def test_a_damaged_line_is_named(run: RunFolder) -> None:
    run.timing.write_text('{"kind": "train"}\n\x00\x00\n{"kind": "train"}\n')
    with pytest.raises(RunError, match=r"timing\.jsonl:2: not a line of a run's log"):
        read_records(run.timing)
    run.timing.write_text('{"kind": "train"}\n[1]\n')
    with pytest.raises(RunError, match=r"timing\.jsonl:2"):
        read_logs(run.root)


def test_what_is_no_run_or_no_whole_one_is_an_error(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not a run \(it has no config\.toml\)"):
        read_logs(tmp_path)
    run.evaluation.mkdir()
    (run.evaluation / "metrics.json").write_text("{}")
    with pytest.raises(RunError, match=r"metrics\.json: lacks rules, labels, chosen, f2"):
        read_logs(run.root)
    run.config.write_text("seed = [")
    with pytest.raises(RunError, match="a file of the run cannot be read"):
        read_logs(run.root)
