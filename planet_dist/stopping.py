"""Asking a run to save and end: by signal, or by the clock.

A signal's handler only notes the signal. What is noted travels with the step's own small reduction (Learner.step), so
that all ranks save after the same step, whichever of them was asked: the one after which the result is read. The same
signal again, a second later or more, ends the process at once, with the last checkpoint intact. Others don't: a Ctrl-C
is followed by the SIGTERM of a launcher that ends of it, and Linux sends that once for each of the launcher's threads.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Wish:
    """What a rank wants after this step."""

    save: bool = False
    stop: bool = False

    def __or__(self, other: Wish) -> Wish:
        """What either wants."""
        return Wish(self.save or other.save, self.stop or other.stop)


class Wishes:
    """Collects a rank's wishes.

    Args:
        save_minutes: between saves by the clock; 0 saves at none. Only rank 0 looks at a clock.
        keeps_time: whether this is rank 0.
    """

    def __init__(self, save_minutes: float, *, keeps_time: bool) -> None:
        self._save_seconds = save_minutes * 60 if keeps_time else 0.0
        self._saved = time.monotonic()
        self._asked: dict[signal.Signals, float] = {}

    def listen(self) -> None:
        """Takes over the signals that ask a run to end."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._asked.setdefault(signal.Signals(number), now) >= _AGAIN_SECONDS:
            os._exit(128 + number)

    @property
    def reason(self) -> str:
        """The signal that this rank was sent, or that another was."""
        return next((number.name for number in self._asked), "a signal to another rank")

    def now(self) -> Wish:
        """What this rank wants at this moment."""
        due = bool(self._save_seconds) and time.monotonic() - self._saved >= self._save_seconds
        return Wish(save=due, stop=bool(self._asked))

    def saved(self) -> None:
        """Starts the time between saves anew."""
        self._saved = time.monotonic()
