"""A bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from shards.progress import ProgressLine


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
