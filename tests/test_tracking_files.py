"""W&B's files: read as they are cut off, refused where they are damaged, and written as W&B reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from planet_dist.tracking_files import new_record, read_records, write_records
from shards.errors import RunError


def printed(letters: int) -> Any:
    record = new_record()
    record.output_raw.line = "x" * letters
    return record


# around the 32 KiB of a block: whole, ended by less than a prefix, and over two and three blocks
SIZES = [1, 32700, 40, 10, 3, 0, 32760, 70000, 5]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run-1.wandb"
    write_records(path, [printed(size) for size in SIZES])
    return path


def test_what_is_written_is_read_again_in_order_and_numbered(file: Path) -> None:
    records = list(read_records(file))
    assert [len(record.output_raw.line) for record in records] == SIZES
    assert [record.num for record in records] == list(range(1, len(SIZES) + 1))


@pytest.mark.parametrize("first", range(0, 32768 * 4, 997))
def test_a_file_cut_off_anywhere_gives_what_is_whole_in_it(file: Path, first: int) -> None:
    file.write_bytes(file.read_bytes()[:first])
    sizes = [len(record.output_raw.line) for record in read_records(file)]
    assert sizes == SIZES[: len(sizes)]
    assert len(sizes) < len(SIZES)


def test_a_block_that_was_never_filled_ends_the_file(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole + bytes(5000))
    assert len(list(read_records(file))) == len(SIZES)


@pytest.mark.parametrize("place", [20, 40000, 100000])
def test_a_changed_byte_is_an_error_with_a_remedy(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunError, match=r"damaged \(checksum of the record at byte .*--rebuild"):
        list(read_records(file))


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run-1.wandb"
    path.write_text("a table of figures")
    with pytest.raises(RunError, match=r"not a W&B file of a version that is known here; send it with: wandb sync"):
        list(read_records(path))
