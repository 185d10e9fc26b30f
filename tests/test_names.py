"""Which names a chip may bear, which endings mean an image, and the order of names."""

from __future__ import annotations

import os

import pytest

from shards.names import name_fault, natural_order, printable, split_ending
from shards.schema import MAX_KEY_BYTES


@pytest.mark.parametrize(
    ("name", "key", "kind"),
    [
        ("train_1.jpg", "train_1", "jpg"),
        ("train_1.JPEG", "train_1", "jpg"),
        ("train_1.tif", "train_1", "tif"),
        ("train_1.Tiff", "train_1", "tif"),
        ("a.b.jpg", "a.b", "jpg"),
        (".jpg", "", "jpg"),
        ("train_1.png", "train_1.png", None),
        ("jpg", "jpg", None),
        ("train_1", "train_1", None),
    ],
)
def test_an_ending_gives_the_kind_whatever_its_case(name: str, key: str, kind: str | None) -> None:
    assert split_ending(name) == (key, kind)


@pytest.mark.parametrize("key", ["train_1", "0", "São Paulo", "_one", "a" * MAX_KEY_BYTES, "é" * (MAX_KEY_BYTES // 2)])
def test_a_fit_name_has_no_fault(key: str) -> None:
    assert name_fault(key) is None


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("", "empty"),
        ("..", "holds a dot"),
        ("a.b", "holds a dot"),
        ("a/b", "holds a dot, slash"),
        ("a\\b", "slash or backslash"),
        ("a\nb", "cannot be printed"),
        (os.fsdecode(b"a\xff"), "is no UTF-8"),
        ("__key__", "two underscores"),
        ("é" * (MAX_KEY_BYTES // 2) + "aa", f"has {MAX_KEY_BYTES // 2 * 2 + 2} bytes"),
    ],
)
def test_an_unfit_name_is_told_why_in_text_that_any_terminal_takes(key: str, fault: str) -> None:
    found = name_fault(key)
    assert found is not None and fault in found
    found.encode()


def test_numbers_in_names_count_as_numbers() -> None:
    names = ["train_10", "train_2", "test_3", "train_02", "a", "7", "train_2_1"]
    assert sorted(names, key=natural_order) == ["7", "a", "test_3", "train_02", "train_2", "train_2_1", "train_10"]
    assert natural_order("train_2") != natural_order("train_02")


def test_bytes_that_are_no_text_are_shown_as_escapes() -> None:
    assert printable(os.fsdecode(b"caf\xe9 \xc3\xa9")) == "caf\\udce9 é"
