"""Several starts as one run: undone steps once, lost ones filled, and the summary of all."""

from __future__ import annotations

import json
from typing import Any

from planet_dist.tracking_files import new_record
from planet_dist.tracking_merge import Truth, has_news, merge, merged_rows, truth_of


def row(step: int, runtime: float = 1.0, **values: float) -> Any:
    record = new_record()
    record.history.step.num = step
    for name, value in {"_step": step, "_runtime": runtime, "_timestamp": 1e9 + step, **values}.items():
        record.history.item.add(nested_key=[name.replace("__", "/")], value_json=json.dumps(value))
    return record


def table(step: int, name: str) -> list[Any]:
    """A row that shows a table, and the artifact that holds it."""
    artifact, shown = new_record(), row(step)
    artifact.artifact.type, artifact.artifact.name, artifact.artifact.client_id = "run_table", "run-1-worst", name
    shown.history.item.add(nested_key=["worst", "path"], value_json=json.dumps(f"wandb-client-artifact://{name}"))
    return [artifact, shown]


def begun(*records: Any) -> list[Any]:
    """A start's records: header and run, a metric's definition, and more."""
    header, run, metric, summary = (new_record() for _ in range(4))
    header.header.version_info.producer = "made"
    run.run.run_id = "1"
    metric.metric.name, metric.metric.summary.max = "val/f2", True
    summary.summary.update.add(nested_key=["val/f2"], value_json='{"max": 0.1}')
    return [header, run, metric, *records, summary]


def truth(*steps: int, **numbers: float) -> Truth:
    return Truth({step: {"train/step": float(step), **numbers} for step in steps}, {}, {})


def steps(records: list[Any]) -> list[int]:
    return [record.history.step.num for record in records if record.HasField("history")]


def kinds(records: list[Any]) -> list[str]:
    return [str(record.WhichOneof("record_type")) for record in records]


def told(record: Any, *name: str) -> Any:
    items = record.history.item if record.HasField("history") else record.summary.update
    return next((json.loads(item.value_json) for item in items if tuple(item.nested_key) == name), None)


def test_steps_that_a_killed_start_logged_beyond_its_checkpoint_come_once_as_they_were_logged_last() -> None:
    killed = begun(*(row(step, time__seconds=1.0) for step in (1, 2, 3, 4)))
    resumed = begun(*(row(step, time__seconds=2.0) for step in (3, 4, 5)))
    merged = merge([killed, resumed], truth(1, 2, 3, 4, 5), sent=[0, 0], sent_step=-1)
    assert steps(merged) == [1, 2, 3, 4, 5]
    rows = [record for record in merged if record.HasField("history")]
    assert [told(record, "time/seconds") for record in rows] == [1.0, 1.0, 2.0, 2.0, 2.0]
    assert kinds(merged)[:2] == ["header", "run"] and kinds(merged).count("run") == 1
    assert kinds(merged).count("metric") == 1


def test_steps_that_were_undone_and_are_not_in_the_log_are_left_out() -> None:
    killed = begun(row(1), row(2), row(3))
    assert steps(merge([killed], truth(1, 2), sent=[0], sent_step=-1)) == [1, 2]


def test_steps_that_wandb_lost_come_from_the_log() -> None:
    logged = Truth({1: {"train/loss": 3.0}, 2: {"train/loss": 2.0}}, {2: {"time/seconds": 9.0}}, {2: 1e9 + 7})
    rows = merged_rows([begun(row(1, runtime=4.0))], logged)
    assert list(rows) == [1, 2]
    assert {"".join(name): json.loads(value) for name, value in rows[2].items()} == {
        "_step": 2,
        "_runtime": 4.0,
        "_timestamp": 1e9 + 7,
        "train/loss": 2.0,
        "time/seconds": 9.0,
    }


def test_the_numbers_of_the_log_stand_above_those_of_wandb() -> None:
    (only,) = merged_rows([begun(row(1, train__loss=1.0))], truth(1, **{"train/loss": 2.0})).values()
    assert only[("train/loss",)] == "2.0"


def test_the_time_that_a_run_took_goes_on_over_its_starts() -> None:
    rows = merged_rows([begun(row(1, 5.0), row(2, 6.0)), begun(row(2, 1.0), row(3, 2.0))], truth(1, 2, 3))
    assert [json.loads(one[("_runtime",)]) for one in rows.values()] == [5.0, 7.0, 8.0]


def test_best_of_summaries_are_those_of_all_starts() -> None:
    first, second = begun(row(1, val__f2=0.9)), begun(row(2, val__f2=0.5))
    merged = merge([first, second], truth(1, 2), sent=[0, 0], sent_step=-1)
    (summary,) = (record for record in merged if record.HasField("summary"))
    assert told(summary, "val/f2") == {"max": 0.9}
    assert told(summary, "_step") == 2


def test_tables_that_no_row_shows_any_more_are_left_out() -> None:
    starts = [begun(*table(2, "undone")), begun(*table(2, "kept"))]
    merged = merge(starts, truth(1, 2), sent=[0, 0], sent_step=-1)
    assert [record.artifact.client_id for record in merged if record.HasField("artifact")] == ["kept"]
    (shown,) = (record for record in merged if record.HasField("history") and record.history.step.num == 2)
    assert told(shown, "worst", "path") == "wandb-client-artifact://kept"


def test_only_what_is_new_is_sent_again() -> None:
    first = begun(row(1), row(2))
    assert has_news([first], truth(1, 2), sent=[0], sent_step=-1)
    assert not has_news([first], truth(1, 2), sent=[len(first)], sent_step=2)
    printed = new_record()
    printed.output_raw.line = "and on"
    later = begun(printed, row(2), row(3))
    assert has_news([first, later], truth(1, 2, 3), sent=[len(first), 0], sent_step=2)
    merged = merge([first, later], truth(1, 2, 3), sent=[len(first), 0], sent_step=2)
    assert steps(merged) == [3]
    assert kinds(merged).count("output_raw") == 1
    (summary,) = (record for record in merged if record.HasField("summary"))
    assert told(summary, "_step") == 3


def test_a_log_that_a_killed_run_left_gives_each_step_its_numbers() -> None:
    place = {"phase": 0, "epoch": 0}
    metrics = [
        {"kind": "train", **place, "step": 1, "loss": 0.5},
        {"kind": "train", **place, "step": 2, "loss": 0.4},
        {"kind": "epoch", **place, "step": 2, "f2": 0.7, "best": True},
    ]
    timing = [{"kind": "train", **place, "step": 2, "seconds": seconds, "time": 1e9} for seconds in (1.0, 3.0)]
    found = truth_of(metrics, [*timing, {"kind": "save", "step": 2}])
    assert list(found.rows) == [1, 2]
    assert found.rows[2].items() >= {"train/loss": 0.4, "val/f2": 0.7}.items()
    assert found.times[2]["time/seconds"] == 3.0, "the start that went on is the one that counts"
