"""What a person or a program sees while a run trains, in one of three ways (tracking.terminal).

auto    one live line for each phase on a terminal; elsewhere plain lines, never a carriage return
quiet   nothing but errors and warnings, on stderr
json    on stdout one JSON object a line and nothing else; "event" says what it is: note, phase, step, epoch, phase_end,
        stopped, failed, finished
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import click
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Mode = Literal["auto", "quiet", "json"]

_PLAIN_LINE_SECONDS = 10.0
_LIVE_LINE_SECONDS = 0.2
_BAR_COLUMNS = 24
_LEAST_COLUMNS_WITH_BAR = 110


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


@dataclass(frozen=True)
class Stretch:
    """A phase as it's shown: epochs, and steps of each."""

    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Of the whole phase."""
        return self.epochs * self.steps_per_epoch


def print_event(event: str, **fields: Any) -> None:
    """One line of the JSON mode; what is not a finite number becomes null."""
    click.echo(json.dumps(_finite({"event": event, **fields}), ensure_ascii=False))


class Progress:
    """Shows a run's progress on rank 0.

    Args:
        shown: False shows nothing, for the other ranks.
        phases: all of the run's.
        mode: tracking.terminal.
    """

    def __init__(self, *, shown: bool, phases: Sequence[Stretch], mode: Mode = "auto") -> None:
        self._mode: Mode = mode if shown else "quiet"
        self._warns = shown
        self._phases = phases
        quiet = self._mode != "auto"
        self._console = Console(quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._on_terminal = not quiet and self._console.is_terminal
        self._live: Live | None = None
        self._meter = Meter(since=time.perf_counter())
        self._last_shown = time.perf_counter()
        self._step_seconds = 0.0
        self._phase, self._begun, self._begun_at, self._images, self._best = 0, 0, 0.0, 0, -math.inf

    def phase(self, number: int, done_epochs: int, what: str) -> None:
        """Begins a phase; on a terminal a live line.

        Args:
            number: from 0.
            done_epochs: of it, where the run is resumed.
            what: trains, in words.
        """
        self._phase, self._begun, self._begun_at = number, done_epochs, time.perf_counter()
        self._images, self._best = 0, -math.inf
        if self._mode == "json":
            print_event("phase", phase=number, done_epochs=done_epochs, **vars(self._phases[number]), text=what)
        else:
            self._console.print(f"{self._place(done_epochs)}: {what}")
        if self._on_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def step(self, epoch: int, step: int, loss: float, images: int, wait_seconds: float) -> None:
        """Shows a step of the phase, when it's time for a line.

        Args:
            epoch: of the phase, from 0.
            step: done of the epoch.
            images: of the global batch.
            wait_seconds: that this rank waited for the batch.
        """
        self._meter.add(images, wait_seconds)
        self._images += images
        interval = _LIVE_LINE_SECONDS if self._on_terminal else _PLAIN_LINE_SECONDS
        if time.perf_counter() - self._last_shown < interval:
            return
        self._last_shown = time.perf_counter()
        steps = self._meter.steps
        rates = self._meter.read()
        recent = rates["seconds"] / steps
        self._step_seconds = 0.8 * self._step_seconds + 0.2 * recent if self._step_seconds else recent
        stretch = self._phases[self._phase]
        done = epoch * stretch.steps_per_epoch + step
        left_seconds = self._step_seconds * (sum(one.steps for one in self._phases[self._phase :]) - done)
        if self._mode == "json":
            place = {"phase": self._phase, "epoch": epoch, "step": step, "loss": loss}
            print_event("step", **place, **rates, seconds_left=left_seconds)
            return
        where = f"{self._place(epoch)} step {step}/{stretch.steps_per_epoch}"
        line = (
            f"loss {loss:.4f}  {rates['images_per_second']:,.0f} images/s  "
            f"waiting for data {rates['wait_share']:.0%}  {clock(left_seconds)} left"
        )
        if self._live is not None:
            self._draw(where, done / stretch.steps, line)
        else:
            self._console.print(f"{where}  {line}")

    def doing(self, epoch: int, what: str) -> None:
        """Shows on a terminal what is done between steps, such as "validating 600 chips"."""
        if self._live is not None:
            self._draw(self._place(epoch), (epoch + 1) / self._phases[self._phase].epochs, what)

    def epoch(self, epoch: int, figures: Mapping[str, float], *, best: bool) -> None:
        """Shows an epoch's validation.

        Args:
            figures: by name.
            best: whether the model is kept for it.
        """
        self._best = max(self._best, figures.get("f2", -math.inf))
        if self._mode == "json":
            print_event("epoch", phase=self._phase, epoch=epoch, **figures, best=best)
        else:
            words = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
            self.note(f"{self._place(epoch)}  validation: {words}{'  (best so far)' if best else ''}")
        self._meter.read()

    def end_phase(self) -> None:
        """Puts a line that stays in the place of the phase's live one."""
        self.close()
        seconds = time.perf_counter() - self._begun_at
        epochs = self._phases[self._phase].epochs - self._begun
        best = self._best if math.isfinite(self._best) else None
        if self._mode == "json":
            print_event("phase_end", phase=self._phase, epochs=epochs, seconds=seconds, images=self._images, f2=best)
            return
        phases = len(self._phases)
        number = f"phase {self._phase + 1}/{phases} " if phases > 1 else ""
        f2 = "" if best is None else f", best f2 {best:.4f}"
        rate = f"{self._images / max(seconds, 1e-9):,.0f} images/s with validation"
        self._console.print(f"{number}done: {epochs} epoch(s) in {clock(seconds)}{f2}, {rate}")

    def note(self, line: str) -> None:
        """Prints a line that stays."""
        if self._mode == "json":
            print_event("note", text=line)
        else:
            self._console.print(line)
        self._meter.read()  # what came before the note is not the rate of the steps after it

    def warn(self, line: str) -> None:
        """Prints a warning, in every mode: on stderr, above the live line."""
        if self._live is not None:
            self._console.print(f"warning: {line}")
        elif self._warns:
            click.echo(f"warning: {line}", err=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _place(self, epoch: int) -> str:
        phases = len(self._phases)
        before = f"phase {self._phase + 1}/{phases} " if phases > 1 else ""
        return f"{before}epoch {epoch + 1}/{self._phases[self._phase].epochs}"

    def _draw(self, where: str, share: float, line: str) -> None:
        assert self._live is not None
        place, rest = Text(where, style="bold"), Text(f"  {line}")
        if self._console.width < _LEAST_COLUMNS_WITH_BAR:
            self._live.update(Text("", no_wrap=True, overflow="ellipsis").append(place).append(rest), refresh=True)
            return
        grid = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(3):
            grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row(
            place,
            ProgressBar(total=1.0, completed=share, width=_BAR_COLUMNS, complete_style="blue", finished_style="blue"),
            Text(line),
        )
        self._live.update(grid, refresh=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def clock(seconds: float) -> str:
    """Seconds as a clock shows them: 1:01, 1:01:01."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
