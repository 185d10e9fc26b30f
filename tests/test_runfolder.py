"""A run's folder is never written over, and its logs mend themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from planet_dist.checkpoint import Position, State, save_checkpoint
from planet_dist.config import load_config
from planet_dist.runfolder import JsonLines, RunFolder
from shards.errors import RunError


def saved(run: RunFolder, made_with: dict[str, object]) -> None:
    state = State(Position(0, 1, 0), 5, 0, None, None, made_with, "abc", {})
    save_checkpoint(run.checkpoints, state, {"w": torch.ones(1)}, None, {})


def test_a_folder_that_holds_something_is_refused_unless_resuming(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.check("never")
    run.create(load_config("small-resnet-32"))
    with pytest.raises(RunError, match=r"run: exists already; give another --out, or --resume auto"):
        run.check("never")
    run.check("auto")


def test_resuming_starts_anew_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).checkpoint("auto", {}) is None


def test_resuming_with_another_configuration_shows_each_difference(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    saved(run, {"config": {"seed": 0, "phases": [{"epochs": 2}]}, "dataset": "aa", "precision": "bf16"})
    with pytest.raises(RunError) as caught:
        run.checkpoint("auto", {"config": {"seed": 1, "phases": [{"epochs": 3}]}, "dataset": "bb", "precision": "no"})
    text = str(caught.value)
    assert "config.seed: 0 in the checkpoint, 1 now" in text
    assert "config.phases.0.epochs: 2 in the checkpoint, 3 now" in text
    assert "dataset: 'aa' in the checkpoint, 'bb' now" in text
    assert "precision: 'bf16' in the checkpoint, 'no' now" in text


def test_resuming_with_the_same_gives_the_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    saved(run, {"config": {"seed": 0}})
    found = run.checkpoint("auto", {"config": {"seed": 0}})
    assert found is not None
    assert found.state.position == Position(0, 1, 0)


def test_a_finished_run_whose_bundle_cannot_be_read_is_told(tmp_path: Path) -> None:
    config, bundle = load_config("small-resnet-32", []), tmp_path / "bundle" / "bundle.json"
    folder = RunFolder(tmp_path)
    folder.create(config)
    assert not folder.is_finished(config, "d" * 64)
    bundle.parent.mkdir()
    bundle.write_text("{")
    with pytest.raises(RunError, match=r"bundle\.json: cannot be read .* remove the folder"):
        folder.is_finished(config, "d" * 64)
    bundle.write_text(json.dumps({"dataset_digest": "d" * 64}))
    assert folder.is_finished(config, "d" * 64)


def test_an_older_start_can_no_longer_write_once_a_newer_one_has_begun(tmp_path: Path) -> None:
    config = load_config("small-resnet-32")
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.hold()  # before any start: nothing to hold
    first.create(config)
    first.hold()
    second.create(config)
    second.hold()
    with pytest.raises(RunError, match="start 2 of this run has taken over from this one, number 1"):
        first.hold()


def test_a_log_drops_what_a_restart_undid_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path)
    log.append({"step": 1})
    kept = log.size()
    log.append({"step": 2})
    log.close()
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    log = JsonLines(path, keep_bytes=kept)
    log.append({"step": 2})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_each_line_is_on_disk_before_the_next_is_computed(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "metrics.jsonl")
    log.append({"loss": 0.1})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"loss": 0.1}\n'
    log.close()
