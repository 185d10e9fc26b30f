"""What a person sees while a run trains: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.text import Text

_PLAIN_LINE_SECONDS = 10.0
_LIVE_LINE_SECONDS = 0.2


@dataclass
class Meter:
    """Rates since it was last read."""

    images: int = 0
    steps: int = 0
    wait_seconds: float = 0.0
    since: float = 0.0

    def add(self, images: int, wait_seconds: float) -> None:
        """Counts one step, and how long it waited for its data."""
        self.images += images
        self.steps += 1
        self.wait_seconds += wait_seconds

    def read(self) -> dict[str, float]:
        """images_per_second, wait_share and seconds since the last reading, and starts anew."""
        now = time.perf_counter()
        seconds = max(now - self.since, 1e-9)
        rates = {
            "images_per_second": self.images / seconds,
            "wait_share": self.wait_seconds / seconds,
            "seconds": seconds,
        }
        self.images, self.steps, self.wait_seconds, self.since = 0, 0, 0.0, now
        return rates


class Progress:
    """Prints a run's progress on rank 0.

    Args:
        shown: False prints nothing, for the other ranks.
        total_steps: of the whole run.
    """

    def __init__(self, *, shown: bool, total_steps: int) -> None:
        self._console = Console(quiet=not shown, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._on_terminal = shown and self._console.is_terminal
        self._total_steps = total_steps
        self._meter = Meter(since=time.perf_counter())
        self._last_print = time.perf_counter()
        self._step_seconds = 0.0
        if self._on_terminal:
            self._live.start()

    def step(self, place: str, done_steps: int, loss: float, images: int, wait_seconds: float) -> None:
        """Shows a step, when it's time for a line.

        Args:
            place: such as "epoch 3/16 step 40/104".
            done_steps: of the whole run.
            images: of the global batch.
            wait_seconds: that this rank waited for the batch.
        """
        self._meter.add(images, wait_seconds)
        interval = _LIVE_LINE_SECONDS if self._on_terminal else _PLAIN_LINE_SECONDS
        if time.perf_counter() - self._last_print < interval:
            return
        self._last_print = time.perf_counter()
        steps = self._meter.steps
        rates = self._meter.read()
        recent = rates["seconds"] / steps
        self._step_seconds = 0.8 * self._step_seconds + 0.2 * recent if self._step_seconds else recent
        left = _clock(self._step_seconds * (self._total_steps - done_steps))
        line = (
            f"{place}  loss {loss:.4f}  {rates['images_per_second']:,.0f} images/s  "
            f"waiting for data {rates['wait_share']:.0%}  {left} left"
        )
        if self._on_terminal:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self._console.print(line)

    def note(self, line: str) -> None:
        """Prints a line that stays."""
        self._console.print(line)
        self._meter.read()  # what came before the note is not the rate of the steps after it

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._on_terminal:
            self._live.stop()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
