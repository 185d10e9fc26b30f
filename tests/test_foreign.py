"""Tars of any writer are listed as webdataset groups them, and broken ones end in a problem, not in silence."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from shards.foreign import Listing, list_samples


def tar_of(path: Path, *members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def listed(path: Path) -> Listing:
    with path.open("rb") as file:
        return list_samples(file, str(path))


def values(listing: Listing) -> str:
    return " | ".join(f"{problem.rule}: {problem.value}" for problem in listing.problems)


ORDINARY = [
    ("a.json", b"{}"),
    ("a.cls", b"5"),
    ("a.JPG", b"image a"),
    ("chips/b.jpeg", b"image b"),
    ("chips/b.txt", b"text"),
    ("./c.jpg", b"image c"),
    ("./c.cls", b"9"),
    ("lonely.cls", b"1"),
    ("README", b"no dot"),
    ("__index__", b""),
]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_a_sample_may_come_in_any_order_among_others(tmp_path: Path, form: int) -> None:
    path = tar_of(tmp_path / "a.tar", *ORDINARY, form=form)
    listing = listed(path)
    assert not listing.problems
    data = path.read_bytes()
    found = [(s.key, s.kind, data[s.offset : s.offset + s.size], s.class_text) for s in listing.samples]
    assert found == [
        ("a", "jpg", b"image a", b"5"),
        ("b", "jpg", b"image b", None),
        ("c", "jpg", b"image c", b"9"),
    ]
    assert listing.other_members == 5


def test_samples_are_those_that_webdataset_finds(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", *ORDINARY)
    with path.open("rb") as stream:
        theirs = list(group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}])))
    keys = [sample["__key__"].rpartition("/")[2] for sample in theirs if {"jpg", "jpeg"} & set(sample)]
    assert [sample.key for sample in listed(path).samples] == keys == ["a", "b", "c"]


def test_long_names_links_and_folders_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("x" * 150 + ".jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    listing = listed(path)
    assert not listing.samples and not listing.problems and listing.other_members == 4


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.cls", b"3"), ("a.jpg", b"4")], "neighbours: 'a'"),
        ([("a.jpg", b"1"), ("a.jpeg", b"2")], "one image and one class: a.jpg, a.jpeg"),
        ([("a.cls", b"1"), ("a.jpg", b"1"), ("a.cls", b"2")], "one image and one class"),
        ([("p/a.jpg", b"1"), ("q/a.jpg", b"2")], "neighbours: 'a'"),
        ([("\x1b[31m.jpg", b"1")], "cannot be printed"),
        ([("k" * 95 + ".jpg", b"1")], "has 95 bytes"),
    ],
)
def test_names_that_cannot_be_chips_are_problems(tmp_path: Path, members: list[tuple[str, bytes]], said: str) -> None:
    assert said in values(listed(tar_of(tmp_path / "a.tar", *members)))


def test_names_that_lead_out_of_a_folder_name_nothing_there(tmp_path: Path) -> None:
    listing = listed(tar_of(tmp_path / "a.tar", ("../../etc/x.jpg", b"1"), ("/etc/y.jpg", b"2")))
    assert [sample.key for sample in listing.samples] == ["x", "y"]


@pytest.mark.parametrize("length", [0, 100, 512, 1024, 1500, 2048, 2560, 3072])
def test_a_tar_that_is_cut_off_anywhere_is_a_problem(tmp_path: Path, length: int) -> None:
    path = tar_of(tmp_path / "a.tar", ("a.jpg", b"1" * 600), ("b.jpg", b"2" * 600), form=tarfile.USTAR_FORMAT)
    path.write_bytes(path.read_bytes()[:length])
    assert "a tar holds whole members up to its end" in values(listed(path))


def test_a_broken_header_is_a_problem_though_tar_readers_end_there_in_silence(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", ("a.jpg", b"1"), ("b.jpg", b"2"), form=tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[1024 + 3] ^= 0xFF
    path.write_bytes(data)
    listing = listed(path)
    assert [sample.key for sample in listing.samples] == ["a"]
    assert "at 1024 that are no such end" in values(listing)


@pytest.mark.parametrize("size", [b"77777777777\0", b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"\xff" * 11 + b"\x00"])
def test_an_absurd_or_negative_size_ends_the_walk_at_once(tmp_path: Path, size: bytes) -> None:
    path = tar_of(tmp_path / "a.tar", ("a.jpg", b"1"), ("b.jpg", b"2"), form=tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[1024 + 124 : 1024 + 136] = size
    data[1024 + 148 : 1024 + 156] = b" " * 8
    data[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(data[1024:1536])
    path.write_bytes(data)
    assert "a tar holds whole members up to its end" in values(listed(path))


def test_a_compressed_tar_is_a_problem(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    assert "ReadError" in values(listed(tmp_path / "a.tar"))
