"""Chips kept on the device give the batches of the decoder, in any order, with padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from planet_dist import device_cache
from planet_dist.device_cache import DeviceCache
from planet_dist.stream import Caches, DecodedBatches, FixedSteps, OnDevice
from shards.errors import DatasetError
from shards.reader import Dataset
from tests.test_host_cache import assert_same, epochs

CPU = torch.device("cpu")


@pytest.mark.parametrize("fixture", ["dataset", "tif_dataset"])
def test_batches_are_the_same_with_a_cache_on_the_device_as_without(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    dataset: Dataset = request.getfixturevalue(fixture)
    cache = DeviceCache(dataset, CPU)
    assert_same(epochs(dataset, Caches(device=cache), 3), epochs(dataset, Caches(), 3))
    assert cache.holds(np.arange(len(dataset))).all()


def test_a_chip_is_decoded_once(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    pixels = Dataset.pixels

    def counted(self: Dataset, chip_id: int, out: np.ndarray | None = None) -> np.ndarray:
        read.append(chip_id)
        return pixels(self, chip_id, out)

    monkeypatch.setattr(Dataset, "pixels", counted)
    batches = [np.arange(0, 16), np.arange(16, 32), np.arange(0, 16), np.arange(8, 40), np.arange(0, 40)]
    caches = Caches(device=DeviceCache(dataset, CPU))
    targets_NC = np.zeros((len(dataset), 17), np.uint8)
    decoded = DecodedBatches(dataset, targets_NC, 40, threads=2, prefetch_batches=2, caches=caches)
    # One after another: of batches that are read ahead, a later one may ask for what an earlier one still decodes.
    for ids in batches:
        (batch,) = OnDevice(CPU, caches.device)(decoded(FixedSteps([ids])()))
        assert torch.equal(batch.images_BHWC[3], torch.from_numpy(pixels(dataset, int(ids[3]))))
    assert sorted(read) == list(range(40))


def test_padding_is_zero_beside_chips_on_the_device(dataset: Dataset) -> None:
    caches = Caches(device=DeviceCache(dataset, CPU))
    targets_NC = np.ones((len(dataset), 17), np.uint8)
    decoded = DecodedBatches(dataset, targets_NC, 4, threads=1, prefetch_batches=2, caches=caches)
    for _ in range(2):
        (batch,) = OnDevice(CPU, caches.device)(decoded(FixedSteps([np.array([119, -1, 0, -1])])()))
        assert not batch.images_BHWC[[1, 3]].any() and batch.images_BHWC[[0, 2]].any()
        assert batch.targets_BC.sum(1).tolist() == [17, 0, 17, 0]


def test_chips_that_would_crowd_out_the_network_are_refused(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device_cache, "available_memory_bytes", lambda: 700_000)
    with pytest.raises(
        DatasetError, match=r"120 chips take 371,712 bytes on cpu, and 700,000 are free .* data\.cache=host, or none"
    ):
        DeviceCache(dataset, CPU)
