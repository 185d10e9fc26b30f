"""Reads a dataset: the manifest, the indexes, and any chip by its id from memory-mapped tars.

A chip's id is its place in the dataset, 0 to count - 1: the shards in the manifest's order, the chips of
each in its index's. A dataset that lies elsewhere is read the same way, from tars that are fetched into a cache.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import DatasetError, DecodeError
from shards.names import printable
from shards.pixels import Pixels, decode, raw_pixels
from shards.schema import (
    DIGEST_BYTES,
    MANIFEST,
    Manifest,
    Shard,
    image_digest,
    is_sealed,
    most_index_bytes,
    parse_index,
    parse_manifest,
)
from shards.storage import CacheOptions, Storage, open_storage, read_at_most

_INDEX_FETCHERS = 8


@dataclass(frozen=True)
class _OpenTar:
    """A shard's tar, and of its index what reading a chip takes: each row's values by a call that costs little."""

    data: memoryview
    status: os.stat_result
    offset: Callable[[int], int]
    size: Callable[[int], int]
    raw_offset: Callable[[int], int]
    digests: bytes


class Dataset:
    """A dataset opened for reading; safe to use from many threads.

    Args:
        location: its folder, or the URL of one (shards.location).
        cache: where the files of a dataset behind a URL are kept.

    Attributes:
        storage: where its files are.
        root: its folder; for a dataset behind a URL, the cache's.
        shown: its location for people, without credentials.
        manifest: its manifest.
        digest: sha256 of the manifest's bytes, which stands for the whole content.
        sealed: whether the manifest would show a change of its own (schema.sealed).

    Raises:
        DatasetError: there is no whole dataset at `location`.
    """

    def __init__(self, location: str | Path, cache: CacheOptions | None = None) -> None:
        self.storage: Storage = open_storage(location, cache)
        self.root, self.shown = self.storage.root, self.storage.shown
        data = self.storage.manifest()
        self.manifest: Manifest = parse_manifest(data, f"{self.shown.rstrip('/')}/{MANIFEST}")
        self._kind, self._form = self.manifest.image.kind, self.manifest.image.pixels
        self.sealed = is_sealed(data)
        self.digest = hashlib.sha256(data).hexdigest()
        self._starts = np.cumsum([0] + [shard.count for shard in self.manifest.shards])
        self._first_ids: list[int] = self._starts.tolist()
        self._indexes: dict[int, NDArray[np.void]] = {}
        self._tars: dict[int, _OpenTar] = {}
        self._locks: defaultdict[int, threading.RLock] = defaultdict(threading.RLock)

    def __len__(self) -> int:
        return self.manifest.count

    def index(self) -> NDArray[np.void]:
        """The records of all chips (N,), of schema.index_dtype.

        Raises:
            DatasetError: there are none, an index is damaged, two chips bear one name, or labels are unknown.
        """
        numbers = range(len(self.manifest.shards))
        if not numbers:
            raise DatasetError(f"{self.shown}: the dataset has no chips")
        if self.storage.remote:
            with ThreadPoolExecutor(_INDEX_FETCHERS) as pool:
                parts = list(pool.map(self._index, numbers))
        else:
            for number in numbers:
                self._tar(number)  # a tar that is missing is better missed now
            parts = [self._index(number) for number in numbers]
        index_N = np.concatenate(parts)
        self._check_labels_and_names(index_N)
        return index_N

    def keys(self, ids: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The names of chips."""
        return [bytes(self._record(int(i))[1]["key"]).decode("utf-8", "backslashreplace") for i in ids]

    def image(self, chip_id: int) -> memoryview:
        """The bytes of a chip's image file, checked against its digest.

        Raises:
            DatasetError: the bytes are not those that were packed.
        """
        return self._checked(chip_id)[0]

    def pixels(self, chip_id: int, out: Pixels | None = None) -> Pixels:
        """A chip's pixels (H, W, bands), in the dataset's dtype; written into `out` when it's given.

        Raises:
            DatasetError: the chip's bytes have changed or do not decode.
        """
        form = self._form
        if out is None:
            out = np.empty((form.height, form.width, form.bands), form.dtype)
        data, raw_offset = self._checked(chip_id)
        try:
            if raw_offset:
                return raw_pixels(data, raw_offset, form, out)
            return decode(data, self._kind, out)
        except DecodeError as error:
            raise DatasetError(f"{self._name(chip_id)}: {error}") from error

    def prefetch(self, ids: Iterable[int]) -> None:
        """Starts to fetch the shards of chips that are soon to be read, where they are not on this host yet."""
        if self.storage.remote:
            places = np.unique(np.fromiter(ids, np.int64))
            numbers = np.unique(np.searchsorted(self._starts, places[places >= 0], side="right") - 1)
            self.storage.prefetch([self.manifest.shards[number] for number in numbers.tolist()])

    def _checked(self, chip_id: int) -> tuple[memoryview, int]:
        """A chip's image and from where in it its pixels lie as they are; once for every chip that training reads."""
        number, row = self._locate(chip_id)
        tar = self._tars.get(number) or self._tar(number)
        if (data := _sound(tar, row)) is None:
            data = self._fetched_again(chip_id, number, row, tar)
        return data, tar.raw_offset(row)

    def _fetched_again(self, chip_id: int, number: int, row: int, tar: _OpenTar) -> memoryview:
        """A chip that was found changed, out of a new copy of its shard where there is one to fetch."""
        if self.storage.remote:
            # A cache's disk can go bad like any other.
            with self._locks[number]:
                if self._tars.get(number) is tar:
                    self.storage.discard(self.manifest.shards[number])
                    del self._tars[number]
            if (data := _sound(self._tar(number), row)) is not None:
                return data
        raise DatasetError(
            f"{self._name(chip_id)}: its bytes have changed since the build (its digest differs); "
            "run planet-shard verify, then restore or rebuild the shard"
        )

    def _check_labels_and_names(self, index_N: NDArray[np.void]) -> None:
        allowed = np.uint64((1 << len(self.manifest.labels)) - 1)
        labels_N = index_N["labels"]
        if ((labels_N & ~allowed) != 0).any() or (labels_N[~index_N["labelled"]] != 0).any():
            raise DatasetError(
                f"{self.shown}: an index holds labels that the manifest lacks, or labels of unlabelled chips; "
                "run planet-shard verify, then restore or rebuild the dataset"
            )
        keys, counts = np.unique(index_N["key"], return_counts=True)
        if len(keys) != len(index_N):
            twice = bytes(keys[counts > 1][0]).decode("utf-8", "surrogateescape")
            raise DatasetError(
                f"{self.shown}: the chip {printable(repr(twice))} stands in it more than once; "
                "run planet-shard verify, then restore or rebuild the dataset"
            )

    def _name(self, chip_id: int) -> str:
        shard = self.manifest.shards[self._locate(chip_id)[0]]
        return f"{self.storage.name(shard, 'tar')}, chip {self.keys([chip_id])[0]!r} (id {chip_id})"

    def _locate(self, chip_id: int) -> tuple[int, int]:
        if not 0 <= chip_id < len(self):
            raise IndexError(f"chip id {chip_id} of {len(self)} chips")
        number = bisect_right(self._first_ids, chip_id) - 1
        return number, chip_id - self._first_ids[number]

    def _record(self, chip_id: int) -> tuple[int, np.void]:
        number, row = self._locate(chip_id)
        index = self._indexes.get(number)
        return number, (self._index(number) if index is None else index)[row]

    def _index(self, number: int) -> NDArray[np.void]:
        index = self._indexes.get(number)
        if index is None:
            with self._locks[number]:
                index = self._indexes.get(number)
                if index is None:
                    index = self._indexes[number] = read_index(self.storage, self.manifest.shards[number])
        return index

    def _tar(self, number: int) -> _OpenTar:
        tar = self._tars.get(number)
        if tar is None:
            with self._locks[number]:
                tar = self._tars.get(number)
                if tar is None:
                    tar = self._tars[number] = _open_tar(
                        self.storage, self.manifest.shards[number], self._index(number)
                    )
                    if self.storage.remote:
                        self._let_go()
        return tar

    def _let_go(self) -> None:
        """Closes tars that the cache has removed, so that their space comes back."""
        for number, tar in list(self._tars.items()):
            if not self.storage.holds(self.manifest.shards[number], tar.status):
                self._tars.pop(number, None)


def read_index(storage: Storage, shard: Shard) -> NDArray[np.void]:
    """A shard's index, held against the manifest.

    Raises:
        DatasetError: it's missing, of another size, or not the manifest's.
    """
    try:
        with storage.open(shard, "idx") as file:
            data = read_at_most(file, most_index_bytes(shard))
    except OSError as error:
        raise _unreadable(storage.name(shard, "idx"), error) from error
    return parse_index(data, shard, storage.name(shard, "idx"))


def _sound(tar: _OpenTar, row: int) -> memoryview | None:
    """An image, unless its digest differs."""
    offset = tar.offset(row)
    data = tar.data[offset : offset + tar.size(row)]
    digest = tar.digests[DIGEST_BYTES * row : DIGEST_BYTES * (row + 1)]
    return data if image_digest(data) == digest else None


def _open_tar(storage: Storage, shard: Shard, index: NDArray[np.void]) -> _OpenTar:
    try:
        with storage.open(shard, "tar") as file:
            status = os.fstat(file.fileno())
            if status.st_size != shard.bytes:
                raise DatasetError(
                    f"{storage.name(shard, 'tar')}: {status.st_size} bytes where the manifest says {shard.bytes}; "
                    "restore or rebuild the shard"
                )
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if status.st_size else b""
            return _OpenTar(
                memoryview(data),
                status,
                offset=index["offset"].item,
                size=index["size"].item,
                raw_offset=index["pixels"].item,
                digests=index["digest"].tobytes(),
            )
    except OSError as error:
        raise _unreadable(storage.name(shard, "tar"), error) from error


def _unreadable(name: str, error: OSError) -> DatasetError:
    return DatasetError(f"{name}: {error.strerror}; restore the file or run planet-shard build again")
