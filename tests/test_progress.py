"""One live line on a terminal, few plain ones elsewhere: of the sharding commands, and of training."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyte
import pytest
from rich.console import Console

from planet_dist import progress
from planet_dist.crossfit import evaluate_rules
from planet_dist.ending import failure_told, show_finished, show_stopped
from planet_dist.progress import Meter, Mode, Progress, Stretch
from planet_dist.runfolder import RunFolder
from shards.errors import TrainingError
from shards.progress import ProgressLine


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that training's progress sees, in seconds; tests move it."""
    now = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def test_elsewhere_than_on_a_terminal_there_are_few_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("shards.progress.time.monotonic", lambda: now[0])
    text = io.StringIO()
    with ProgressLine("packing", Console(file=text, force_terminal=False, width=200)) as line:
        line.update(1000, 2000)
        for done in range(1001, 2001):
            now[0] += 0.01
            line.update(done, 2000)
    lines = text.getvalue().splitlines()
    assert lines == [
        "packing: 1,500 of 2,000 images, 100 images/s, 5 s left",
        "packing: 2,000 of 2,000 images, 100 images/s",
    ]


def test_on_a_terminal_there_is_a_bar_with_count_and_rate() -> None:
    text = io.StringIO()
    with ProgressLine("packing", Console(file=text, force_terminal=True, width=120)) as line:
        line.update(0, 40)
        line.update(40, 40)
    assert "40/40" in text.getvalue() and "images/s" in text.getvalue()


def test_a_meter_gives_the_rates_since_it_was_last_read(clock: list[float]) -> None:
    meter = Meter(since=clock[0])
    for _ in range(4):
        meter.add(images=50, wait_seconds=0.5)
    clock[0] += 8
    assert meter.read() == {"images_per_second": 25.0, "wait_share": 0.25, "seconds": 8.0}
    meter.add(images=30, wait_seconds=0.0)
    clock[0] += 3
    assert meter.read() == {"images_per_second": 10.0, "wait_share": 0.0, "seconds": 3.0}


def test_a_meter_read_twice_at_once_divides_nothing_by_zero(clock: list[float]) -> None:
    meter = Meter(since=clock[0])
    assert meter.read()["images_per_second"] == 0.0


@pytest.mark.usefixtures("no_terminal")
def test_training_elsewhere_prints_a_line_every_ten_seconds_without_carriage_returns(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(shown=True, phases=[Stretch(4, 25)])
    shown.phase(0, 0, "all trains")
    for step in range(1, 26):
        clock[0] += 1
        shown.step(0, step, 0.25, images=256, wait_seconds=0.1)
    shown.doing(0, "validating 40 chips")
    shown.epoch(0, {"f2": 0.9, "loss": 0.1}, best=True)
    shown.end_phase()
    text = capsys.readouterr().out
    assert text.splitlines() == [
        "epoch 1/4: all trains",
        "epoch 1/4 step 10/25  loss 0.2500  256 images/s  waiting for data 10%  1:30 left",
        "epoch 1/4 step 20/25  loss 0.2500  256 images/s  waiting for data 10%  1:20 left",
        "epoch 1/4  validation: f2 0.9000  loss 0.1000  (best so far)",
        "done: 4 epoch(s) in 0:25, best f2 0.9000, 256 images/s with validation",
    ]
    assert "\r" not in text and "\x1b" not in text


@pytest.mark.usefixtures("no_terminal")
def test_the_time_left_follows_a_change_of_pace_without_jumping(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(shown=True, phases=[Stretch(1, 30)])
    for step, step_seconds in enumerate([1.0] * 10 + [4.0] * 3, start=1):
        clock[0] += step_seconds
        shown.step(0, step, 1.0, images=1, wait_seconds=0.0)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("  0:20 left")  # 20 steps of 1 s
    assert second.endswith("  0:27 left")  # 17 of 1.6 s: a slow stretch does not count in full at once


@pytest.mark.usefixtures("no_terminal")
def test_the_time_left_counts_the_phases_to_come_and_not_those_that_were(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(shown=True, phases=[Stretch(1, 100), Stretch(2, 10), Stretch(3, 10)])
    shown.phase(1, 1, "head trains")
    clock[0] += 10
    shown.step(1, 5, 1.0, images=1, wait_seconds=0.0)
    assert capsys.readouterr().out.splitlines() == [
        "phase 2/3 epoch 2/2: head trains",
        "phase 2/3 epoch 2/2 step 5/10  loss 1.0000  0 images/s  waiting for data 0%  5:50 left",  # 5 + 30 of 10 s
    ]


@pytest.mark.usefixtures("no_terminal")
def test_a_note_is_printed_as_it_is_and_its_time_is_not_the_next_steps(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(shown=True, phases=[Stretch(2, 10)])
    long = "validation: " + "f2 0.9123  " * 30
    clock[0] += 60
    shown.note(f"[bold]{long}[/bold] :smile:")
    clock[0] += 10
    shown.step(1, 1, 1.0, images=100, wait_seconds=0.0)
    note, step = capsys.readouterr().out.splitlines()
    assert note == f"[bold]{long}[/bold] :smile:"
    assert "  10 images/s  " in step


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_a_phase_has_one_line_that_is_drawn_again_and_leaves_another(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(shown=True, phases=[Stretch(1, 7200)])
    shown.phase(0, 0, "all trains")
    for step in range(1, 4):
        clock[0] += 0.5
        shown.step(0, step, 0.5, images=8, wait_seconds=0.0)
    shown.note("validation: f2 0.9")
    shown.end_phase()
    text = capsys.readouterr().out
    assert "step 1/7200" in text and "step 3/7200" in text
    assert "16 images/s" in text and "59:58 left" in text
    assert "\r" in text and text.count("validation: f2 0.9") == 1
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is shown again
    assert text.rstrip().endswith("done: 1 epoch(s) in 0:01, 16 images/s with validation")


_TWO_PHASES = """
import sys, time
from planet_dist.progress import Progress, Stretch
shown = Progress(shown=True, phases=[Stretch(1, 8), Stretch(2, 8)])
shown.note("a note")
for phase, epochs in ((0, 1), (1, 2)):
    shown.phase(phase, 0, "all trains")
    for epoch in range(epochs):
        for step in range(1, 9):
            time.sleep(0.03)
            shown.step(epoch, step, 0.5, images=8, wait_seconds=0.0)
        shown.doing(epoch, "validating 600 chips")
        shown.epoch(epoch, {"f2": 0.8 + phase / 10}, best=True)
    if phase == 1:
        shown.warn("a page could not be written")
    shown.end_phase()
print("the end")
"""


@pytest.mark.parametrize("columns", [60, 160])
def test_a_real_terminal_ends_with_whole_lines_one_below_the_other(columns: int) -> None:
    written, screen = on_terminal(_TWO_PHASES, columns)
    lines = [line.rstrip() for line in screen if line.strip()]
    assert lines[0] == "a note" and lines[-1] == "the end"
    assert [line for line in lines if line.startswith("phase 1/2 done: 1 epoch(s) in 0:")] == lines[3:4]
    text = "".join(screen)
    assert text.count("validation: f2 0.9000") == 2 and text.count("warning: a page could not be written") == 1
    # live lines were drawn, cut to the terminal's width, and none is left over
    assert re.search(r"step \d/8", written) and "validating 600 chips" in written
    assert not re.search(r"step \d/8", text) and "validating" not in text
    assert ("\u2501" in written) == (columns == 160)  # the bar


def on_terminal(program: str, columns: int) -> tuple[str, list[str]]:
    """What a Python program writes to a pseudo terminal, and what stands on its screen at the end."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    hidden = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=side,
        stdout=side,
        stderr=side,
        env=environment | {"TERM": "xterm-256color"},
    )
    os.close(side)
    written = b""
    # reading fails once the last holder of the other side has closed it
    with contextlib.suppress(OSError):
        while data := os.read(main, 65536):
            written += data
    os.close(main)
    assert child.wait() == 0, written.decode()
    screen = pyte.Screen(columns, 40)
    pyte.ByteStream(screen).feed(written)
    return written.decode(), list(screen.display)


@pytest.mark.usefixtures("no_terminal")
def test_json_events_are_one_object_a_line_and_hold_no_value_that_json_lacks(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(shown=True, phases=[Stretch(1, 8)], mode="json")
    shown.note("a note")
    shown.phase(0, 0, "all trains")
    clock[0] += 20
    shown.step(0, 4, 0.5, images=8, wait_seconds=5.0)
    shown.doing(0, "validating")
    shown.epoch(0, {"f2": 0.9, "loss": float("inf")}, best=False)
    shown.end_phase()
    shown.warn("a page could not be written")
    out, err = capsys.readouterr()
    events = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
    assert [event.pop("event") for event in events] == ["note", "phase", "step", "epoch", "phase_end"]
    assert events[2] == {
        **{"phase": 0, "epoch": 0, "step": 4, "loss": 0.5},
        **{"images_per_second": 0.4, "wait_share": 0.25, "seconds": 20.0, "seconds_left": 80.0},
    }
    assert events[3] == {"phase": 0, "epoch": 0, "f2": 0.9, "loss": None, "best": False}
    assert err == "warning: a page could not be written\n"


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(("shown", "mode", "warned"), [(False, "auto", ""), (False, "json", ""), (True, "quiet", "w")])
def test_other_ranks_print_nothing_and_quiet_runs_warnings_alone(
    clock: list[float], capsys: pytest.CaptureFixture[str], shown: bool, mode: Mode, warned: str
) -> None:
    silent = Progress(shown=shown, phases=[Stretch(1, 10)], mode=mode)
    silent.phase(0, 0, "nobody reads this")
    clock[0] += 60
    silent.step(0, 1, 1.0, images=1, wait_seconds=0.0)
    silent.note("nor this")
    silent.epoch(0, {"f2": 0.5}, best=True)
    silent.end_phase()
    silent.warn("w")
    assert capsys.readouterr() == ("", f"warning: {warned}\n" if warned else "")


def test_the_end_is_told_in_the_way_that_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    true_NC = rng.random((40, 2)) < 0.5
    evaluation = evaluate_rules(np.clip(true_NC + rng.normal(0, 0.2, true_NC.shape), 0, 1), true_NC, ["a", "b"])
    run = RunFolder(tmp_path)
    show_finished("quiet", evaluation, run)
    show_stopped("quiet", "stopped by SIGTERM", 3)
    assert capsys.readouterr().out == ""
    show_finished("auto", evaluation, run)
    text = capsys.readouterr().out
    assert "Decision rules" in text and f"{run.report}  all of this on a page" in text
    show_finished("json", evaluation, run)
    show_stopped("json", "stopped by SIGTERM", 3)
    with pytest.raises(TrainingError), failure_told(run, "json", "https://a:secret1@host/chips", shown=True):
        raise TrainingError("https://a:secret1@host/chips: no such host")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["finished", "stopped", "failed"]
    assert events[0]["f2"] == evaluation.chosen_score.cross_fitted_f2
    assert events[1]["step"] == 3
    assert events[2]["error"] == "https://***@host/chips: no such host"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3599, "59:59"), (3661, "1:01:01"), (1e6, "277:46:40")],
)
def test_times_read_like_a_clocks(seconds: float, text: str) -> None:
    assert progress.clock(seconds) == text
