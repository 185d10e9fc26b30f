"""Batches hold the pixels and labels of the ids that were planned, in order, whatever the threads do."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from webdataset.pipeline import DataPipeline

from planet_dist.plan import Plan
from planet_dist.stream import Batch, DecodedBatches, FixedSteps, OnDevice, PlannedSteps, decode_threads
from shards.errors import DatasetError
from shards.reader import Dataset


def targets(dataset: Dataset) -> np.ndarray:
    return dataset.manifest.vocabulary.matrix(dataset.index()["labels"])


def decoded(dataset: Dataset, largest: int = 16, threads: int = 2, prefetch: int = 2) -> DecodedBatches:
    return DecodedBatches(dataset, targets(dataset), largest, threads=threads, prefetch_batches=prefetch)


def plan_of(dataset: Dataset) -> Plan:
    return Plan(np.arange(len(dataset)), np.array([0, len(dataset)]), 16, seed=3)


def epoch(dataset: Dataset, *stages: object, rank: int = 0, num_ranks: int = 1, first_step: int = 0) -> list[Batch]:
    """An epoch's batches, copied out of the ring."""
    source = PlannedSteps(plan_of(dataset), range(1), first_step, rank=rank, num_ranks=num_ranks)
    pipeline = DataPipeline(source, decoded(dataset), *stages, OnDevice(torch.device("cpu")))
    return [replace(batch, images_BHWC=batch.images_BHWC.clone()) for batch in pipeline]


def test_training_sees_the_pixels_that_pil_gives_of_a_jpeg(dataset: Dataset) -> None:
    for batch in epoch(dataset):
        for chip_id, image in zip(batch.ids_B, batch.images_BHWC, strict=True):
            pil = Image.open(io.BytesIO(dataset.image(int(chip_id)))).convert("RGB")
            assert np.array_equal(image.numpy(), np.asarray(pil))


def test_training_sees_the_pixels_that_tifffile_gives(tif_dataset: Dataset) -> None:
    for batch in epoch(tif_dataset)[:3]:
        assert batch.images_BHWC.dtype == torch.uint16
        for chip_id, image in zip(batch.ids_B, batch.images_BHWC, strict=True):
            assert np.array_equal(image.numpy(), tifffile.imread(io.BytesIO(tif_dataset.image(int(chip_id)))))


def test_two_ranks_stream_the_global_batches_of_one_in_the_same_order(dataset: Dataset) -> None:
    alone = epoch(dataset)
    halves = [epoch(dataset, rank=rank, num_ranks=2) for rank in (0, 1)]
    for whole, first, second in zip(alone, *halves, strict=True):
        assert np.array_equal(whole.ids_B, np.concatenate([first.ids_B, second.ids_B]))
        assert torch.equal(whole.images_BHWC, torch.cat([first.images_BHWC, second.images_BHWC]))
        assert torch.equal(whole.targets_BC, torch.cat([first.targets_BC, second.targets_BC]))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("prefetch", [2, 5])
def test_threads_and_prefetching_do_not_change_a_batch(dataset: Dataset, threads: int, prefetch: int) -> None:
    expected = epoch(dataset)
    source = PlannedSteps(plan_of(dataset), range(1), 0, rank=0, num_ranks=1)
    found = DataPipeline(source, decoded(dataset, threads=threads, prefetch=prefetch))
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one.ids_B, other.ids_B)
        assert torch.equal(one.images_BHWC, other.images_BHWC)


def test_a_stream_begun_at_a_step_goes_on_as_one_that_came_there(dataset: Dataset) -> None:
    later = epoch(dataset, first_step=5)
    assert [batch.step for batch in later] == [5, 6, 7]
    for one, other in zip(epoch(dataset)[5:], later, strict=True):
        assert np.array_equal(one.ids_B, other.ids_B)


def test_epochs_follow_each_other_without_a_pause(dataset: Dataset) -> None:
    source = PlannedSteps(plan_of(dataset), range(2, 4), 6, rank=0, num_ranks=1)
    assert [(step.epoch, step.step) for step in source()] == [(2, 6), (2, 7)] + [(3, step) for step in range(8)]


def test_padding_is_zero_pixels_and_no_labels(dataset: Dataset) -> None:
    ids = np.array([4, -1, 7, -1])
    (batch,) = DataPipeline(FixedSteps([ids]), decoded(dataset))
    assert batch.images_BHWC[[1, 3]].count_nonzero() == 0
    assert batch.targets_BC[[1, 3]].count_nonzero() == 0
    assert np.array_equal(batch.targets_BC[[0, 2]].numpy(), targets(dataset)[[4, 7]])


def test_a_users_own_stage_goes_between(dataset: Dataset) -> None:
    def brighter(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield replace(batch, images_BHWC=batch.images_BHWC // 2 + 100)

    for plain, changed in zip(epoch(dataset), epoch(dataset, brighter), strict=True):
        assert torch.equal(changed.images_BHWC, plain.images_BHWC // 2 + 100)


def test_a_damaged_chip_stops_the_stream_at_its_step_with_its_name(dataset: Dataset, tmp_path: Path) -> None:
    for path in dataset.root.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    record = dataset.index()[0]
    tar = tmp_path / f"{dataset.manifest.shards[0].name}.tar"
    with tar.open("r+b") as file:
        file.seek(int(record["offset"]) + int(record["size"]) // 2)
        byte = file.read(1)
        file.seek(-1, io.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    damaged = Dataset(tmp_path)
    steps = FixedSteps([np.array([5, 6]), np.array([0, 1])])
    found = iter(DataPipeline(steps, decoded(damaged)))
    assert next(found).step == 0
    with pytest.raises(DatasetError, match=r"chip 'train_0' \(id 0\): its bytes have changed since the build"):
        next(found)


def test_leaving_a_stream_early_ends_its_threads(dataset: Dataset) -> None:
    batches = iter(decoded(dataset)(FixedSteps([np.arange(16)] * 50)()))
    next(batches)
    assert any(thread.name.startswith("decode") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


def test_ranks_of_a_host_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planet_dist.stream.available_cores", lambda: 8)
    assert decode_threads(0, local_ranks=4) == 2
    assert decode_threads(0, local_ranks=16) == 1
    assert decode_threads(5, local_ranks=4) == 5
