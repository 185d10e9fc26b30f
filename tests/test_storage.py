"""A folder's files are opened without waiting for what never comes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from shards.errors import DatasetError
from shards.reader import Dataset
from shards.verify import verify


@pytest.mark.parametrize("ending", ["tar", "idx"])
def test_a_named_pipe_in_place_of_a_file_hangs_neither_reader_nor_check(
    dataset: Dataset, tmp_path: Path, ending: str
) -> None:
    root = shutil.copytree(dataset.root, tmp_path / "data")
    path = root / f"{dataset.manifest.shards[0].name}.{ending}"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DatasetError, match=f"{path}: not a regular file"):
        Dataset(root).image(0)
    assert any("not a regular file" in problem.value for problem in verify(root).problems)


def test_a_file_of_absurd_size_is_neither_read_nor_hashed(dataset: Dataset, tmp_path: Path) -> None:
    root = shutil.copytree(dataset.root, tmp_path / "data")
    for path in root.glob("*.[ti]*"):
        os.truncate(path, 2**42)
    with pytest.raises(DatasetError, match="sha256"):
        Dataset(root).image(0)
    problems = verify(root).problems
    assert len(problems) == 2 * len(dataset.manifest.shards)
    os.truncate(root / "manifest.json", 2**42)
    with pytest.raises(DatasetError, match="more than 64 MiB"):
        Dataset(root)
