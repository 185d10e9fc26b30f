"""A trace holds the steps that were asked for, under names that a person looks for, and appears whole."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from planet_dist.stopwatch import Stopwatch
from planet_dist.traces import Trace


def train(trace: Trace, steps: int) -> None:
    watch = Stopwatch(torch.device("cpu"), on=False, traced=True)
    for _ in range(steps):
        thread = Thread(target=watch.decode, args=(torch.ones, 2))
        thread.start()
        thread.join()
        with watch.waiting(), watch.copying():
            images = torch.ones(4, 4)
        with watch.computing():
            images @ images
            with watch.exchanging():
                pass
        trace.step()
    trace.close()


def spans(path: Path) -> dict[str, list[dict[str, Any]]]:
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    found: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("ph") == "X":
            found.setdefault(event["name"], []).append(event)
    return found


@pytest.mark.parametrize(("trained", "recorded"), [(12, 3), (6, 2)])
def test_a_trace_has_the_steps_asked_for_or_those_there_were(tmp_path: Path, trained: int, recorded: int) -> None:
    trace = Trace(tmp_path / "profile", 1, 3)
    train(trace, trained)
    assert list((tmp_path / "profile").iterdir()) == [tmp_path / "profile" / "rank-1.json.gz"]
    found = spans(trace.path)
    for name in ("wait", "decode", "copy", "compute", "exchange"):
        assert len(found[name]) == recorded, name
    assert found["decode"][0]["tid"] != found["compute"][0]["tid"], "threads have lines of their own"
    outer, inner = found["compute"][0], found["aten::mm"][0]
    assert outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]


def test_training_that_ends_before_the_first_recorded_step_leaves_no_trace(tmp_path: Path) -> None:
    train(Trace(tmp_path / "profile", 0, 3), 2)
    assert not (tmp_path / "profile").exists()


def test_no_trace_is_written_unless_asked_for(tmp_path: Path) -> None:
    train(Trace(tmp_path / "profile", 0, 0), 12)
    assert not (tmp_path / "profile").exists()
