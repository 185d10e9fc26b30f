"""The starts of a run as W&B's client logged them under RUN/wandb, and what of them has been sent.

RUN/wandb/offline-run-DATE-ID/    what a start logged; run-DATE-ID where it was online
RUN/wandb/sent.json               what of it is at W&B
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planet_dist.runfolder import RunFolder
from planet_dist.tracking_files import read_records
from shards.errors import RunError
from shards.schema import write_whole

_START = re.compile(r"(offline-)?run-(\d{8}_\d{6})-(.+)")


@dataclass(frozen=True)
class Start:
    """What one start of a run logged.

    Attributes:
        folder: W&B's, of this start.
        run_id: at W&B.
        offline: whether it was logged offline.
        records: wandb Records.
    """

    folder: Path
    run_id: str
    offline: bool
    records: list[Any]

    def steps(self) -> set[int]:
        """The steps that have a row."""
        return {int(record.history.step.num) for record in self.records if record.HasField("history")}


@dataclass(frozen=True)
class Sent:
    """What is at W&B.

    Attributes:
        step: the last one.
        records: of each start, by the name of its folder.
        whole: whether the sending came to its end.
    """

    step: int = -1
    records: Mapping[str, int] = field(default_factory=dict)
    whole: bool = True

    def count(self, start: Start) -> int:
        """How many of a start's records are there; those that were logged online are."""
        return self.records.get(start.folder.name, 0) if start.offline else len(start.records)


def read_starts(run: RunFolder) -> list[Start]:
    """What the starts of a run logged, in order.

    Raises:
        RunError: there is nothing, a file is damaged, or the files are those of several runs.
    """
    folders = [path for path in (run.root / "wandb").glob("*run-*") if path.is_dir() and _START.fullmatch(path.name)]
    starts = []
    for folder in sorted(folders, key=lambda path: _match(path)[2]):
        offline, _, run_id = _match(folder).groups()
        file = folder / f"run-{run_id}.wandb"
        records = list(read_records(file)) if file.exists() else []
        if any(record.HasField("run") for record in records):  # or it was killed before it had begun
            starts.append(Start(folder, run_id, offline is not None, records))
    if not starts:
        raise RunError(
            f"{run.root / 'wandb'}: nothing was logged there; planet-dist sync --rebuild makes a W&B run of "
            f"{run.metrics.name}"
        )
    ids = sorted({start.run_id for start in starts})
    if len(ids) > 1:
        raise RunError(
            f"{run.root / 'wandb'}: holds several runs ({', '.join(ids)}); send one folder with wandb sync, or give "
            "--rebuild"
        )
    return starts


def _match(folder: Path) -> re.Match[str]:
    found = _START.fullmatch(folder.name)
    assert found is not None
    return found


def _sent_file(run: RunFolder) -> Path:
    return run.root / "wandb" / "sent.json"


def read_sent(run: RunFolder) -> Sent:
    """What is at W&B.

    Raises:
        RunError: an earlier sending was broken off, so that nobody can say.
    """
    path = _sent_file(run)
    if not path.exists():
        return Sent()
    try:
        sent = Sent(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path}: cannot be read ({error}); give --rebuild, which sends a fresh run") from error
    if not sent.whole:
        raise RunError(
            f"{path}: an earlier sync was broken off; what W&B holds of the run already would stand there twice. "
            "planet-dist sync --rebuild sends all numbers as a fresh run"
        )
    return sent


def write_sent(run: RunFolder, sent: Sent) -> None:
    """Remembers what is at W&B."""
    text = json.dumps({"step": sent.step, "records": dict(sent.records), "whole": sent.whole})
    write_whole(_sent_file(run), f"{text}\n".encode())
