"""W&B gets the same numbers, online only with a login, and offline without asking any network."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planet_dist import tracking
from planet_dist.config import Config, TrackingConfig, load_config
from planet_dist.runfolder import RunFolder
from planet_dist.tracking import Tracker, group_of, shown_config, tracking_mode
from planet_dist.tracking_files import read_records
from shards.errors import RunError
from shards.reader import Dataset
from tests.conftest import REPOSITORY


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def login(folder: Path, host: str) -> None:
    path = folder / "netrc"
    path.write_text(f"machine {host} login user password {'0' * 40}\n")
    path.chmod(0o600)


@pytest.mark.parametrize(
    ("wandb", "mode"), [("auto", "offline"), ("online", "online"), ("offline", "offline"), ("off", "disabled")]
)
def test_without_a_login_auto_is_offline_and_the_rest_is_as_asked(wandb: Any, mode: str) -> None:
    assert tracking_mode(TrackingConfig(wandb=wandb)) == mode


def test_a_key_in_the_environment_is_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert tracking_mode(TrackingConfig()) == "online"
    assert tracking_mode(TrackingConfig(wandb="offline")) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert tracking_mode(TrackingConfig()) == "offline"


def test_a_netrc_with_the_server_in_it_is_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login(tmp_path, "github.com")
    assert tracking_mode(TrackingConfig()) == "offline"
    login(tmp_path, "api.wandb.ai")
    assert tracking_mode(TrackingConfig()) == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    assert tracking_mode(TrackingConfig()) == "offline"
    login(tmp_path, "wandb.example.org")
    assert tracking_mode(TrackingConfig()) == "online"


def test_the_netrc_in_the_home_folder_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NETRC")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tracking_mode(TrackingConfig()) == "offline"
    login(tmp_path, "api.wandb.ai")
    (tmp_path / "netrc").rename(tmp_path / ".netrc")
    assert tracking_mode(TrackingConfig()) == "online"


def test_a_netrc_that_cannot_be_read_is_no_login(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text('machine\n\\"')
    assert tracking_mode(TrackingConfig()) == "offline"


def test_wandbs_own_mode_stands_above_what_auto_finds_and_below_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    for mode in ("offline", "disabled", "online"):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert tracking_mode(TrackingConfig()) == mode
    assert tracking_mode(TrackingConfig(wandb="off")) == "disabled"


def settings(wandb: str) -> Config:
    return load_config("small-resnet-32", [f"tracking.wandb={wandb}", "tracking.group=folds"])


class NoAccelerator(SimpleNamespace):
    """One that must not be asked for anything."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the tracker asked for {name}")


@pytest.mark.parametrize(("wandb", "is_main_process"), [("off", True), ("offline", False), ("online", False)])
def test_off_and_other_ranks_write_nothing_and_ask_for_nothing(
    wandb: str, is_main_process: bool, tmp_path: Path
) -> None:
    accelerator: Any = NoAccelerator(is_main_process=is_main_process)
    tracker = Tracker(accelerator, settings(wandb), RunFolder(tmp_path), name="run", run_id=None)
    line = {"kind": "train", "phase": 0, "epoch": 0, "step": 1, "loss": 1.0}
    tracker.describe(SimpleNamespace())  # type: ignore[arg-type]
    tracker.record(line)
    tracker.time(line)
    tracker.conclude({}, tmp_path / "bundle")
    tracker.close()
    assert list(tmp_path.iterdir()) == []
    assert len(tracker.run_id) == 8


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A port of this host that stands for the network: whoever asks for one is noticed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


TRACKED = """
import sys
from pathlib import Path
from accelerate import Accelerator
from planet_dist.config import load_config
from planet_dist.data import open_data
from planet_dist.runfolder import RunFolder
from planet_dist.tracking import Tracker

root = Path(sys.argv[1])
accelerator = Accelerator(cpu=True, log_with="wandb", project_dir=str(root))
config = load_config("small-resnet-32", ["tracking.project=chips", "tracking.group=folds", "data.split=tail:30"])
tracker = Tracker(accelerator, config, RunFolder(root), name="small-resnet-32-run", run_id=None)
tracker.describe(open_data(config, sys.argv[2]))
for step in (10, 20):
    place = {"phase": 0, "epoch": 0, "step": step}
    tracker.record({"kind": "train", **place, "loss": 1 / step})
    tracker.time({"kind": "train", **place, "wait_share": 0.5, "time": 1.0})
tracker.record({"kind": "epoch", **place, "f2": 0.75, "best": True})
tracker.close()
print(tracker.run_id)
"""


def track(run: Path, dataset: Dataset, listener: socket.socket) -> str:
    """Tracks a short run in a process of its own, whose whole network is the listener; gives what it printed."""
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"), url)
    done = subprocess.run(
        [sys.executable, "-c", TRACKED, str(run), str(dataset.root)],
        cwd=REPOSITORY,
        env={**os.environ, **proxies, "HOME": str(run.parent), "WANDB_BASE_URL": url},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_offline_run_writes_its_numbers_under_one_id_and_asks_no_network(
    listener: socket.socket, dataset: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    printed = track(run, dataset, listener)
    run_id = printed.strip()
    assert len(run_id) == 8 and printed.count("\n") == 1, "W&B's banners stay out of the way"
    (folder,) = (run / "wandb").glob("offline-run-*")
    assert folder.name.endswith(f"-{run_id}")
    found = list(read_records(folder / f"run-{run_id}.wandb"))
    started = [record.run for record in found if record.HasField("run")]
    assert {(r.run_id, r.project, r.run_group, r.display_name) for r in started} == {
        (run_id, "chips", "folds", "small-resnet-32-run")
    }
    logged: dict[int, dict[str, float]] = {}
    for record in found:
        if record.HasField("history"):
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            logged.setdefault(int(items["_step"]), {}).update(items)
    named = {step: {k: v for k, v in items.items() if not k.startswith("_")} for step, items in logged.items()}
    place = {"train/phase": 0, "train/epoch": 0}
    assert named == {
        10: {"train/step": 10, **place, "train/loss": 0.1, "time/wait_share": 0.5},
        20: {"train/step": 20, **place, "train/loss": 0.05, "time/wait_share": 0.5, "val/f2": 0.75},
    }
    assert {path.name for path in run.iterdir()} == {"wandb"}
    with pytest.raises(BlockingIOError):
        listener.accept()


class Recorder(SimpleNamespace):
    """An accelerator that keeps what W&B would be started with, or fails as W&B does."""

    is_main_process = True

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(started=[], error=error)

    def init_trackers(self, project: str, config: dict[str, Any], init_kwargs: dict[str, Any]) -> None:
        self.started.append(init_kwargs["wandb"])
        if self.error is not None:
            raise self.error


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setattr(tracking, "_SERVER_SECONDS", 0.5)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def started(run: Path, error: Exception | None = None) -> dict[str, Any]:
    """What W&B is started with when a run with the id 0badcafe goes on."""
    accelerator: Any = Recorder(error)
    tracker = Tracker(accelerator, settings("auto"), RunFolder(run), name="run", run_id="0badcafe")
    assert tracker.run_id == "0badcafe"
    (found,) = accelerator.started
    return dict(found)


@pytest.mark.usefixtures("logged_in")
def test_a_server_that_does_not_answer_leaves_the_run_offline_and_says_so(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("WANDB_BASE_URL", url)
    assert started(tmp_path)["mode"] == "offline"
    assert f"{url} does not answer, so W&B's log stays in {tmp_path / 'wandb'}" in capsys.readouterr().err
    listener.close()
    assert started(tmp_path)["mode"] == "offline"


@pytest.mark.usefixtures("logged_in")
def test_a_server_that_answers_anything_is_logged_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # 501 to every request
        monkeypatch.setattr(BaseHTTPRequestHandler, "log_message", lambda *_: None)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        found = started(tmp_path)
        thread.join()
    assert (found["mode"], found["id"], found["resume"], found["group"]) == ("online", "0badcafe", "allow", "folds")


@pytest.mark.usefixtures("logged_in")
def test_a_run_that_wandb_refuses_is_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.errors import CommError

    monkeypatch.setattr(tracking, "server_answers", lambda: True)
    with pytest.raises(
        RunError, match=r"refuses to track this run: no such key; log in anew .*tracking\.wandb=offline"
    ):
        started(tmp_path, CommError("no such key"))


def test_a_run_that_was_killed_before_its_first_checkpoint_goes_on_under_its_id(tmp_path: Path) -> None:
    accelerator: Any = Recorder()
    ids = [Tracker(accelerator, settings("offline"), RunFolder(tmp_path), name="run", run_id=None).run_id for _ in "12"]
    assert ids[0] == ids[1]
    assert {started["id"] for started in accelerator.started} == {ids[0]}


def test_a_sweeps_agent_chooses_the_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "sweeprun")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    accelerator: Any = Recorder()
    tracker = Tracker(accelerator, settings("offline"), RunFolder(tmp_path), name="run", run_id=None)
    assert tracker.run_id == accelerator.started[0]["id"] == "sweeprun"


def folds(split: str, *more: str) -> Config:
    return load_config("small-resnet-32", [f"data.split={split}", *more])


def test_the_folds_of_one_cross_validation_are_grouped_and_no_others() -> None:
    group = group_of(folds("kfold:5/0"))
    assert group is not None and group.startswith("small-resnet-5-folds-")
    assert group_of(folds("kfold:5/4", "runtime.log_every_steps=1")) == group
    assert group_of(folds("kfold:5/0", "seed=1")) != group
    assert group_of(folds("kfold:4/0")) != group
    started = [group_of(folds(f"kfold:5/{fold}", f"model.weights=runs/fold-{fold}")) for fold in (0, 1)]
    assert started[0] == started[1] != group
    assert group_of(folds("tail:30")) is None
    assert group_of(folds("kfold:5/0", "tracking.group=mine")) == "mine"


def test_every_value_of_a_phase_has_a_place_of_its_own_in_the_shown_configuration() -> None:
    shown = shown_config(folds("tail:30", "phases.0.learning_rate=0.25"))
    assert shown["phases"]["0"]["learning_rate"] == 0.25
