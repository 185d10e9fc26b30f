"""Which state of the source a run was made with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).parent.parent
_SECONDS = 10.0


def git_state(repository: Path = _REPOSITORY) -> dict[str, Any] | None:
    """The commit of a git checkout, and whether files that it tracks have changed since.

    Returns:
        commit, dirty; None where there is no checkout, no commit in it, or no git. An installed package that lies
        within somebody's repository is no checkout.
    """
    if not (repository / ".git").exists():
        return None
    commit = _git(repository, "rev-parse", "HEAD")
    changed = _git(repository, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None or changed is None else {"commit": commit, "dirty": bool(changed)}


def _git(repository: Path, *words: str) -> str | None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(repository), *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
