"""A real run without a network, killed and resumed: what W&B's own client then makes of it, and of metrics.jsonl."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from planet_dist.runfolder import RunFolder
from planet_dist.tracking_dashboard import Dashboard
from planet_dist.tracking_files import read_records
from planet_dist.tracking_names import AXIS, definitions
from planet_dist.tracking_starts import Start, read_starts
from planet_dist.tracking_sync import rebuild_run, send_folder, send_run
from shards.reader import Dataset
from tests.conftest import launch
from tests.wandb_server import Service, serving

STEPS, EPOCH, KILLED = 66, 22, 31
WORDS = [
    "data.split=tail:32",
    "model.width=8",
    "runtime.figures=false",
    "phases.0.epochs=3",
    "phases.0.batch_size=4",
    "evaluate.batch_size=16",
    "runtime.checkpoint_steps=20",
    "runtime.log_every_steps=1",
    "tracking.project=chips",
]


@dataclass(frozen=True)
class Watched:
    """A run that was killed in its second epoch and resumed, and what a service has of it.

    Attributes:
        service: was sent the run twice: after the kill and after the end.
        sent_early: the steps that it had after the kill.
    """

    run: Path
    starts: list[Start]
    service: Service
    sent_early: list[int]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """Nobody is logged in, and nothing that W&B keeps lands in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_") or name.lower().endswith("_proxy")]:
            patch.delenv(name)
        home = tmp_path_factory.mktemp("home")
        for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(home))
        patch.setenv("NETRC", str(home / "netrc"))
        yield patch


@pytest.fixture(scope="module")
def watched(
    dataset: Dataset, environment: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    run = tmp_path_factory.mktemp("runs") / "watched"
    words = ["--recipe", "small-resnet-32", "--data", str(dataset.root), "--out", str(run), "--resume", "auto", *WORDS]
    with serving() as service:
        killed = launch("tests/ranks_killed.py", str(KILLED), *words, ranks=1, timeout_seconds=400)
        assert killed.returncode != 0 and len(steps_of(run)) == KILLED, killed.stderr
        key = {"WANDB_BASE_URL": service.address, "WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in key.items():
                patch.setenv(name, value)
            run_id = send_run(run, send_folder)
            assert run_id is not None
            sent_early = [row["_step"] for _, row in sorted(service.rows[run_id].items())]
        done = launch("planet_dist/train.py", *words, ranks=1, timeout_seconds=400)
        assert done.returncode == 0, done.stderr
        with pytest.MonkeyPatch.context() as patch:
            for name, value in key.items():
                patch.setenv(name, value)
            assert send_run(run, send_folder) == run_id
        yield Watched(run, read_starts(RunFolder(run)), service, sent_early)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps_of(run: Path) -> list[int]:
    return [line["step"] for line in lines(run) if line["kind"] == "train"]


def values(record: Any) -> dict[str, Any]:
    """A history or summary record's values by their first name; nested ones as dictionaries."""
    found: dict[str, Any] = {}
    for item in record.item if hasattr(record, "item") else record.update:
        *path, last = tuple(item.nested_key) or (item.key,)
        place = found
        for name in path:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return found


def logged_keys(records: list[Any]) -> set[str]:
    """Every key that a file has a value for, best-ofs under their own names too."""
    keys: set[str] = set()
    for record in records:
        for kind in ("history", "summary"):
            if record.HasField(kind):
                found = values(getattr(record, kind))
                keys |= set(found)
                keys |= {f"{key}.{inner}" for key, value in found.items() if isinstance(value, dict) for inner in value}
    return keys


def documented(dataset: Dataset) -> list[Any]:
    manifest = dataset.manifest
    return [m for m in definitions(manifest.labels, [group.name for group in manifest.exclusive]) if not m.only]


def test_an_offline_run_has_every_documented_key_with_its_axis_and_summary(watched: Watched, dataset: Dataset) -> None:
    records = watched.starts[-1].records
    wanted = documented(dataset)
    assert {metric.key for metric in wanted} - logged_keys(records) == set()
    defined = {record.metric.name: record.metric for record in records if record.HasField("metric")}
    for metric in wanted:
        if metric.key == AXIS or metric.logged == "end":
            continue
        assert defined[metric.key].step_metric == AXIS, metric.key
        asked = [how for how in ("min", "max", "mean") if getattr(defined[metric.key].summary, how)]
        assert asked == ([] if metric.summary == "last" else [metric.summary]), metric.key
    rows = [values(record.history) for record in records if record.HasField("history")]
    assert all(row[AXIS] == row["_step"] for row in rows)


def test_what_is_logged_is_documented(watched: Watched, dataset: Dataset) -> None:
    keys = {key for key in logged_keys(watched.starts[-1].records) if not key.startswith("_") and "." not in key}
    assert keys - {metric.key for metric in documented(dataset)} == set()


def test_a_killed_and_resumed_run_arrives_as_one_run_with_every_step_once(watched: Watched) -> None:
    assert len(watched.starts) == 2
    assert len({start.run_id for start in watched.starts}) == 1
    (run_id,) = watched.service.runs
    rows = [row for _, row in sorted(watched.service.rows[run_id].items())]
    assert [row["_step"] for row in rows] == list(range(1, STEPS + 1))
    assert watched.sent_early == list(range(1, KILLED + 1))
    runtimes = [row["_runtime"] for row in rows]
    assert runtimes == sorted(runtimes)


def test_what_arrives_are_the_numbers_of_metrics_jsonl(watched: Watched) -> None:
    rows = {row["_step"]: row for row in watched.service.rows[watched.starts[0].run_id].values()}
    for line in lines(watched.run):
        row = rows[line["step"]]
        if line["kind"] == "train":
            assert [row[f"train/{name}"] for name in ("loss", "grad_norm", "learning_rate")] == [
                line[name] for name in ("loss", "grad_norm", "learning_rate")
            ]
        elif line["kind"] == "epoch":
            assert (row["val/f2"], row["val/loss"], row["val/f2_at_0_2"]) == (
                line["f2"],
                line["loss"],
                line["f2_at_0.2"],
            )
        else:
            assert row["label/road/f2"] == line["labels"]["road"]["f2"]
            assert row["val/f2_exact"] == line["rules"]["exact"]


def test_the_summary_is_that_of_all_starts(watched: Watched) -> None:
    summary = watched.service.summaries[watched.starts[0].run_id]
    epochs = [line for line in lines(watched.run) if line["kind"] == "epoch"]
    assert len(epochs) == 3
    assert summary["val/f2"] == {"max": max(line["f2"] for line in epochs)}
    assert summary["val/loss"] == {"min": min(line["loss"] for line in epochs)}
    scores = json.loads((watched.run / "evaluation" / "metrics.json").read_text())
    assert (summary["val/cross_fitted_f2"], summary["val/rule"]) == (scores["f2"], scores["chosen"])


def test_tables_pictures_and_artifacts_arrive_once(watched: Watched) -> None:
    service = watched.service
    tables = [name for name in service.files if name.startswith("media/table/")]
    assert sorted(tables) == sorted(set(tables))
    assert len([name for name in tables if name.startswith("media/table/mistakes/worst")]) == 3
    assert service.artifacts.count(f"bundle-{watched.starts[0].run_id}") == 1
    rows = service.rows[watched.starts[0].run_id]
    assert all("mistakes/worst" in row for row in rows.values() if row["_step"] % EPOCH == 0)


def test_the_worst_chips_are_shown_with_their_pictures_which_lie_in_the_runs_folder(watched: Watched) -> None:
    artifacts = [record.artifact for record in watched.starts[-1].records if record.HasField("artifact")]
    last = [artifact for artifact in artifacts if "mistakesworst" in artifact.name][-1]
    entries = {entry.path: Path(entry.local_path) for entry in last.manifest.contents}
    assert all(watched.run.resolve() in path.parents for path in entries.values())
    shown = json.loads(entries["mistakes/worst.table.json"].read_text())
    assert shown["columns"] == ["picture", "chip", "f2", "truth", "missed", "added"]
    detail = [line for line in lines(watched.run) if line["kind"] == "detail"][-1]
    assert [row[1] for row in shown["data"]] == [one["key"] for one in detail["mistakes"]]
    for picture, *_ in shown["data"]:
        with Image.open(entries[picture["path"]]) as image:
            assert image.size == (32, 32)


def test_the_dataset_is_named_by_its_digest_and_nothing_of_it_is_sent(watched: Watched, dataset: Dataset) -> None:
    artifacts = [record.artifact for record in watched.starts[0].records if record.HasField("artifact")]
    (one,) = (artifact for artifact in artifacts if artifact.type == "dataset")
    (entry,) = one.manifest.contents
    assert entry.ref.endswith(f"manifest.json#sha256={dataset.digest}") and not entry.local_path
    assert json.loads(one.metadata)["digest"] == dataset.digest


def test_a_second_sync_has_nothing_to_send(watched: Watched) -> None:
    def refused(folder: Path) -> None:
        raise AssertionError(folder)

    assert send_run(watched.run, refused) is None


def test_metrics_jsonl_alone_rebuilds_the_run_under_another_id(watched: Watched, dataset: Dataset) -> None:
    kept: list[list[Any]] = []
    run_id = rebuild_run(watched.run, lambda folder: kept.append(list(read_records(*folder.glob("*.wandb")))))
    assert run_id != watched.starts[0].run_id
    (records,) = kept
    assert {metric.key for metric in documented(dataset)} - logged_keys(records) == set()
    rows = {record.history.step.num: values(record.history) for record in records if record.HasField("history")}
    sent = {row["_step"]: row for row in watched.service.rows[watched.starts[0].run_id].values()}
    assert list(rows) == list(range(1, STEPS + 1))
    for step, row in rows.items():
        for key, value in row.items():
            # A step that was sent before it was undone keeps the time that it took then.
            if not key.startswith(("_", "time/")) and not isinstance(value, dict):
                assert value == sent[step][key], (step, key)


def test_every_panel_shows_a_key_that_is_logged(watched: Watched, dataset: Dataset) -> None:
    definition = Dashboard("team", "chips", dataset.manifest.vocabulary).definition()
    logged = logged_keys(watched.starts[-1].records)
    optional = {metric.key for metric in definitions(dataset.manifest.labels, ["weather"]) if metric.only}
    shown = shown_keys(definition)
    assert len(shown) > 80
    assert shown - logged - optional == set()
    config = [values(record.config) for record in watched.starts[-1].records if record.HasField("config")]
    settings: dict[str, Any] = {key: value for one in config for key, value in one.items()}
    for path in re.findall(r'"config:([^"]+)"', json.dumps(definition)):
        place: Any = settings
        for name in path.replace(".value", "").split("."):
            place = place[name]
        assert isinstance(place, int | float), path


def shown_keys(value: Any) -> set[str]:
    """The keys of all panels of a definition, wherever they stand in it."""
    if isinstance(value, list):
        return {key for inner in value for key in shown_keys(inner)}
    if not isinstance(value, dict):
        return set()
    found = set(value.get("metrics", [])) | {value[name] for name in ("xAxis", "targetKey") if name in value}
    if isinstance(value.get("accessor"), str) and value["accessor"].startswith("summary:"):
        found.add(value["accessor"].removeprefix("summary:"))
    if value.get("name") == "pick":
        found.add(value["inputs"]["key"]["val"])
    return {key for key in found if key != "_step"}.union(*(shown_keys(inner) for inner in value.values()))
