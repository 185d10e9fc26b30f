"""Shards follow from names and sizes alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shards.layout import CHUNK_BYTES, CHUNK_CHIPS, chunks, fingerprint, plan_shards
from shards.pixels import PixelFormat
from shards.sources import Record

FORM = PixelFormat(8, 8, 3, "uint8")


def records(sizes: list[int]) -> list[Record]:
    return [Record(f"a{i}", f"/chips/a{i}.jpg", size, 1, i) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("shard_bytes", [1, 20480, 50000, 10**9])
def test_every_chip_is_in_one_shard_in_order_and_shards_stay_within_their_size(shard_bytes: int) -> None:
    chips = records([(i * 37) % 9000 for i in range(100)])
    plans = plan_shards(chips, shard_bytes)
    assert [record for plan in plans for record in plan.records] == chips
    assert all(plan.bytes <= shard_bytes or len(plan.records) == 1 for plan in plans)
    assert [plan.name for plan in plans] == [f"chips-{number:06d}" for number in range(len(plans))]


def test_labels_and_times_move_no_boundary() -> None:
    chips = records([3000] * 50)
    others = [replace(record, labels=None, mtime_ns=77) for record in chips]
    counts = [[len(plan.records) for plan in plan_shards(some, 30720)] for some in (chips, others)]
    assert counts[0] == counts[1]


def test_chunks_hold_few_chips_and_few_bytes() -> None:
    (plan,) = plan_shards(records([10] * 130 + [CHUNK_BYTES // 2 + 1] * 3), 10**9)
    pieces = list(chunks(plan, "jpg", FORM, 3))
    assert [record for piece in pieces for record in piece.records] == list(plan.records)
    assert [len(piece.records) for piece in pieces] == [CHUNK_CHIPS, CHUNK_CHIPS, 3, 1, 1]


def test_whatever_changes_a_shards_bytes_changes_its_fingerprint() -> None:
    chips = records([10, 20])
    (plan,) = plan_shards(chips, 10**9)
    prints = {fingerprint(plan, "jpg", FORM, 3), fingerprint(plan, "tif", FORM, 3), fingerprint(plan, "jpg", FORM, 4)}
    prints.add(fingerprint(plan, "jpg", replace(FORM, height=9), 3))
    for change in ({"key": "b"}, {"size": 11}, {"mtime_ns": 2}, {"labels": None}, {"labels": 7}):
        (other,) = plan_shards([replace(chips[0], **change), chips[1]], 10**9)  # type: ignore[arg-type]
        prints.add(fingerprint(other, "jpg", FORM, 3))
    assert len(prints) == 9
    moved = [replace(record, path="/elsewhere/x.jpg") for record in chips]
    assert fingerprint(plan_shards(moved, 10**9)[0], "jpg", FORM, 3) in prints
