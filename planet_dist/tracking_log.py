"""The lines of a run's own logs as rows at W&B: one row a step, sent whole.

W&B closes a step when a later one is logged, and what a killed process had not closed is lost. So all that belongs to
a step is gathered first, and sent as one closed row: when the next step comes, or before a checkpoint is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from planet_dist.tracking_names import AXIS, TIMES, definitions, numbers, times
from planet_dist.tracking_tables import Picture, wandb_tables

Send = Callable[[dict[str, Any], int], None]


def define(run: Any, labels: Sequence[str], groups: Sequence[str]) -> None:
    """Tells a W&B run the axis and the summary of every key.

    Args:
        run: as from wandb.init.
    """
    run.define_metric(AXIS, hidden=True)
    run.define_metric(TIMES, step_metric=AXIS)
    for metric in definitions(labels, groups):
        if metric.logged != "end" and metric.key != AXIS:
            summary = None if metric.summary == "last" else metric.summary
            run.define_metric(metric.key, step_metric=AXIS, summary=summary)


class RunLog:
    """Gathers a run's lines into rows.

    Args:
        send: takes a row and its step, and closes it.
        picture: gives a chip by its id, for the tables; None for none.
    """

    def __init__(self, send: Send, picture: Picture | None) -> None:
        self._send, self._picture = send, picture
        self._row: dict[str, Any] = {}

    def record(self, line: Mapping[str, Any]) -> None:
        """Takes a line of metrics.jsonl."""
        self._add(numbers(line))
        if line["kind"] == "detail":
            self._row |= wandb_tables(line, self._picture)

    def time(self, line: Mapping[str, Any]) -> None:
        """Takes a line of timing.jsonl that is about a training step."""
        self._add(times(line))

    def commit(self) -> None:
        """Sends what is gathered."""
        if self._row:
            self._send(self._row, int(self._row[AXIS]))
            self._row = {}

    def _add(self, row: dict[str, Any]) -> None:
        if self._row and self._row[AXIS] != row[AXIS]:
            self.commit()
        self._row |= row
