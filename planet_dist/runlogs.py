"""What a run has written down so far, whether it goes on, ended or was cut off in the middle of a line."""

from __future__ import annotations

import json
import statistics
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planet_dist.config import Config, parse_config
from planet_dist.runfolder import RunFolder
from shards.errors import RunError

Record = dict[str, Any]


@dataclass(frozen=True)
class RunLogs:
    """A run's own words.

    Attributes:
        folder: its paths.
        config: as it was resolved.
        start: of the newest start: its number, and how and on what it runs (provenance.describe_start).
        epochs: one record an epoch, in order: phase, epoch, f2, loss and more.
        steps: one record a logged step: phase, epoch, step, loss and more.
        timings: one record a logged step: images_per_second, seconds, shares of time and more.
        scores: evaluation/metrics.json, or None before the end.
    """

    folder: RunFolder
    config: Config
    start: Record
    epochs: list[Record]
    steps: list[Record]
    timings: list[Record]
    scores: Record | None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.root.resolve().name

    @property
    def total_epochs(self) -> int:
        """The epochs of all phases."""
        return sum(phase.epochs for phase in self.config.phases)

    def images_per_second(self) -> float | None:
        """The median over logged steps: validation and checkpoints fall into few of their intervals."""
        rates = [record["images_per_second"] for record in self.timings if "images_per_second" in record]
        return float(statistics.median(rates)) if rates else None

    def best_epoch(self) -> Record | None:
        """The epoch whose checkpoint is kept."""
        marked = [record for record in self.epochs if record.get("best")]
        return marked[-1] if marked else None

    def time_shares(self) -> dict[str, float]:
        """By name without "_share", the share of time that each part of the work took, weighted by time."""
        names = {name for record in self.timings for name in record if name.endswith("_share")}
        found = {}
        for name in sorted(names):
            pairs = [(r["seconds"], r[name]) for r in self.timings if r.get(name) is not None and "seconds" in r]
            seconds = sum(second for second, _ in pairs)
            if seconds:
                found[name.removesuffix("_share")] = sum(second * share for second, share in pairs) / seconds
        return found


def read_logs(root: Path) -> RunLogs:
    """Reads a run, finished or not.

    Raises:
        RunError: no run is there, or a file of it cannot be read.
    """
    folder = RunFolder(root)
    if not folder.config.is_file():
        raise RunError(f"{root}: not a run (it has no config.toml); give the --out of a training")
    metrics = read_records(folder.metrics)
    try:
        return RunLogs(
            folder,
            parse_config(tomllib.loads(folder.config.read_text()), str(folder.config)),
            json.loads(folder.start.read_text()) if folder.start.exists() else {},
            [record for record in metrics if record["kind"] == "epoch"],
            [record for record in metrics if record["kind"] == "train"],
            [record for record in read_records(folder.timing) if record["kind"] == "train"],
            read_scores(folder),
        )
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{root}: a file of the run cannot be read ({error!r}); restore it or train again") from error


def read_records(path: Path) -> list[Record]:
    """The lines of a log; a last one that is torn, or still being written, is left out.

    Raises:
        RunError: another line is not a JSON object; it's named.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error}); restore it") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record["kind"]
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path}:{number}: not a line of a run's log ({error!r}); restore the file") from error
        records.append(record)
    return records


def read_scores(folder: RunFolder) -> Record | None:
    """evaluation/metrics.json, or None where there is none yet.

    Raises:
        RunError: it isn't what evaluation writes.
    """
    path = folder.evaluation / "metrics.json"
    try:
        scores = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); restore it or train again") from error
    missing = [key for key in ("rules", "labels", "chosen", "f2") if not isinstance(scores, dict) or key not in scores]
    if missing:
        raise RunError(f"{path}: lacks {', '.join(missing)}; restore it or train again")
    return dict(scores)
