"""A run's source is named by its commit, or not at all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from planet_dist.git_state import git_state


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=made", "-c", "user.email=made@example.com"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_checkout_says_its_commit_and_whether_tracked_files_differ_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert git_state(tmp_path) is None  # nothing committed yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--quiet", "--message", "made")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "b").write_text("not tracked")
    assert git_state(tmp_path) == {"commit": head, "dirty": False}
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {"commit": head, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None


def test_a_package_installed_within_somebodys_repository_is_no_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "theirs")
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert git_state(inside) is None
