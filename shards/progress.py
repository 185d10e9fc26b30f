"""How far a long command is: a live bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 5.0


class ProgressLine:
    """Shows a count, images/s and the time that is left, on stderr; a context manager.

    Args:
        what: the verb in front, such as "packing".
        console: where to write; stderr by default.
    """

    def __init__(self, what: str, console: Console | None = None) -> None:
        self._what = what
        self._console = console or Console(stderr=True)
        self._started = time.monotonic()
        self._last_line = self._started
        self._first_done: int | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> ProgressLine:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.add_task(self._what, total=None, rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Shows that `done` of `total` images are done."""
        now = time.monotonic()
        if self._first_done is None:  # what an earlier run had done says nothing about this one's rate
            self._first_done, self._started = done, now
        rate = (done - self._first_done) / max(now - self._started, 1e-9)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, rate=f"{rate:,.0f} images/s")
        elif now - self._last_line >= LINE_SECONDS or (done == total and done > self._first_done):
            self._last_line = now
            left = f", {(total - done) / rate:,.0f} s left" if rate and done < total else ""
            line = f"{self._what}: {done:,} of {total:,} images, {rate:,.0f} images/s{left}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
