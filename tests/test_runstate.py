"""Whether a run goes on: by its process, that no other may pass for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planet_dist import runstate
from planet_dist.config import load_config
from planet_dist.ending import failure_told
from planet_dist.runfolder import RunFolder
from planet_dist.runstate import is_alive, state_of, this_process
from shards.errors import RunError


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def begin(run: RunFolder, **changes: Any) -> None:
    run.create(load_config("small-resnet-32"), {"process": this_process() | changes})


def test_this_process_is_alive_and_known_by_more_than_its_number() -> None:
    here = this_process()
    assert here["pid"] == os.getpid() and here["ticks"] > 0 and here["boot"]
    assert is_alive(here) is True


def test_a_process_that_has_ended_is_not_alive_even_before_it_is_reaped() -> None:
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import json; from planet_dist.runstate import this_process; print(json.dumps(this_process()))",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    described = json.loads(child.stdout.read())
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and its number not free yet
    assert is_alive(described) is False
    child.wait()
    assert is_alive(described) is False
    child.stdout.close()


def test_another_process_of_the_same_number_is_not_taken_for_it() -> None:
    assert is_alive(this_process() | {"ticks": this_process()["ticks"] - 1}) is False


def test_of_another_host_or_container_nothing_is_known() -> None:
    assert is_alive(this_process() | {"host": "elsewhere"}) is None
    assert is_alive(this_process() | {"machine": "another of this name"}) is None
    assert is_alive(this_process() | {"namespace": "pid:[1]"}) is None


def test_a_restarted_host_runs_nothing_that_was_begun_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runstate, "_machine", lambda: "m")
    assert is_alive(this_process() | {"boot": "another"}) is False
    # two hosts of one name, neither of which has an id, cannot be told apart
    monkeypatch.setattr(runstate, "_machine", lambda: "")
    assert is_alive(this_process() | {"boot": "another"}) is None


def test_a_run_is_running_while_its_process_is_and_killed_when_it_left_no_word(run: RunFolder) -> None:
    begin(run)
    assert str(state_of(run)) == "running"
    begin(run, ticks=1)
    assert str(state_of(run)) == "killed: ended without a word"


def test_what_a_run_said_last_is_its_state(run: RunFolder) -> None:
    begin(run, ticks=1)
    run.write_stopped("SIGTERM", 40)
    assert str(state_of(run)) == "stopped: SIGTERM after step 40"
    begin(run, ticks=1)
    assert state_of(run).word == "killed"  # the next start took the word away
    run.write_failed("the loss is not finite\nand more")
    assert str(state_of(run)) == "failed: the loss is not finite..."
    begin(run, ticks=1)
    run.write_failed("connection reset by peer")
    run.write_stopped("rank 1 (process 7 on a) has died")  # what another rank found out says more
    assert str(state_of(run)) == "failed: rank 1 (process 7 on a) has died"
    begin(run, ticks=1)
    run.bundle.mkdir()
    (run.bundle / "bundle.json").write_text("{}")
    assert str(state_of(run)) == "finished"


def test_a_run_of_another_host_is_unknown_until_it_leaves_a_word(run: RunFolder) -> None:
    begin(run, host="elsewhere")
    assert str(state_of(run)) == "unknown: started on elsewhere, not seen from here"
    run.write_stopped("SIGUSR1", 3)
    assert state_of(run).word == "stopped"


def test_a_run_of_an_older_version_is_unknown(run: RunFolder) -> None:
    run.create(load_config("small-resnet-32"))
    assert str(state_of(run)) == "unknown: its start left no word"


def test_a_start_that_is_not_whole_is_an_error_that_names_the_file(run: RunFolder) -> None:
    begin(run)
    run.start.write_text('{"start": 1, "process": {"boot": "x"}}')
    with pytest.raises(RunError, match=r"start\.json: does not say which process"):
        state_of(run)
    run.start.write_text("[1]")
    with pytest.raises(RunError, match=r"start\.json: holds no JSON object"):
        state_of(run)


def test_an_error_is_left_as_the_word_of_the_run_by_rank_0_alone(run: RunFolder) -> None:
    begin(run, ticks=1)
    for shown in (False, True):
        assert not run.failed.exists()
        with pytest.raises(RuntimeError), failure_told(run, "quiet", "", shown=shown):
            raise RuntimeError("out of memory")
    assert str(state_of(run)) == "failed: out of memory"


def test_an_older_start_leaves_no_word_once_a_newer_one_has_begun(run: RunFolder) -> None:
    begin(run)
    newer = RunFolder(run.root)
    begin(newer)
    run.write_failed("late")
    assert not run.failed.exists()
