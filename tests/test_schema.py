"""Manifests and indexes survive the way to disk and back, and damaged ones are refused with a reason."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.errors import DatasetError
from shards.schema import (
    Manifest,
    Shard,
    index_bytes,
    index_dtype,
    parse_index,
    parse_manifest,
    write_whole,
)

TABLE: dict[str, Any] = {
    "format": "planet-dist-dataset",
    "version": 2,
    "labels": ["clear", "water"],
    "exclusive": [{"name": "weather", "labels": ["clear"], "required": True}],
    "alone": ["water"],
    "image": {
        "kind": "jpg",
        "height": 8,
        "width": 8,
        "bands": 3,
        "dtype": "uint8",
        "band_order": ["red", "green", "blue"],
    },
    "count": 2,
    "labelled": 2,
    "label_counts": [2, 1],
    "cooccurrence": [[2, 1], [1, 1]],
    "mean": [1.0, 2.0, 3.0],
    "std": [1.0, 1.0, 1.0],
    "sources": {
        "labels_sha256": None,
        "images_sha256": "0" * 64,
        "repeated_tags": 0,
        "rejected": 0,
    },
    "shards": [{"name": "chips-000000", "count": 2, "bytes": 10240, "sha256": "0" * 64, "index_sha256": "1" * 64}],
}


def manifest_with(**changes: Any) -> bytes:
    return json.dumps({**TABLE, **changes}).encode()


def test_a_manifest_comes_back_from_its_bytes() -> None:
    manifest = parse_manifest(manifest_with(), "here")
    assert parse_manifest(manifest.to_bytes(), "here") == manifest
    assert isinstance(manifest, Manifest) and manifest.vocabulary.labels == ("clear", "water")
    assert manifest.to_bytes() == parse_manifest(manifest.to_bytes(), "there").to_bytes()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "not the manifest"),
        (b"\xff", "not JSON"),
        (manifest_with(format="other"), "not the manifest"),
        (manifest_with(version=1), "version 1; this program reads version 2"),
        (manifest_with(surprise=1), "surprise"),
        (manifest_with(count="2"), "count"),
        (manifest_with(count=3), "disagrees"),
        (manifest_with(labelled=3), "disagrees"),
        (manifest_with(label_counts=[1]), "one entry for each of 2 labels"),
        (manifest_with(mean=[1.0]), "3 bands"),
        (manifest_with(labels=["clear", "clear"]), "repeats"),
        (manifest_with(alone=["snow"]), "snow"),
        (manifest_with(image={**TABLE["image"], "dtype": "complex64"}), "complex64"),
        (manifest_with(image={**TABLE["image"], "height": 0}), "height"),
        (manifest_with(shards=[{**TABLE["shards"][0], "name": "../../etc/passwd"}]), "name"),
        (manifest_with(shards=[TABLE["shards"][0]] * 2, count=4), "two shards"),
    ],
)
def test_a_manifest_that_is_not_one_says_where_and_why(data: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        parse_manifest(data, "/data/manifest.json")
    assert str(caught.value).startswith("/data/manifest.json")


def index_of(keys: list[str]) -> np.ndarray:
    index = np.zeros(len(keys), index_dtype(max(map(len, keys))))
    for number, key in enumerate(keys):
        index[number] = (key.encode(), 512 + 1024 * number, 100, 0, 1 << 63, True, np.full(16, number))
    return index


def shard_of(data: bytes, count: int, size: int = 10240) -> Shard:
    digest = hashlib.sha256(data).hexdigest()
    return Shard(name="chips-000000", count=count, bytes=size, sha256="0" * 64, index_sha256=digest)


def test_an_index_comes_back_from_its_bytes() -> None:
    index = index_of(["train_1", "train_10"])
    data = index_bytes(index)
    found = parse_index(data, shard_of(data, 2), "here")
    assert found.dtype == index.dtype
    assert found.tolist()[0][:6] == (b"train_1", 512, 100, 0, 1 << 63, True)
    np.testing.assert_array_equal(found, index)


def test_an_index_of_another_digest_count_form_or_reach_is_refused() -> None:
    data = index_bytes(index_of(["a", "b"]))
    with pytest.raises(DatasetError, match="sha256"):
        parse_index(data[:-1] + b"x", shard_of(data, 2), "here")
    with pytest.raises(DatasetError, match="not an index of 3 chips"):
        parse_index(data, shard_of(data, 3), "here")
    with pytest.raises(DatasetError, match="outside the shard's 1000 bytes"):
        parse_index(data, shard_of(data, 2, size=1000), "here")
    plain = index_bytes(np.zeros(2))
    with pytest.raises(DatasetError, match="not an index"):
        parse_index(plain, shard_of(plain, 2), "here")
    wrapping = index_of(["a"])
    wrapping["offset"], wrapping["size"] = 2**64 - 10, 20
    data = index_bytes(wrapping)
    with pytest.raises(DatasetError, match="outside"):
        parse_index(data, shard_of(data, 1), "here")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x02\x00{}"])
def test_bytes_that_are_no_index_are_refused(data: bytes) -> None:
    with pytest.raises(DatasetError, match="not an index"):
        parse_index(data, shard_of(data, 1), "here")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"newer")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
