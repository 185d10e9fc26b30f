"""Decoded chips kept on the host: the decoder's own, whatever happens to who writes them, or not used at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from webdataset.pipeline import DataPipeline

from planet_dist import host_cache
from planet_dist.config import DataConfig, load_config
from planet_dist.engine import run_identity
from planet_dist.host_cache import HostCache
from planet_dist.plan import Plan
from planet_dist.stream import Batch, Caches, DecodedBatches, FixedSteps, OnDevice, PlannedSteps, open_caches
from shards.build import BuildOptions, build
from shards.errors import DatasetError
from shards.labels import PLANET
from shards.reader import Dataset

ROOM = 2**30
# Decodes a dataset's chips into the cache one after another; says so after half of them, and writes on.
FILL = """
import sys
from pathlib import Path
from planet_dist.host_cache import HostCache
from shards.reader import Dataset
dataset = Dataset(sys.argv[1])
cache = HostCache(Path(sys.argv[2]), dataset, 2**30)
while True:
    for chip_id in range(len(dataset) // 2 + 1):
        cache.put(chip_id, dataset.pixels(chip_id))
    print("half", flush=True)
"""


def fresh(dataset: Dataset, folder: Path, limit_bytes: int = ROOM) -> HostCache:
    return HostCache(folder, dataset, limit_bytes)


def fill(cache: HostCache, dataset: Dataset) -> None:
    for chip_id in range(len(dataset)):
        cache.put(chip_id, dataset.pixels(chip_id))


def taken(cache: HostCache, dataset: Dataset, ids: np.ndarray) -> np.ndarray:
    form = dataset.manifest.image
    out_BHWC = np.empty((len(ids), form.height, form.width, form.bands), form.dtype)
    cache.take(ids, out_BHWC)
    return out_BHWC


def epochs(dataset: Dataset, caches: Caches, count: int, threads: int = 2) -> list[Batch]:
    """Some epochs' batches, copied out of the ring."""
    targets_NC = dataset.manifest.vocabulary.matrix(dataset.index()["labels"])
    plan = Plan(np.arange(len(dataset)), np.array([0, len(dataset)]), 16, seed=3)
    source = PlannedSteps(plan, range(count), 0, rank=0, num_ranks=1)
    decoded = DecodedBatches(dataset, targets_NC, 16, threads=threads, prefetch_batches=2, caches=caches)
    pipeline = DataPipeline(source, decoded, OnDevice(torch.device("cpu"), caches.device))
    return [replace(batch, images_BHWC=batch.images_BHWC.clone()) for batch in pipeline]


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.epoch, one.step) == (other.epoch, other.step)
        assert np.array_equal(one.ids_B, other.ids_B)
        assert torch.equal(one.images_BHWC, other.images_BHWC)
        assert torch.equal(one.targets_BC, other.targets_BC)


@pytest.mark.parametrize("fixture", ["dataset", "tif_dataset"])
@pytest.mark.parametrize("threads", [1, 3])
def test_batches_are_the_same_with_a_cache_as_without(
    fixture: str, threads: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dataset: Dataset = request.getfixturevalue(fixture)
    cache = fresh(dataset, tmp_path)
    assert_same(epochs(dataset, Caches(host=cache), 3, threads), epochs(dataset, Caches(), 3))
    assert cache.holds(np.arange(len(dataset))).all()


def test_a_full_cache_needs_no_tar(dataset: Dataset, tmp_path: Path) -> None:
    fill(fresh(dataset, tmp_path), dataset)
    expected = epochs(dataset, Caches(), 1)
    reopened = Dataset(dataset.root)
    found = epochs(reopened, Caches(host=fresh(reopened, tmp_path)), 1)
    assert_same(found, expected)
    assert found[0].images_BHWC.any()


def test_padding_stays_zero_beside_cached_chips(dataset: Dataset, tmp_path: Path) -> None:
    cache = fresh(dataset, tmp_path)
    fill(cache, dataset)
    assert cache.holds(np.array([4, -1])).tolist() == [True, False]
    targets_NC = np.ones((len(dataset), 17), np.uint8)
    decoded = DecodedBatches(dataset, targets_NC, 3, threads=1, prefetch_batches=2, caches=Caches(host=cache))
    (batch,) = decoded(FixedSteps([np.array([4, -1, 7])])())
    assert not batch.images_BHWC[1].any() and batch.images_BHWC[[0, 2]].any()


def test_a_process_killed_while_it_fills_leaves_only_whole_chips(dataset: Dataset, tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", FILL, str(dataset.root), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None and writer.stdout.readline() == "half\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    cache = fresh(dataset, tmp_path)
    held_N = cache.holds(np.arange(len(dataset)))
    assert held_N.tolist() == [chip_id <= len(dataset) // 2 for chip_id in range(len(dataset))]
    for chip_id in np.flatnonzero(held_N).tolist():
        assert np.array_equal(taken(cache, dataset, np.array([chip_id]))[0], dataset.pixels(chip_id))
    assert_same(epochs(dataset, Caches(host=cache), 2), epochs(dataset, Caches(), 2))


def test_a_write_that_was_cut_off_is_not_read(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(descriptor: int, data: memoryview, offset: int) -> int:
        write(descriptor, data[: len(data) // 2], offset)
        raise OSError(28, "No space left on device")

    write = os.pwrite
    cache = fresh(dataset, tmp_path)
    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(DatasetError, match=r"No space left on device\); set runtime\.cache_dir to"):
        cache.put(3, dataset.pixels(3))
    assert not cache.holds(np.array([3])).any()


def test_processes_share_one_copy_and_see_each_others_chips_at_once(dataset: Dataset, tmp_path: Path) -> None:
    one, other = fresh(dataset, tmp_path), fresh(dataset, tmp_path)
    writer = subprocess.Popen(
        [sys.executable, "-c", FILL, str(dataset.root), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "half\n"
        for cache in (one, other):
            assert cache.holds(np.arange(20)).all()
            assert np.array_equal(taken(cache, dataset, np.array([19, 2]))[1], dataset.pixels(2))
        assert len(list((tmp_path / "decoded").glob("*.chips"))) == 1
    finally:
        writer.kill()
        writer.communicate()


def packed(chips: Path, out: Path, kind: str, shard_bytes: int) -> Dataset:
    build(BuildOptions(chips / f"train-{kind}", chips / "train.csv", out, PLANET, shard_bytes=shard_bytes))
    return Dataset(out)


def test_chips_of_another_dataset_or_decoder_never_come_out(
    dataset: Dataset, tif_dataset: Dataset, chips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(fresh(dataset, tmp_path / "cache"), dataset)
    ids = np.arange(len(dataset))
    other = packed(chips, tmp_path / "other", "jpg", 256 * 1024)
    for found in (other, tif_dataset):
        assert not fresh(found, tmp_path / "cache").holds(ids).any()
    assert fresh(dataset, tmp_path / "cache").holds(ids).all()
    monkeypatch.setattr(host_cache, "version", lambda name: "0.0.1")
    assert not fresh(dataset, tmp_path / "cache").holds(ids).any()


def test_a_file_of_an_earlier_start_of_the_host_is_removed_unread(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_cache, "_boot", lambda: "earlier")
    before = fresh(dataset, tmp_path)
    fill(before, dataset)
    monkeypatch.undo()
    now = fresh(dataset, tmp_path)
    assert not now.holds(np.arange(len(dataset))).any()
    assert before.path.exists(), "a process still uses it"
    del before
    fresh(dataset, tmp_path)
    assert [path.name for path in (tmp_path / "decoded").glob("*.chips")] == [now.path.name]


@pytest.mark.parametrize("damage", ["head", "length"])
def test_a_file_that_is_not_what_its_name_says_is_made_anew(dataset: Dataset, tmp_path: Path, damage: str) -> None:
    cache = fresh(dataset, tmp_path)
    fill(cache, dataset)
    path = cache.path
    del cache
    with path.open("r+b") as file:
        if damage == "head":
            file.write(b"something else")
        else:
            file.truncate(path.stat().st_size - 4096)
    assert not fresh(dataset, tmp_path).holds(np.arange(len(dataset))).any()


def test_chips_that_do_not_fit_are_refused_with_bytes_and_remedy(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = r"decoded chips of data\.cache=host take 499,712 bytes, and "
    with pytest.raises(DatasetError, match=asked + r"runtime\.cache_gib allows 100,000 bytes; free some, set runtime"):
        fresh(dataset, tmp_path, limit_bytes=100_000)
    disk = psutil.disk_usage("/")._replace(free=5_000)
    monkeypatch.setattr(psutil, "disk_usage", lambda path: disk)
    with pytest.raises(DatasetError, match=asked + r"5,000 bytes are free on its disk; .* or data\.cache=none"):
        fresh(dataset, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(host_cache, "_in_memory", lambda folder: True)
    monkeypatch.setattr(host_cache, "available_memory_bytes", lambda: 7_000)
    with pytest.raises(DatasetError, match=asked + r"7,000 bytes of memory are available"):
        fresh(dataset, tmp_path)
    assert list((tmp_path / "decoded").glob("*.chips")) == []


def test_what_no_run_uses_makes_room_and_what_one_uses_does_not(
    dataset: Dataset, tif_dataset: Dataset, tmp_path: Path
) -> None:
    used = fresh(dataset, tmp_path / "cache")
    path, size = used.path, used.path.stat().st_size
    needed = fresh(tif_dataset, tmp_path / "elsewhere").path.stat().st_size
    with pytest.raises(DatasetError, match=rf"of which runs that go on right now use {size:,}; free some"):
        fresh(tif_dataset, tmp_path / "cache", limit_bytes=needed)
    del used
    fresh(tif_dataset, tmp_path / "cache", limit_bytes=needed)
    assert not path.exists()


def test_a_folder_that_cannot_be_used_is_named_with_the_remedy(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"file/decoded/.*cannot be kept there .*set runtime\.cache_dir"):
        fresh(dataset, tmp_path / "file")


def test_memory_that_a_container_may_not_take_is_not_available() -> None:
    assert 0 < host_cache.available_memory_bytes() <= psutil.virtual_memory().total
    assert host_cache._in_memory(Path("/dev/shm")) == (Path("/dev/shm").is_dir() and os.path.ismount("/dev/shm"))


def test_damage_is_found_before_a_chip_enters_the_cache(dataset: Dataset, tmp_path: Path) -> None:
    for path in dataset.root.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    record = dataset.index()[0]
    tar = tmp_path / f"{dataset.manifest.shards[0].name}.tar"
    data = bytearray(tar.read_bytes())
    data[int(record["offset"]) + int(record["size"]) // 2] ^= 1
    tar.write_bytes(data)
    damaged = Dataset(tmp_path)
    cache = fresh(damaged, tmp_path / "cache")
    with pytest.raises(DatasetError, match=r"chip 'train_0' \(id 0\): its bytes have changed"):
        epochs(damaged, Caches(host=cache), 1)
    assert not cache.holds(np.array([0])).any()


def test_the_configuration_chooses_and_a_run_may_be_resumed_with_another_choice(
    dataset: Dataset, tmp_path: Path
) -> None:
    chosen = {
        kind: load_config("small-resnet-32", [f"data.cache={kind}", f"runtime.cache_dir={tmp_path}"])
        for kind in ("none", "host", "device")
    }
    found = {kind: open_caches(config, dataset, torch.device("cpu")) for kind, config in chosen.items()}
    assert (found["none"].host, found["none"].device) == (None, None)
    assert found["host"].host is not None and found["host"].host.path.parent == tmp_path / "decoded"
    assert found["device"].device is not None
    assert DataConfig().cache == "none"
    data, accelerator = SimpleNamespace(dataset=dataset, groups_digest=None), SimpleNamespace(mixed_precision="no")
    identities = [run_identity(config, data, accelerator) for config in chosen.values()]  # type: ignore[arg-type]
    assert identities[0] == identities[1] == identities[2]
