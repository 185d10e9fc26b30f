"""Damaged and hostile datasets: reading and checking agree, nothing passes in silence, memory and time stay small."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile

from shards.build import BuildOptions, build
from shards.errors import DatasetError, DecodeError, InputError
from shards.labels import PLANET
from shards.pixels import decode
from shards.reader import Dataset
from shards.verify import verify
from tests.conftest import REPOSITORY
from tests.mutations import (
    ACCIDENTS,
    FORGERIES,
    Damage,
    content,
    damaged,
    fingerprint,
    forge_index,
    judge,
    make_dataset,
    set_in_index,
)

SEEDS = range(4)


@pytest.fixture(scope="module", params=["jpg", "tif"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("damage"), request.param)


@pytest.mark.parametrize("damage", ACCIDENTS, ids=lambda damage: damage.__name__)
def test_no_accident_is_silent_and_the_check_finds_what_reading_refuses(
    sound: Path, tmp_path: Path, damage: Damage
) -> None:
    expected, before = content(sound), fingerprint(sound)
    noticed = 0
    for seed in SEEDS:
        outcome = judge(tmp_path / "work", damaged(sound, tmp_path / "work", damage, seed), expected, before)
        assert outcome.fault() is None, outcome
        noticed += outcome.checked == "found"
    assert noticed, "this damage never did anything"
    assert fingerprint(sound) == before


@pytest.mark.parametrize("damage", [*FORGERIES, *[forge_index] * 3])
def test_forgeries_are_refused_or_read_whole_and_never_raise_anything_else(
    sound: Path, tmp_path: Path, damage: Damage
) -> None:
    expected, before = content(sound), fingerprint(sound)
    for seed in SEEDS:
        outcome = judge(tmp_path / "work", damaged(sound, tmp_path / "work", damage, 100 + seed), expected, before)
        assert outcome.read != "refused" or outcome.checked == "found", outcome


def test_an_error_names_the_file_and_the_chip(sound: Path, tmp_path: Path) -> None:
    root = tmp_path / "work"
    damaged(sound, root, lambda root, rng: "", 0)
    record, shard = Dataset(root).index()[0], Dataset(root).manifest.shards[0].name
    path = root / f"{shard}.tar"
    data = bytearray(path.read_bytes())
    data[int(record["offset"]) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=rf"{shard}\.tar, chip 'train_0' \(id 0\): its bytes have changed"):
        content(root)


def test_a_change_of_the_manifest_alone_is_noticed_even_where_no_figure_depends_on_it(
    sound: Path, tmp_path: Path
) -> None:
    root = tmp_path / "work"
    damaged(sound, root, lambda root, rng: "", 0)
    path = root / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"haze"', b'"fog"'))
    with pytest.raises(DatasetError, match=r"manifest\.json: changed since it was written"):
        Dataset(root)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("key", b"train_11", "'train_11' stands in it more than once"),
        ("labels", 1 << 40, "labels that the manifest lacks"),
        ("labelled", False, "labels of unlabelled chips"),
        ("offset", 2**64 - 5, "outside the shard's"),
        ("size", 2**40, "outside the shard's"),
    ],
)
def test_what_a_forged_index_claims_is_held_against_the_dataset_before_training(
    sound: Path, tmp_path: Path, name: str, value: object, said: str
) -> None:
    root = tmp_path / "work"
    damaged(sound, root, lambda root, rng: set_in_index(root, 0, name, 1, value), 0)
    with pytest.raises(DatasetError, match=said):
        Dataset(root).index()
    assert verify(root).problems


def bomb_tiff(kind: str) -> bytes:
    """A TIFF of a few hundred kilobytes that unpacks, or claims to, to gigabytes."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((8, 8, 4), np.uint16), photometric="minisblack", planarconfig="contig")
    data = bytearray(file.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        tags = {tag.name: tag for tag in tif.pages.first.tags}
        offsets = {name: tag.offset for name, tag in tags.items()}

    def put(name: str, value: int) -> None:
        # As one LONG, in the entry itself: type, count, value.
        struct.pack_into("<HII", data, offsets[name] + 2, 4, 1, value)

    if kind == "deflate":
        packer = zlib.compressobj(9)
        zeros = bytes(2**24)
        body = b"".join(packer.compress(zeros) for _ in range(128)) + packer.flush()
        put("Compression", 8)
        put("StripOffsets", len(data))
        put("StripByteCounts", len(body))
        return bytes(data) + body
    put("ImageWidth", 2**20)
    put("ImageLength", 2**20)
    return bytes(data)


def bomb_jpeg() -> bytes:
    """A JPEG whose header claims 65,500 pixels in both directions."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "jpeg")
    data = bytearray(file.getvalue())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", 65500, 65500)
    return bytes(data)


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        ("jpg", bomb_jpeg(), "at most 16777216 pixels"),
        ("tif", bomb_tiff("size"), "at most 16777216 pixels"),
        ("tif", bomb_tiff("deflate"), "unpacks to more than its 512 bytes"),
    ],
    ids=["jpeg", "tiff size", "tiff deflate"],
)
def test_an_image_that_unpacks_to_gigabytes_is_refused_before_it_does(
    tmp_path: Path, kind: str, data: bytes, said: str
) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DecodeError, match=said):
        decode(data, kind)
    (tmp_path / "chips").mkdir()
    (tmp_path / "chips" / f"bomb.{kind}").write_bytes(data)
    with pytest.raises(InputError, match=said):
        build(BuildOptions(tmp_path / "chips", None, tmp_path / "out", PLANET, unlabelled=True))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 300 * 1024


def test_the_longer_check_runs(tmp_path: Path) -> None:
    command = [sys.executable, "tests/soak_damage.py", "--count", "40", "--seed", "7"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 mutations, 0 defect(s)" in done.stdout
