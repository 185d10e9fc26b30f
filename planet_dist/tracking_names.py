"""The names under which a run's numbers stand at W&B, with what they mean: the only place that spells them.

Everything that is logged has an entry here: what is written (tracking), what the dashboard shows (tracking_dashboard)
and docs/tracking.md all take the names from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

AXIS = "train/step"
LABEL, GROUP = "{label}", "{group}"  # stand in keys for the names that come from the data

Summary = Literal["last", "max", "min", "mean"]
Kind = Literal["number", "table"]
Logged = Literal["step", "epoch", "end"]


@dataclass(frozen=True)
class Metric:
    """One key.

    Attributes:
        key: as W&B has it.
        meaning: one sentence for people.
        summary: which of its values stands for the run; "last" for tables.
        logged: at steps (every runtime.log_every_steps), at the end of each epoch, or once at the run's end, in the
            summary alone.
        kind: "number", or a W&B table.
        only: where it's not logged by every run.
    """

    key: str
    meaning: str
    summary: Summary = "last"
    logged: Logged = "step"
    kind: Kind = "number"
    only: str = ""


def _epoch(key: str, meaning: str, summary: Summary = "max") -> Metric:
    return Metric(key, meaning, summary, "epoch")


def _table(key: str, meaning: str) -> Metric:
    return Metric(key, meaning, "last", "epoch", "table")


METRICS = (
    Metric(AXIS, "optimizer steps done; the x axis of every other number"),
    Metric("train/phase", "the phase, counted from 0"),
    Metric("train/epoch", "the epoch of its phase, counted from 0"),
    Metric("train/loss", "mean loss over the step's global batch, without penalties"),
    Metric("train/learning_rate", "of the step"),
    Metric("train/grad_norm", "norm of the whole gradient before clipping"),
    Metric("time/images_per_second", "training chips a second over all processes, since the line before", "mean"),
    Metric("time/wait_share", "share of the time that the step waited for chips", "mean"),
    *(
        Metric(f"time/{part}_share", f"share of the time {spent}", "mean")
        for part, spent in {
            "decode": "that decoding took",
            "copy": "that copies to the device took",
            "compute": "that the device computed",
            "exchange": "that gradients were exchanged between processes",
        }.items()
    ),
    Metric("time/gpu_memory_gib", "most memory that tensors took on rank 0's GPU", "max", only="on a GPU"),
    Metric("time/seconds", "since the line before"),
    _epoch("val/f2", "sample-averaged F2 with the best single threshold for all labels"),
    _epoch("val/f2_at_0_5", "sample-averaged F2 with 0.5 for every label"),
    _epoch("val/f2_at_0_2", "sample-averaged F2 with 0.2 for every label"),
    _epoch("val/f2_constant", "sample-averaged F2 of the best constant answer, which looks at no chip"),
    _epoch("val/f2_grid_independent", "sample-averaged F2, each label's threshold the best for its own F2"),
    _epoch("val/f2_grid_joint", "sample-averaged F2, thresholds of a grid fitted to it label after label"),
    _epoch("val/f2_exact", "as val/f2_grid_joint, with every threshold that tells two chips apart"),
    _epoch("val/accuracy", "share of right label decisions at 0.5"),
    _epoch("val/loss", "mean binary cross-entropy in nats", "min"),
    _epoch("val/calibration_error", "mean distance of probability and share of true labels, over 15 bins", "min"),
    _epoch(f"label/{LABEL}/f2", "of the label alone, at its own threshold"),
    _epoch(f"label/{LABEL}/precision", "likewise", "last"),
    _epoch(f"label/{LABEL}/recall", "likewise", "last"),
    _epoch(f"label/{LABEL}/threshold", "the step of a grid of 100 with the label's best F2", "last"),
    _table("calibration/reliability", "label decisions by probability: how many, and how many of them are true"),
    _table(f"confusion/{GROUP}", "chips that bear one label of an exclusive group, by it and the most probable one"),
    _table("cooccurrence/labels", "chips that bear two labels, and chips that are given both"),
    _table("mistakes/worst", "the chips of lowest F2, with picture, missed and added labels"),
    Metric("val/cross_fitted_f2", "F2 of the deployed rule on chips that it was not fitted on", "last", "end"),
    Metric("val/rule", "the deployed rule (text)", "last", "end"),
)

# What a person may find beside these under time/ is whatever timing.jsonl holds for the step.
TIMES = "time/*"
_FIGURES = {"f2_at_0.5": "f2_at_0_5", "f2_at_0.2": "f2_at_0_2"}
_SAID_BY_THE_EPOCH = {"best-single", "flat-0.5", "flat-0.2"}
_NO_FIGURES = {"kind", "phase", "epoch", "step", "time"}


def key_part(name: str) -> str:
    """A name as it may stand in a key: ASCII letters, digits and underscores.

    W&B takes a dot for a path into a value and a slash for a group, and its queries refuse most other characters.
    """
    return re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_") or "unnamed"


def key_parts(names: Sequence[str]) -> dict[str, str]:
    """A key part for each of several names, no two alike: a name that needs no change keeps its own."""
    parts = {name: name for name in names if key_part(name) == name}
    for place, name in enumerate(names):
        if name not in parts:
            part = key_part(name)
            parts[name] = part if part not in parts.values() else f"{part}_{place}"
            while list(parts.values()).count(parts[name]) > 1:
                parts[name] += "_"
    return {name: parts[name] for name in names}


def definitions(labels: Sequence[str], groups: Sequence[str]) -> list[Metric]:
    """Every key of a run whose dataset has these labels and exclusive groups."""
    named = {LABEL: key_parts(labels).values(), GROUP: key_parts(groups).values()}
    found = []
    for metric in METRICS:
        mark = next((mark for mark in named if mark in metric.key), None)
        if mark is None:
            found.append(metric)
        else:
            found += [replace(metric, key=metric.key.replace(mark, part)) for part in named[mark]]
    return found


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """What a line of metrics.jsonl gives, by key."""
    if record["kind"] == "train":
        return _place(record) | {f"train/{name}": value for name, value in _figures(record).items()}
    if record["kind"] == "epoch":
        return _place(record) | {f"val/{_FIGURES.get(name, name)}": value for name, value in _figures(record).items()}
    assert record["kind"] == "detail", record["kind"]
    parts = key_parts(record["cooccurrence"]["labels"])
    rules = {rule: value for rule, value in record["rules"].items() if rule not in _SAID_BY_THE_EPOCH}
    found = {f"val/f2_{key_part(rule)}": value for rule, value in rules.items()}
    found["val/calibration_error"] = record["calibration"]["error"]
    for label, figures in record["labels"].items():
        found |= {f"label/{parts[label]}/{name}": value for name, value in figures.items()}
    return _place(record) | found


def times(record: Mapping[str, Any]) -> dict[str, float]:
    """What a line of timing.jsonl gives of a training step, by key."""
    return _place(record) | {f"time/{name}": value for name, value in _figures(record).items()}


def results(scores: Mapping[str, Any]) -> dict[str, Any]:
    """What evaluation/metrics.json gives of a finished run, by key."""
    return {"val/cross_fitted_f2": scores["f2"], "val/rule": scores["chosen"]}


def _place(record: Mapping[str, Any]) -> dict[str, float]:
    return {AXIS: record["step"], "train/phase": record["phase"], "train/epoch": record["epoch"]}


def _figures(record: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in record.items()
        if name not in _NO_FIGURES and isinstance(value, int | float) and not isinstance(value, bool)
    }


def as_markdown() -> str:
    """The table of docs/tracking.md."""
    lines = ["| key | meaning | logged | x axis | summary |", "|---|---|---|---|---|"]
    for metric in METRICS:
        key = metric.key.replace(LABEL, "LABEL").replace(GROUP, "GROUP")
        axis = "" if metric.logged == "end" or metric.key == AXIS else f"`{AXIS}`"
        kind = " (table)" if metric.kind == "table" else f" ({metric.only})" if metric.only else ""
        logged = {"step": "step", "epoch": "epoch", "end": "end of the run"}[metric.logged]
        lines.append(f"| `{key}` | {metric.meaning}{kind} | {logged} | {axis} | {metric.summary} |")
    return "\n".join(lines) + "\n"
