"""The runs below a folder, one row each: what a person looks for when there are many."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planet_dist.runfolder import RunFolder
from planet_dist.runlogs import read_logs
from planet_dist.runstate import state_of
from shards.errors import PlanetError, RunError

_COLOURS = {"running": "green", "finished": "", "stopped": "yellow", "killed": "red", "failed": "red", "unknown": "dim"}


@dataclass(frozen=True)
class Row:
    """A run as it stands.

    Attributes:
        run: its path below the folder.
        recipe: as it was given, or the network's name where an older version wrote the run.
        epoch: epochs done; total_epochs: of all phases.
        f2: cross-fitted where the run is finished, otherwise the best epoch's; None before the first.
        images_per_second: the median over logged steps.
        started: seconds since 1970.
        state: runstate's word, or "damaged".
        why: what more there is to say of the state.
    """

    run: str
    recipe: str
    epoch: int
    total_epochs: int
    f2: float | None
    images_per_second: float | None
    started: float
    state: str
    why: str


def list_runs(root: Path) -> list[Row]:
    """Every run below a folder (or the folder itself), the newest start first.

    Raises:
        RunError: there is no such folder.
    """
    if not root.is_dir():
        raise RunError(f"{root}: no such folder; give one that runs lie below")
    closed: list[OSError] = []
    rows = [_row(folder, root) for folder in _run_folders(root, closed.append)]
    rows += [_damaged(str(Path(str(error.filename)).relative_to(root)), 0.0, error) for error in closed]
    return sorted(rows, key=lambda row: (-row.started, row.run))


def _run_folders(root: Path, unreadable: Callable[[OSError], None]) -> Iterator[Path]:
    for place, folders, files in os.walk(root, onerror=unreadable):
        # start.json is written before anything else; older runs had their configuration first
        if "start.json" in files or ("config.toml" in files and {"metrics.jsonl", "timing.jsonl"} & set(files)):
            folders.clear()
            yield Path(place)


def _row(folder: Path, root: Path) -> Row:
    name = str(folder.relative_to(root)) if folder != root else folder.resolve().name
    paths = RunFolder(folder)
    try:
        logs = read_logs(folder)
        state = state_of(paths)
        best = logs.best_epoch()
        f2 = logs.scores["f2"] if logs.scores is not None else (best or {}).get("f2")
        return Row(
            name,
            str(logs.start.get("recipe", logs.config.model.name)),
            len(logs.epochs),
            logs.total_epochs,
            None if f2 is None else float(f2),
            logs.images_per_second(),
            _started(paths),
            state.word,
            state.why,
        )
    # values of other kinds than a run writes, too: whatever one folder holds, the others are listed
    except (PlanetError, OSError, ValueError, TypeError, AttributeError) as error:
        return _damaged(name, _started(paths), error)


def _damaged(name: str, started: float, error: Exception) -> Row:
    return Row(name, "", 0, 0, None, None, started, "damaged", str(error))


def _started(paths: RunFolder) -> float:
    try:
        return float(json.loads(paths.start.read_text())["time"])
    except (OSError, ValueError, KeyError, TypeError):  # an older version's, or damaged
        return max((path.stat().st_mtime for path in (paths.start, paths.config) if path.exists()), default=0.0)


def print_runs(rows: Sequence[Row], console: Console | None = None) -> None:
    """Prints the rows as a table, to standard output unless a console is given."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("run", overflow="fold")
    table.add_column("recipe", overflow="fold")
    for heading in ("epoch", "F2", "images/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("started", no_wrap=True)
    table.add_column("state", overflow="fold")
    for row in rows:
        state = Text(row.state, style=_COLOURS.get(row.state, "red"))
        table.add_row(
            Text(row.run),
            Text(row.recipe),
            f"{row.epoch}/{row.total_epochs}" if row.total_epochs else "",
            "" if row.f2 is None else f"{row.f2:.4f}",
            "" if row.images_per_second is None else f"{row.images_per_second:,.0f}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(row.started)),
            state.append(f": {row.why}", style="dim") if row.why else state,
        )
    (console or Console()).print(table)


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain numbers and strings."""
    return [asdict(row) for row in rows]
