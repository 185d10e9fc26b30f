"""Asking a run to save and end: by signal, or by the clock.

A signal's handler only notes the signal. What is noted travels with the step's own small reduction (Learner.step), so
that all ranks save after the same step, whichever of them was asked: the one after which the result is read. A second
signal ends the process at once, with the last checkpoint intact.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


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
        self._signal: signal.Signals | None = None

    def listen(self) -> None:
        """Takes over the signals that ask a run to end."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = signal.Signals(number)

    @property
    def reason(self) -> str:
        """The signal that this rank was sent, or that another was."""
        return self._signal.name if self._signal else "a signal to another rank"

    def now(self) -> Wish:
        """What this rank wants at this moment."""
        due = bool(self._save_seconds) and time.monotonic() - self._saved >= self._save_seconds
        return Wish(save=due, stop=self._signal is not None)

    def saved(self) -> None:
        """Starts the time between saves anew."""
        self._saved = time.monotonic()
