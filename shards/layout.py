"""Which chip goes into which shard: a pure function of names and file sizes.

Parts of a large folder can therefore be packed on different machines, and chips that turn out to be bad leave
their shard without moving the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shards.packing import Chunk
from shards.pixels import PixelFormat
from shards.schema import VERSION
from shards.sources import Record
from shards.ustar import archive_end, member_bytes

CHUNK_CHIPS = 64  # as many as moments.MomentSum adds up exactly
CHUNK_BYTES = 8 * 1024 * 1024
LABEL_BYTES = 20  # digits of the largest label set


@dataclass(frozen=True)
class ShardPlan:
    """One shard to make: its name without an ending, its chips, and the bytes of its tar at most."""

    name: str
    records: tuple[Record, ...]
    bytes: int


def plan_shards(records: Sequence[Record], shard_bytes: int) -> list[ShardPlan]:
    """Fills shards one after the other, each up to `shard_bytes`; a larger chip gets a shard of its own.

    Every chip counts as a labelled one, so that labels move no boundary.
    """
    groups: list[list[Record]] = []
    sizes: list[int] = []
    for record in records:
        grown = member_bytes(record.size) + member_bytes(LABEL_BYTES)
        if not groups or _archive_bytes(sizes[-1] + grown) > shard_bytes:
            groups.append([])
            sizes.append(0)
        groups[-1].append(record)
        sizes[-1] += grown
    return [
        ShardPlan(f"chips-{number:06d}", tuple(group), _archive_bytes(size))
        for number, (group, size) in enumerate(zip(groups, sizes, strict=True))
    ]


def _archive_bytes(members_bytes: int) -> int:
    return members_bytes + len(archive_end(members_bytes))


def chunks(plan: ShardPlan, kind: str, form: PixelFormat, key_bytes: int) -> Iterator[Chunk]:
    """A shard's chips in pieces of at most 64 chips and about 8 MiB, the unit of work of one worker."""
    waiting: list[Record] = []
    waiting_bytes = 0
    for record in plan.records:
        if waiting and (len(waiting) == CHUNK_CHIPS or waiting_bytes + record.size > CHUNK_BYTES):
            yield Chunk(tuple(waiting), kind, form, key_bytes)
            waiting, waiting_bytes = [], 0
        waiting.append(record)
        waiting_bytes += record.size
    if waiting:
        yield Chunk(tuple(waiting), kind, form, key_bytes)


def fingerprint(plan: ShardPlan, kind: str, form: PixelFormat, key_bytes: int) -> str:
    """A digest of all that a shard's bytes depend on: a change in any of it means packing it again."""
    chips = [(record.key, record.size, record.mtime_ns, record.labels) for record in plan.records]
    return hashlib.sha256(repr((VERSION, plan.name, kind, str(form), key_bytes, chips)).encode()).hexdigest()
