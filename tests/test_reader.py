"""A dataset gives every chip by its id, from any thread, and refuses what has changed since the build."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from shards.build import BuildOptions, build
from shards.errors import DatasetError
from shards.labels import PLANET
from shards.reader import Dataset

CHIPS = 8


def built(tmp_path: Path, kind: str) -> tuple[Dataset, list[np.ndarray]]:
    """A dataset of several shards, and the pixels that PIL and tifffile read from its sources."""
    images = tmp_path / "chips"
    images.mkdir()
    expected = []
    for number in range(CHIPS):
        rng = np.random.default_rng(number)
        path = images / f"train_{number}.{kind}"
        if kind == "jpg":
            Image.frombytes("CMYK", (8, 8), rng.bytes(256)).save(path)
            expected.append(np.asarray(Image.open(path).convert("RGB")))
        else:
            compression = "zlib" if number == 3 else None
            pixels = rng.integers(0, 13200, (8, 8, 4)).astype(np.uint16)
            tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig", compression=compression)
            expected.append(tifffile.imread(path))
    build(BuildOptions(images, None, tmp_path / "out", PLANET, shard_bytes=10240, unlabelled=True))
    return Dataset(tmp_path / "out"), expected


@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_every_chip_has_the_pixels_of_its_source(tmp_path: Path, kind: str) -> None:
    dataset, expected = built(tmp_path, kind)
    assert len(dataset.manifest.shards) > 1 and len(dataset) == CHIPS
    for chip_id in reversed(range(CHIPS)):
        np.testing.assert_array_equal(dataset.pixels(chip_id), expected[chip_id])
        out = np.zeros_like(expected[chip_id])
        assert dataset.pixels(chip_id, out) is out
        np.testing.assert_array_equal(out, expected[chip_id])


def test_many_threads_read_the_same_chips(tmp_path: Path) -> None:
    dataset, expected = built(tmp_path, "jpg")
    ids = list(range(CHIPS)) * 20
    with ThreadPoolExecutor(8) as pool:
        for chip_id, pixels in zip(ids, pool.map(dataset.pixels, ids), strict=True):
            np.testing.assert_array_equal(pixels, expected[chip_id])


def test_names_and_index_follow_the_ids_over_shards(tmp_path: Path) -> None:
    dataset, _ = built(tmp_path, "jpg")
    assert dataset.keys([5, 0]) == ["train_5", "train_0"]
    assert [bytes(key).decode() for key in dataset.index()["key"]] == [f"train_{i}" for i in range(CHIPS)]


@pytest.mark.parametrize("chip_id", [-1, CHIPS])
def test_an_id_outside_the_dataset_is_an_index_error(tmp_path: Path, chip_id: int) -> None:
    dataset, _ = built(tmp_path, "jpg")
    with pytest.raises(IndexError, match=f"of {CHIPS} chips"):
        dataset.image(chip_id)


def test_a_changed_chip_is_refused_by_name_and_the_others_are_still_read(tmp_path: Path) -> None:
    dataset, expected = built(tmp_path, "jpg")
    tar = dataset.root / "chips-000000.tar"
    data = bytearray(tar.read_bytes())
    data[520] ^= 1
    tar.write_bytes(data)
    changed = Dataset(dataset.root)
    with pytest.raises(DatasetError, match=r"'train_0'.*planet-shard verify"):
        changed.pixels(0)
    np.testing.assert_array_equal(changed.pixels(1), expected[1])


def test_a_missing_or_truncated_shard_is_named(tmp_path: Path) -> None:
    dataset, _ = built(tmp_path, "jpg")
    tar = dataset.root / "chips-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(DatasetError, match=r"chips-000000\.tar: .* bytes where the manifest says"):
        Dataset(dataset.root).image(0)
    tar.unlink()
    with pytest.raises(DatasetError, match=r"chips-000000\.tar: No such file"):
        Dataset(dataset.root).image(0)


def test_the_digest_stands_for_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    jpg, _ = built(tmp_path / "a", "jpg")
    tif, _ = built(tmp_path / "b", "tif")
    assert jpg.digest == Dataset(jpg.root).digest != tif.digest
