"""A run that is asked to end saves first; one that is asked twice ends at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from planet_dist import stopping
from planet_dist.stopping import SIGNALS, Wish, Wishes


@pytest.fixture
def wishes() -> Wishes:
    return Wishes(0.0, keeps_time=True)


@pytest.fixture(autouse=True)
def handlers() -> object:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_becomes_a_wish_to_stop_and_says_which_it_was(wishes: Wishes, number: signal.Signals) -> None:
    wishes.listen()
    assert wishes.now() == Wish()
    os.kill(os.getpid(), number)
    assert wishes.now() == Wish(stop=True)
    assert wishes.reason == number.name


def test_a_rank_that_was_not_asked_says_that_another_was(wishes: Wishes) -> None:
    assert wishes.reason == "a signal to another rank"


def test_the_same_signal_a_second_later_ends_the_process_at_once_and_no_other_does() -> None:
    code = (
        "import os, signal, time\nfrom planet_dist.stopping import Wishes\n"
        "wishes = Wishes(0, keeps_time=True)\nwishes.listen()\n"
        "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM): os.kill(os.getpid(), number)\n"
        "time.sleep(1.1)\nos.kill(os.getpid(), signal.SIGUSR1)\n"
        "print(wishes.reason, flush=True)\nos.kill(os.getpid(), signal.SIGTERM)\nprint('and on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "SIGINT\n"
    assert done.returncode == 128 + signal.SIGTERM


def test_saves_by_the_clock_come_due_on_rank_0_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    first, other = Wishes(2.0, keeps_time=True), Wishes(2.0, keeps_time=False)
    clock[0] += 119
    assert first.now() == Wish()
    clock[0] += 1
    assert first.now() == Wish(save=True)
    assert other.now() == Wish()
    first.saved()
    assert first.now() == Wish()
