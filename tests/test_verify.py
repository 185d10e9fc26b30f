"""Every kind of damage to a dataset is found, and named by its shard and sample."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.build import BuildOptions, build
from shards.errors import DatasetError
from shards.labels import PLANET
from shards.schema import image_digest, index_bytes, sealed
from shards.verify import VerifyReport, verify

TAGS = ["clear", "clear primary", "haze water", "cloudy", "clear road", "partly_cloudy primary"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six sound chips in two shards."""
    images = tmp_path / "chips"
    images.mkdir()
    rows = ["image_name,tags"]
    for number, tags in enumerate(TAGS):
        noise = np.random.default_rng(number).bytes(8 * 8 * 3)
        Image.frombytes("RGB", (8, 8), noise).save(images / f"train_{number}.jpg")
        rows.append(f"train_{number},{tags}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    options = BuildOptions(images, tmp_path / "labels.csv", tmp_path / "out", PLANET)
    manifest = build(replace(options, shard_bytes=10240)).manifest
    assert len(manifest.shards) == 2
    return tmp_path / "out"


def texts(report: VerifyReport) -> str:
    return "\n".join(f"{problem}: {problem.rule}" for problem in report.problems)


def edit_manifest(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    table = json.loads((root / "manifest.json").read_text())
    change(table)
    (root / "manifest.json").write_bytes(sealed(table))


def edit_tar(root: Path, change: Callable[[bytearray], object], *, own_up: bool = False) -> None:
    """Changes the first tar; with own_up the manifest's digest and size follow, as a forger would have it."""
    path = root / "chips-000000.tar"
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    if own_up:
        claims = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        edit_manifest(root, lambda table: table["shards"][0].update(claims))


def edit_index(root: Path, change: Callable[[np.ndarray], object]) -> None:
    """Changes the first index and lets the manifest's digest follow."""
    path = root / "chips-000000.idx"
    index = np.load(io.BytesIO(path.read_bytes()))
    change(index)
    data = index_bytes(index)
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit_manifest(root, lambda table: table["shards"][0].update(index_sha256=digest))


def image_at(root: Path, row: int) -> tuple[int, int]:
    record = np.load(io.BytesIO((root / "chips-000000.idx").read_bytes()))[row]
    return int(record["offset"]), int(record["size"])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sound_dataset_passes(root: Path, workers: int) -> None:
    calls: list[tuple[int, int]] = []
    report = verify(root, workers=workers, progress=lambda done, total: calls.append((done, total)))
    assert not report.problems and report.chips == 6
    assert calls[-1] == (6, 6)


def test_a_changed_byte_of_an_image_names_the_shard_and_the_sample(root: Path) -> None:
    offset, size = image_at(root, 1)
    edit_tar(root, lambda data: data.__setitem__(offset + size - 30, data[offset + size - 30] ^ 0xFF))
    found = texts(verify(root))
    assert "chips-000000.tar" in found and "chip 'train_1': its bytes have changed" in found
    assert "train_0" not in found and "chips-000001" not in found


def test_a_forged_digest_does_not_hide_a_broken_image(root: Path) -> None:
    offset, size = image_at(root, 1)
    edit_tar(root, lambda data: data.__setitem__(slice(offset, offset + size), bytes(size)), own_up=True)
    digest = np.frombuffer(image_digest(bytes(size)), np.uint8)
    edit_index(root, lambda index: index["digest"].__setitem__(1, digest))
    found = texts(verify(root))
    assert "chip 'train_1': starts like" in found and "images_sha256" in found


def test_a_changed_member_header_is_found(root: Path) -> None:
    offset, _ = image_at(root, 1)
    edit_tar(root, lambda data: data.__setitem__(offset - 512, ord("X")), own_up=True)
    assert "chip 'train_1': found that of 'Xrain_1.jpg'" in texts(verify(root))


def test_a_label_that_differs_between_tar_and_index_is_found(root: Path) -> None:
    edit_index(root, lambda index: index["labels"].__setitem__(2, PLANET.mask(["clear"])))
    found = texts(verify(root))
    assert "chip 'train_2'" in found and "KEY.cls" in found
    assert "label_counts is not" in found and "cooccurrence is not" in found


def test_label_bits_beyond_the_vocabulary_are_found(root: Path) -> None:
    edit_index(root, lambda index: index["labels"].__setitem__(0, 1 << 40))
    assert "of 17 labels" in texts(verify(root))


def test_an_offset_that_is_not_the_next_member_is_found(root: Path) -> None:
    edit_index(root, lambda index: index["offset"].__setitem__(1, index["offset"][1] + 512))
    found = texts(verify(root))
    assert "'train_1': offset" in found and "without a gap" in found


def test_a_wrong_place_of_raw_pixels_is_found(root: Path) -> None:
    edit_index(root, lambda index: index["pixels"].__setitem__(0, 8))
    assert "chip 'train_0': 8 where it is 0" in texts(verify(root))


def test_a_name_that_stands_twice_is_found(root: Path) -> None:
    edit_index(root, lambda index: index["key"].__setitem__(1, b"train_5"))
    assert "'train_5' stands 2 times" in texts(verify(root))


@pytest.mark.parametrize("key", [b"../evil", b"\xff\xfe", b""])
def test_a_hostile_name_in_an_index_is_a_problem_not_a_crash(root: Path, key: bytes) -> None:
    edit_index(root, lambda index: index["key"].__setitem__(1, key))
    found = texts(verify(root))
    assert "a name is 1 to" in found
    found.encode()


@pytest.mark.parametrize("ending", ["tar", "idx"])
def test_missing_files_are_named_and_the_other_shard_is_still_checked(root: Path, ending: str) -> None:
    (root / f"chips-000000.{ending}").unlink()
    edit_manifest(root, lambda table: table["shards"][1].update(sha256="0" * 64))
    found = texts(verify(root))
    assert f"chips-000000.{ending}: No such file" in found and "chips-000001.tar: sha256" in found


@pytest.mark.parametrize("ending", ["tar", "idx"])
@pytest.mark.parametrize("length", [0, 1, 200])
def test_truncated_files_are_named(root: Path, ending: str, length: int) -> None:
    path = root / f"chips-000000.{ending}"
    path.write_bytes(path.read_bytes()[:length])
    assert f"chips-000000.{ending}" in texts(verify(root))


def test_bytes_after_the_last_sample_are_found(root: Path) -> None:
    edit_tar(root, lambda data: data.__setitem__(-1, 1), own_up=True)
    assert "ends in zeros" in texts(verify(root))


def test_a_file_that_the_manifest_does_not_name_is_found(root: Path) -> None:
    (root / "chips-000009.tar").write_bytes(b"")
    assert "chips-000009.tar: not in the manifest" in texts(verify(root))


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (lambda table: table["label_counts"].__setitem__(5, 99), "label_counts"),
        (lambda table: table["cooccurrence"][5].__setitem__(5, 99), "cooccurrence"),
        (lambda table: table.update(labelled=3), "labelled"),
        (lambda table: table.update(mean=[1.0, 2.0, 3.0]), "mean"),
        (lambda table: table.update(std=[1.0, 2.0, 3.0]), "std"),
        (lambda table: table["sources"].update(images_sha256="0" * 64), "images_sha256"),
        (lambda table: table["image"].update(height=4096, width=4096), "all chips are of one form"),
    ],
)
def test_figures_of_the_manifest_are_held_against_the_chips(
    root: Path, change: Callable[[dict[str, Any]], object], value: str
) -> None:
    edit_manifest(root, change)
    assert value in texts(verify(root))


def test_label_sets_against_the_rules_are_counted_and_errors_when_strict(root: Path) -> None:
    groups = [{"name": "surface", "labels": ["primary", "water", "road"], "required": True}]
    edit_manifest(root, lambda table: table.update(exclusive=groups))
    report = verify(root)
    assert not report.problems and report.breaches == {"no surface label": 2}
    assert "chip 'train_0': clear" in texts(verify(root, strict=True))


def test_a_folder_without_a_manifest_says_to_build_again(root: Path) -> None:
    (root / "manifest.json").unlink()
    with pytest.raises(DatasetError, match="run the same planet-shard build again"):
        verify(root)


def test_no_single_damaged_byte_of_a_shard_crashes_or_passes(root: Path) -> None:
    rng = np.random.default_rng(3)
    for ending in ("tar", "idx"):
        path = root / f"chips-000000.{ending}"
        sound = path.read_bytes()
        for at in rng.integers(0, len(sound), 40):
            data = bytearray(sound)
            data[at] ^= 0x5A
            path.write_bytes(data)
            assert verify(root).problems, f"byte {at} of the {ending}"
        path.write_bytes(sound)


def test_random_index_records_under_a_matching_digest_never_crash(root: Path) -> None:
    rng = np.random.default_rng(4)
    sound = (root / "chips-000000.idx").read_bytes(), (root / "manifest.json").read_bytes()
    for _ in range(40):
        edit_index(
            root,
            lambda index: index.view(np.uint8).__setitem__(rng.integers(0, index.nbytes, 3), rng.integers(1, 255, 3)),
        )
        verify(root)
        (root / "chips-000000.idx").write_bytes(sound[0])
        (root / "manifest.json").write_bytes(sound[1])
