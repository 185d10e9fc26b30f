"""What several starts of one run logged, as one run: every step once, in order, and the summary of all of them.

A start that was killed leaves steps in its W&B file that the next start, from the checkpoint before them, logs again;
and each start summarises its own steps alone. metrics.jsonl, which a resumed run cuts back to its checkpoint, says
which steps there are and gives their numbers. W&B's files add what only they have: tables and pictures, the machine's
load, what was printed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from planet_dist.tracking_files import new_record
from planet_dist.tracking_names import AXIS, numbers, times

Name = tuple[str, ...]
Row = dict[Name, str]

_RUNTIME, _STEP, _TIME = ("_runtime",), ("_step",), ("_timestamp",)
_AGGREGATES: dict[str, Callable[[list[float]], float]] = {"max": max, "min": min, "mean": fmean}
_MADE_ANEW = {"header", "run", "history", "summary", "exit", "final", "footer", "request"}


@dataclass(frozen=True)
class Truth:
    """What a run's own logs say.

    Attributes:
        rows: numbers of each step by key, from metrics.jsonl.
        times: likewise from timing.jsonl, where W&B's files have none.
        clock: seconds since 1970 of the steps that timing.jsonl has.
    """

    rows: Mapping[int, Mapping[str, float]]
    times: Mapping[int, Mapping[str, float]]
    clock: Mapping[int, float]


def merge(starts: Sequence[Sequence[Any]], truth: Truth, *, sent: Sequence[int], sent_step: int) -> list[Any]:
    """The records of all starts as those of one.

    Args:
        starts: wandb Records of each start, in order; each with its run record.
        truth: of the run.
        sent: how many records of each start are at W&B already.
        sent_step: the last step that is there; -1 for none.

    Returns:
        Records, in W&B's order: header, run, what else there is, rows by step, summary, and the exit of the last start
        where it has one.
    """
    rows = merged_rows(starts, truth)
    new_rows = {step: row for step, row in rows.items() if step > sent_step}
    header = next(record for record in starts[0] if record.HasField("header"))
    run = new_record(next(r for r in starts[0] if r.HasField("run")).SerializeToString())
    run.ClearField("control")
    kept = list(_others(starts, sent, {value for row in new_rows.values() for value in row.values()}))
    made = [_history(step, row) for step, row in new_rows.items()]
    exits = [record for record in starts[-1] if record.HasField("exit")]
    for record in exits:
        record.ClearField("control")
    return [header, run, *kept, *made, _summary(starts, rows), *exits]


def has_news(starts: Sequence[Sequence[Any]], truth: Truth, *, sent: Sequence[int], sent_step: int) -> bool:
    """Whether there is anything that is not at W&B."""
    return any(step > sent_step for step in truth.rows) or any(
        len(start) > count for start, count in zip(starts, sent, strict=True)
    )


def merged_rows(starts: Sequence[Sequence[Any]], truth: Truth) -> dict[int, Row]:
    """Each step's values as JSON by name, by step in ascending order; names as W&B nests them."""
    found: dict[int, Row] = {}
    earlier = 0.0  # seconds that the starts before this one ran
    for start in starts:
        last = earlier
        for record in start:
            step = int(record.history.step.num)
            if not record.HasField("history") or step not in truth.rows:
                continue
            row = {_name(item): item.value_json for item in record.history.item}
            if _RUNTIME in row:
                last = earlier + float(row[_RUNTIME])
                row[_RUNTIME] = json.dumps(last)
            found[step] = _without(found.get(step, {}), row) | row
        earlier = last
    before: Row = {_RUNTIME: "0"}
    rows = {}
    for step in sorted(truth.rows):
        own = dict(truth.times.get(step, {})) | dict(truth.rows[step])
        row = found.get(step, {})
        missing = {
            (key,): json.dumps(value) for key, value in own.items() if (key,) not in row or key in truth.rows[step]
        }
        row = row | missing | {_STEP: str(step)}
        if _TIME not in row and step in truth.clock:
            row[_TIME] = json.dumps(truth.clock[step])
        row = {name: before[name] for name in (_RUNTIME, _TIME) if name in before} | row
        rows[step] = before = row
    return rows


def _without(old: Row, new: Row) -> Row:
    """A row without the values that a newer one has, whatever is nested in them."""
    keys = {name[0] for name in new}
    return {name: value for name, value in old.items() if name[0] not in keys}


def _name(item: Any) -> Name:
    return tuple(item.nested_key) or (item.key,)


def _history(step: int, row: Row) -> Any:
    record = new_record()
    record.history.step.num = step
    for name, value in row.items():
        record.history.item.add(nested_key=name, value_json=value)
    return record


def _others(starts: Sequence[Sequence[Any]], sent: Sequence[int], values: set[str]) -> Iterator[Any]:
    """All records but those that are made anew: definitions and artifacts once, tables only where a row shows them."""
    seen: set[Any] = set()
    for start, count in zip(starts, sent, strict=True):
        for place, record in enumerate(start):
            kind = record.WhichOneof("record_type")
            if kind in _MADE_ANEW:
                continue
            if kind == "metric":
                same: Any = (kind, record.metric.name, record.metric.glob_name)
            elif kind == "artifact":
                artifact = record.artifact
                if artifact.type == "run_table" and not any(artifact.client_id in value for value in values):
                    continue
                same = (kind, artifact.type, artifact.name, artifact.digest)
            else:
                same = (kind, id(record))
            if same in seen or (place < count and kind not in ("config", "metric", "environment", "telemetry")):
                seen.add(same)
                continue
            seen.add(same)
            yield record


def _summary(starts: Sequence[Sequence[Any]], rows: Mapping[int, Row]) -> Any:
    """The summary of all rows, as the metrics' definitions ask, and what stands in the starts' summaries alone."""
    values: Row = {}
    for record in (one for start in starts for one in start if one.HasField("summary")):
        said = {_name(item): item.value_json for item in record.summary.update}
        values = _without(values, said) | said
    for row in rows.values():
        values = _without(values, row) | row
    for start in starts:
        for record in start:
            how = _aggregate(record.metric) if record.HasField("metric") else None
            name: Name = (record.metric.name,)
            found = [json.loads(row[name]) for row in rows.values() if name in row] if how else []
            if found:
                values[name] = json.dumps({how: _AGGREGATES[str(how)](found)})
    record = new_record()
    for name, value in values.items():
        record.summary.update.add(nested_key=name, value_json=value)
    return record


def _aggregate(metric: Any) -> str | None:
    return next((how for how in _AGGREGATES if getattr(metric.summary, how)), None)


def truth_of(metrics: Sequence[Mapping[str, Any]], timing: Sequence[Mapping[str, Any]]) -> Truth:
    """What the lines of metrics.jsonl and timing.jsonl say, step by step."""
    rows: dict[int, dict[str, float]] = {}
    for line in metrics:
        row = numbers(line)
        rows.setdefault(int(row[AXIS]), {}).update(row)
    lines = [line for line in timing if line.get("kind") == "train"]
    return Truth(
        rows,
        {int(line["step"]): times(line) for line in lines},
        {int(line["step"]): float(line["time"]) for line in lines},
    )
