"""Archives that any tar reads, of bytes that depend on names and contents alone."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from shards.ustar import archive_end, member_bytes, member_header, padding

FILES = {"a.jpg": b"x" * 513, "b.cls": b"", "ü" * 48 + ".tif": b"y" * 512}


def archive() -> bytes:
    data = b"".join(
        member_header(name, len(content)) + content + padding(len(content)) for name, content in FILES.items()
    )
    return data + archive_end(len(data))


def test_the_standard_library_reads_every_member_back() -> None:
    with tarfile.open(fileobj=io.BytesIO(archive()), mode="r:") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == list(FILES)
        assert [tar.extractfile(member).read() for member in members] == list(FILES.values())  # type: ignore[union-attr]
        assert all(member.isreg() and member.mode == 0o644 and not member.uname for member in members)


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program")
def test_the_tar_program_unpacks_it_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(archive())
    done = subprocess.run(["tar", "-xf", "a.tar"], cwd=tmp_path, capture_output=True, check=True)
    assert not done.stderr
    assert (tmp_path / "a.jpg").read_bytes() == FILES["a.jpg"]


def test_a_header_states_eight_gibibytes_at_most() -> None:
    assert tarfile.TarInfo.frombuf(member_header("a", 8**11 - 1), "utf-8", "strict").size == 8**11 - 1
    with pytest.raises(AssertionError):
        member_header("a", 8**11)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_a_member_takes_its_header_and_whole_blocks(size: int) -> None:
    assert member_bytes(size) == len(member_header("a", size)) + size + len(padding(size))
    assert member_bytes(size) % 512 == 0


@pytest.mark.parametrize("size", [0, 512, 9216, 9728, 10240])
def test_an_archive_ends_in_two_blocks_and_a_whole_record(size: int) -> None:
    end = archive_end(size)
    assert len(end) >= 1024 and (size + len(end)) % 10240 == 0 and not any(end)
