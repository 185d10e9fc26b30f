"""What a start writes down of itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from planet_dist.provenance import LIBRARIES, commit, describe_start, device_name


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=made", "-c", "user.email=made@example.com"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_start_names_its_libraries_and_hides_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIPS_TOKEN", "abcdef123456")
    about = describe_start("paper1-resnet50", "https://me:secret77@host/chips?sig=abcdef123456", Accelerator(cpu=True))
    text = json.dumps(about)
    assert "secret77" not in text and "abcdef123456" not in text
    assert about["data"].endswith("@host/chips?***")
    assert set(about["versions"]) == set(LIBRARIES) and about["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (about["recipe"], about["processes"], about["device"][:5]) == ("paper1-resnet50", 1, "CPU (")


def test_a_device_is_called_by_its_name() -> None:
    assert device_name(torch.device("cpu")).startswith("CPU (")


def test_a_commit_says_whether_files_differ_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commit(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert commit(tmp_path) is None  # nothing committed yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--quiet", "--message", "made")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(tmp_path) == head
    (tmp_path / "b").write_text("not tracked")
    assert commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == f"{head}+changes"
    monkeypatch.setenv("PATH", "")
    assert commit(tmp_path) is None
