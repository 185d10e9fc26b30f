"""Whether a run is going on, and if not, how it ended: from what it left, and from the processes of this host.

A start of a run leaves its process in RUN/start.json: its number, the tick at which it began, the boot it began in.
Numbers are given anew to other processes, but not together with that tick in that boot.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from planet_dist.runfolder import RunFolder
from shards.errors import RunError

Word = Literal["running", "finished", "stopped", "failed", "killed", "unknown"]
_PROC = Path("/proc")
_LINE_LETTERS = 200


@dataclass(frozen=True)
class RunState:
    """A run's state in a word, and why; `why` is empty where the word says all."""

    word: Word
    why: str = ""

    def __str__(self) -> str:
        return f"{self.word}: {self.why}" if self.why else self.word


def this_process(proc: Path = _PROC) -> dict[str, Any]:
    """What tells this process from any other, on this host and others.

    Args:
        proc: where the kernel shows its processes.

    Returns:
        host (its name), machine (a digest of its id, or ""), boot, namespace (in which pids count), pid and ticks (from
        the boot to the process's start).
    """
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "boot": _text(proc / "sys/kernel/random/boot_id"),
        "namespace": _namespace(proc),
        "pid": pid,
        "ticks": _ticks(proc, pid),
    }


def is_alive(process: dict[str, Any], proc: Path = _PROC) -> bool | None:
    """Whether the process that this_process() described still runs; None where this host cannot know.

    Args:
        proc: as for this_process.
    """
    here = this_process(proc)
    if not process.get("boot") or (process["host"], process["machine"]) != (here["host"], here["machine"]):
        return None
    if process["boot"] != here["boot"]:
        # Without a machine's id, another one could bear this one's name.
        return False if here["machine"] else None
    if process["namespace"] != here["namespace"]:
        return None
    return _ticks(proc, int(process["pid"])) == int(process["ticks"])


def state_of(folder: RunFolder) -> RunState:
    """The state of a run.

    Raises:
        RunError: a file that says it cannot be read.
    """
    process = _read(folder.start).get("process", {})
    try:
        alive = is_alive(process) if process else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{folder.start}: does not say which process it is of ({error!r}); remove the file") from error
    if alive:
        return RunState("running")
    # What a start leaves last stands above what an earlier one left; a new start removes both files.
    stopped, failed = _read(folder.stopped), _read(folder.failed)
    if stopped and stopped.get("step") is None:  # nobody asked: a rank died or hangs, and another one says which
        return RunState("failed", _line(stopped.get("reason")))
    if failed:
        return RunState("failed", _line(failed.get("error")))
    if stopped:
        return RunState("stopped", f"{_line(stopped.get('reason'))} after step {stopped['step']}")
    if (folder.bundle / "bundle.json").is_file():
        return RunState("finished")
    if alive is None:
        where = f"started on {process['host']}, not seen from here" if process else "its start left no word"
        return RunState("unknown", where)
    return RunState("killed", "ended without a word")


def _line(text: object) -> str:
    """The beginning of what a file says, for a row of a table."""
    first, _, more = str(text).partition("\n")
    return first[:_LINE_LETTERS] + ("..." if more or len(first) > _LINE_LETTERS else "")


def _read(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); remove the file") from error
    if not isinstance(table, dict):
        raise RunError(f"{path}: holds no JSON object; remove the file")
    return table


def _ticks(proc: Path, pid: int) -> int | None:
    """When a process began, in clock ticks since the boot; None where there is none, or it's only not yet reaped."""
    try:
        text = (proc / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # a command's name may hold spaces and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def _namespace(proc: Path) -> str:
    try:
        return str((proc / "self/ns/pid").readlink())
    except OSError:
        return ""


def _machine() -> str:
    # The id itself is not for others to read (man machine-id).
    text = _text(Path("/etc/machine-id"))
    return hashlib.sha256(f"planet-dist {text}".encode()).hexdigest()[:16] if text else ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
