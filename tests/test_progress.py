"""One live line on a terminal, few plain ones elsewhere: of the sharding commands, and of training."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from planet_dist import progress
from planet_dist.progress import Meter, Progress
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
    shown = Progress(shown=True, total_steps=100)
    for done in range(1, 26):
        clock[0] += 1
        shown.step(f"epoch 1/4 step {done}/25", done, 0.25, images=256, wait_seconds=0.1)
    shown.close()
    text = capsys.readouterr().out
    assert text.splitlines() == [
        "epoch 1/4 step 10/25  loss 0.2500  256 images/s  waiting for data 10%  1:30 left",
        "epoch 1/4 step 20/25  loss 0.2500  256 images/s  waiting for data 10%  1:20 left",
    ]
    assert "\r" not in text and "\x1b" not in text


@pytest.mark.usefixtures("no_terminal")
def test_the_time_left_follows_a_change_of_pace_without_jumping(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(shown=True, total_steps=30)
    for done, step_seconds in enumerate([1.0] * 10 + [4.0] * 3, start=1):
        clock[0] += step_seconds
        shown.step("epoch 1/1", done, 1.0, images=1, wait_seconds=0.0)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("  0:20 left")  # 20 steps of 1 s
    assert second.endswith("  0:27 left")  # 17 of 1.6 s: a slow stretch does not count in full at once


@pytest.mark.usefixtures("no_terminal")
def test_a_note_is_printed_as_it_is_and_its_time_is_not_the_next_steps(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(shown=True, total_steps=20)
    long = "validation: " + "f2 0.9123  " * 30
    clock[0] += 60
    shown.note(f"[bold]{long}[/bold] :smile:")
    clock[0] += 10
    shown.step("epoch 2/2", 10, 1.0, images=100, wait_seconds=0.0)
    note, step = capsys.readouterr().out.splitlines()
    assert note == f"[bold]{long}[/bold] :smile:"
    assert "  10 images/s  " in step


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_one_line_is_drawn_again_and_again_and_notes_stay(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(shown=True, total_steps=7200)
    for done in range(1, 4):
        clock[0] += 0.5
        shown.step(f"epoch 1/1 step {done}/7200", done, 0.5, images=8, wait_seconds=0.0)
    shown.note("validation: f2 0.9")
    shown.close()
    text = capsys.readouterr().out
    assert "step 1/7200" in text and "step 3/7200" in text
    assert "16 images/s" in text and "59:58 left" in text
    assert "\r" in text and text.count("validation: f2 0.9") == 1
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is shown again


@pytest.mark.usefixtures("terminal")
def test_other_ranks_print_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    silent = Progress(shown=False, total_steps=10)
    clock[0] += 60
    silent.step("epoch 1/1", 1, 1.0, images=1, wait_seconds=0.0)
    silent.note("nobody reads this")
    silent.close()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3599, "59:59"), (3661, "1:01:01"), (1e6, "277:46:40")],
)
def test_times_read_like_a_clocks(seconds: float, text: str) -> None:
    assert progress._clock(seconds) == text
