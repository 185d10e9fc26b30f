"""Which state of the source a run was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

_SECONDS = 10.0


def git_state(folder: Path = Path(__file__).parent) -> dict[str, Any] | None:
    """The commit of the repository around a folder, and whether files that it tracks have changed since.

    Returns:
        commit, dirty; None where there is no repository, or no git.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None or changed is None else {"commit": commit, "dirty": bool(changed)}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
