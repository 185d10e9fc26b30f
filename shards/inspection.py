"""Checks one shard: its two files, the tar byte for byte against its index, and every chip in it."""

from __future__ import annotations

import hashlib
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shards.errors import DatasetError, DecodeError, Problem
from shards.foreign import Sample, list_samples
from shards.moments import Moments, MomentSum, total_moments
from shards.names import NAME_RULE, name_fault, printable
from shards.packing import check_form, class_member, decode_with_offset
from shards.pixels import Pixels
from shards.reader import read_index
from shards.schema import Manifest, Shard, image_digest
from shards.storage import Storage
from shards.ustar import BLOCK_BYTES, archive_end, member_header, padding

MOMENT_CHIPS = 64
MAX_OVERLENGTH = 2**26  # by which a tar may exceed its claim and still be looked at
_DIGEST_RULE = "an image has the digest that the index holds"
_REMEDY = "restore the shard from a copy, or build the dataset again"


@dataclass(frozen=True)
class ShardTask:
    """Which shard to check: number `shard` of the manifest of the dataset in `storage`."""

    storage: Storage
    manifest: Manifest
    shard: int
    strict: bool


@dataclass
class ShardFindings:
    """What a shard holds: its index and pixel sums or None where they are damaged, problems, breaches of rules."""

    index: NDArray[np.void] | None = None
    moments: Moments | None = None
    problems: list[Problem] = field(default_factory=list)
    breaches: Counter[str] = field(default_factory=Counter)


def inspect_shard(task: ShardTask) -> ShardFindings:
    """Checks one shard and never raises for what its files hold."""
    shard = task.manifest.shards[task.shard]
    findings = ShardFindings()
    findings.index, index_problems = _read_index(task.storage, shard)
    tar, tar_problems = _read_tar(task.storage, shard)
    findings.problems += index_problems + tar_problems
    if findings.index is not None and tar is not None:
        _Samples(task, findings, tar).check(findings.index)
    return findings


def _read_index(storage: Storage, shard: Shard) -> tuple[NDArray[np.void] | None, list[Problem]]:
    name = storage.name(shard, "idx")
    rule = "every shard has the index that the manifest describes"
    try:
        return read_index(storage, shard), []
    except DatasetError as error:
        return None, [_unreadable(rule, name, error)]


def _unreadable(rule: str, name: str, error: DatasetError) -> Problem:
    found, _, remedy = str(error).removeprefix(f"{name}: ").rpartition("; ")
    return Problem(rule, printable(name), 0, printable(found), remedy)


def _read_tar(storage: Storage, shard: Shard) -> tuple[memoryview | None, list[Problem]]:
    name = storage.name(shard, "tar")
    rule = "every shard has the tar that the manifest describes"
    try:
        with storage.open(shard, "tar") as file:
            size = file.seek(0, 2)
            if size > 2 * shard.bytes + MAX_OVERLENGTH:
                # A sparse file can claim more than anybody can read.
                return None, [Problem(rule, printable(name), 0, _size_fault(size, shard), _REMEDY)]
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            tar = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
    except OSError as error:
        return None, [Problem(rule, printable(name), 0, str(error.strerror), _REMEDY)]
    except DatasetError as error:
        return None, [_unreadable(rule, name, error)]
    faults = []
    if size != shard.bytes:
        faults.append(_size_fault(size, shard))
    if digest != shard.sha256:
        faults.append(f"sha256 {digest} where the manifest says {shard.sha256}")
    return tar, [Problem(rule, printable(name), 0, fault, _REMEDY) for fault in faults]


def _size_fault(size: int, shard: Shard) -> str:
    return f"{size} bytes where the manifest says {shard.bytes}"


def _differs(image: memoryview, record: np.void) -> bool:
    return image_digest(image) != bytes(record["digest"])


class _Samples:
    """Walks a tar sample by sample, holding its bytes against those that the index makes necessary."""

    def __init__(self, task: ShardTask, findings: ShardFindings, tar: memoryview) -> None:
        self._task, self._findings, self._tar = task, findings, tar
        self._where = printable(task.storage.name(task.manifest.shards[task.shard], "tar"))
        self._kind = task.manifest.image.kind
        self._form = task.manifest.image.pixels
        self._vocabulary = task.manifest.vocabulary
        self._broken_rules: dict[int, list[str]] = {}

    def check(self, index: NDArray[np.void]) -> None:
        packed = self._task.manifest.tars == "packed"
        walk = self._walk if packed else self._find
        position = 0
        moments: MomentSum | None = None  # not before a chip of the claimed form has come: it may be absurd
        parts: list[Moments] = []
        for number, record in enumerate(index):
            key = bytes(record["key"]).decode("utf-8", "surrogateescape")
            for rule, fault in walk(record, key, position):
                self._report(key, rule, fault)
            position = self._end(record)
            pixels = self._pixels(record, key)
            if pixels is not None:
                moments = moments or MomentSum(self._form)
                moments.add(pixels)
            if moments and (number % MOMENT_CHIPS == MOMENT_CHIPS - 1 or number == len(index) - 1):
                parts.append(moments.total())
                moments = None
            self._labels(record, key)
        self._findings.moments = total_moments(parts, self._form.bands)
        if packed and bytes(self._tar[position:]) != archive_end(position):
            self._report(None, "a tar ends in zeros after its last sample", f"other bytes from {position} on")

    @cached_property
    def _listed(self) -> dict[tuple[str, int, int], Sample]:
        """The samples of a tar that somebody else has laid out, by key, offset and size."""
        shard = self._task.manifest.shards[self._task.shard]
        with self._task.storage.open(shard, "tar") as file:
            listing = list_samples(file, self._where)
        self._findings.problems += listing.problems
        return {(sample.key, sample.offset, sample.size): sample for sample in listing.samples}

    def _find(self, record: np.void, key: str, position: int) -> Iterator[tuple[str, str]]:
        offset, size = int(record["offset"]), int(record["size"])
        if (key, offset, size) not in self._listed:
            yield "a chip of the index is a member of its tar", f"no such image at byte {offset}"
        elif _differs(self._tar[offset : offset + size], record):
            yield _DIGEST_RULE, "its bytes have changed"

    def _report(self, key: str | None, rule: str, fault: str, remedy: str = _REMEDY) -> None:
        value = fault if key is None else f"chip {printable(repr(key))}: {fault}"
        self._findings.problems.append(Problem(rule, self._where, 0, value, remedy))

    def _end(self, record: np.void) -> int:
        offset, size = int(record["offset"]), int(record["size"])
        end = offset + size + len(padding(size))
        if record["labelled"]:
            end += len(class_member("_.", int(record["labels"])))
        return end

    def _walk(self, record: np.void, key: str, position: int) -> Iterator[tuple[str, str]]:
        offset, size = int(record["offset"]), int(record["size"])
        fault = name_fault(key)
        name = f"{key}.{self._kind}"
        if fault:
            yield NAME_RULE, fault
            return
        if offset != position + BLOCK_BYTES:
            yield "samples follow each other without a gap", f"offset {offset} where {position + BLOCK_BYTES} is next"
        if offset < BLOCK_BYTES or offset + size > len(self._tar):
            yield "a sample lies within its tar", f"bytes {offset} to {offset + size} of {len(self._tar)}"
            return
        header = bytes(self._tar[offset - BLOCK_BYTES : offset])
        if header != member_header(name, size):
            found = printable(repr(header[:100].rstrip(b"\0").decode("utf-8", "surrogateescape")))
            yield "a member's header is a USTAR one of the index's name and size", f"found that of {found}"
        if _differs(self._tar[offset : offset + size], record):
            yield _DIGEST_RULE, "its bytes have changed"
        rest = padding(size)
        if record["labelled"]:
            rest += class_member(name, int(record["labels"]))
        if bytes(self._tar[offset + size : offset + size + len(rest)]) != rest:
            text = bytes(self._tar[offset + size + len(padding(size)) + BLOCK_BYTES :][:20]).rstrip(b"\0")
            found = f"found {text!r}" if record["labelled"] else "found other bytes than zeros"
            yield "an image is followed by its padding and by KEY.cls with the index's label bits", found

    def _pixels(self, record: np.void, key: str) -> Pixels | None:
        offset, size = int(record["offset"]), int(record["size"])
        image = self._tar[offset : offset + size]
        try:
            pixels, raw_offset = decode_with_offset(image, self._kind)
            check_form(pixels, self._form)
        except DecodeError as error:
            self._report(key, error.rule, error.value, error.remedy)
            return None
        if raw_offset != int(record["pixels"]):
            rule = "the index tells from where on the pixels lie uncompressed"
            self._report(key, rule, f"{int(record['pixels'])} where it is {raw_offset}")
        return pixels

    def _labels(self, record: np.void, key: str) -> None:
        bits, count = int(record["labels"]), len(self._vocabulary.labels)
        if bits >> count or (bits and not record["labelled"]):
            found = f"bits {bits:#x} of {count} labels" if record["labelled"] else "labels of an unlabelled chip"
            self._report(key, "label bits are those of the manifest's labels", found)
            return
        if not record["labelled"]:
            return
        if bits not in self._broken_rules:
            self._broken_rules[bits] = self._vocabulary.breaches(bits)
        broken = self._broken_rules[bits]
        self._findings.breaches.update(broken)
        if self._task.strict:
            for rule in broken:
                names = " ".join(self._vocabulary.names(bits)) or "no labels"
                remedy = "correct the labels and build again, or verify without --strict"
                self._report(key, f"label sets follow the vocabulary's rules: {rule}", names, remedy)
