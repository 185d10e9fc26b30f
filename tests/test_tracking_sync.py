"""What cannot be sent is said at once, without asking, and nothing is sent twice."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from planet_dist import tracking
from planet_dist.cli import main
from planet_dist.config import load_config
from planet_dist.tracking_files import new_record, read_records, write_records
from planet_dist.tracking_sync import rebuild_run, send_run
from shards.errors import RunError


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def start(run: Path, name: str, steps: range, run_id: str = "abc") -> Path:
    folder = run / "wandb" / f"{name}-{run_id}"
    folder.mkdir(parents=True)
    header, begun = new_record(), new_record()
    header.header.version_info.producer = "made"
    begun.run.run_id = run_id
    rows = []
    for step in steps:
        rows.append(new_record())
        rows[-1].history.step.num = step
        rows[-1].history.item.add(nested_key=["train/step"], value_json=str(step))
    write_records(folder / f"run-{run_id}.wandb", [header, begun, *rows])
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three steps, logged in one start."""
    root = tmp_path / "run"
    start(root, "offline-run-20260101_000000", range(1, 4))
    write_steps(root, 3)
    return root


def write_steps(root: Path, count: int) -> None:
    lines = [{"kind": "train", "phase": 0, "epoch": 0, "step": step, "loss": 1 / step} for step in range(1, count + 1)]
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tra')


class Service:
    """Keeps the steps that it is sent, or breaks off."""

    def __init__(self, error: Exception | None = None) -> None:
        self.steps: list[list[int]] = []
        self._error = error

    def __call__(self, folder: Path) -> None:
        records = list(read_records(*folder.glob("*.wandb")))
        self.steps.append([record.history.step.num for record in records if record.HasField("history")])
        if self._error:
            raise self._error


def test_what_was_sent_is_not_sent_again(run: Path) -> None:
    service = Service()
    assert send_run(run, service) == "abc"
    assert send_run(run, service) is None
    start(run, "offline-run-20260102_000000", range(3, 6))
    write_steps(run, 5)
    assert send_run(run, service) == "abc"
    assert service.steps == [[1, 2, 3], [4, 5]]
    assert sorted(path.name for path in (run / "wandb").iterdir()) == [
        "offline-run-20260101_000000-abc",
        "offline-run-20260102_000000-abc",
        "sent.json",
    ]


def test_steps_that_were_logged_online_are_not_sent_from_the_offline_start_that_followed(run: Path) -> None:
    (run / "wandb" / "offline-run-20260101_000000-abc").rename(run / "wandb" / "run-20260101_000000-abc")
    start(run, "offline-run-20260102_000000", range(3, 6))
    write_steps(run, 5)
    service = Service()
    send_run(run, service)
    assert service.steps == [[4, 5]]


def test_a_sync_that_broke_off_is_not_repeated_in_silence(run: Path) -> None:
    with pytest.raises(RunError, match="broken"):
        send_run(run, Service(RunError("broken")))
    with pytest.raises(RunError, match=r"an earlier sync was broken off.*--rebuild"):
        send_run(run, Service())


def test_files_of_two_runs_are_refused(run: Path) -> None:
    start(run, "offline-run-20260102_000000", range(3), run_id="other")
    with pytest.raises(RunError, match=r"holds several runs \(abc, other\)"):
        send_run(run, Service())


def test_a_run_without_wandbs_files_can_be_rebuilt(tmp_path: Path) -> None:
    root = tmp_path / "off"
    root.mkdir()
    write_steps(root, 3)
    with pytest.raises(RunError, match=r"nothing was logged there; planet-dist sync --rebuild"):
        send_run(root, Service())
    (root / "config.toml").write_text(load_config("small-resnet-32").to_toml())
    service = Service()
    rebuild_run(root, service)
    assert service.steps == [[1, 2, 3]]
    assert not list((root / "wandb").iterdir())


def sync(*words: str) -> Any:
    return CliRunner().invoke(main, ["sync", *words])


def test_without_a_key_it_says_so_at_once(run: Path) -> None:
    done = sync(str(run))
    assert done.exit_code == 1
    assert "no key for https://api.wandb.ai: log in (wandb login), or set WANDB_API_KEY" in done.output


def test_without_a_network_it_says_so_in_seconds(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking, "_SERVER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        done = sync(str(run))
        assert time.monotonic() - began < 30
    assert done.exit_code == 1
    assert "does not answer; run the command again where it can be reached" in done.output


def test_one_run_that_cannot_be_sent_does_not_keep_the_others(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planet_dist.tracking_sync.check_service", lambda: None)
    monkeypatch.setattr("planet_dist.tracking_sync.send_folder", Service())
    done = sync(str(tmp_path / "none"), str(run), str(run))
    assert done.exit_code == 1
    assert f"{run}: sent as abc" in done.output
    assert f"{run}: nothing new to send" in done.output
    assert "nothing was logged there" in done.output
