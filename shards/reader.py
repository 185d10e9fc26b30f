"""Reads a dataset: the manifest, the indexes, and any chip by its id from memory-mapped tars.

A chip's id is its place in the dataset, 0 to count - 1: the shards in the manifest's order, the chips of
each in its index's.
"""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import DatasetError, DecodeError
from shards.pixels import Pixels, decode, raw_pixels
from shards.schema import MANIFEST, Manifest, Shard, parse_index, parse_manifest


@dataclass(frozen=True)
class _OpenShard:
    index: NDArray[np.void]
    tar: mmap.mmap | bytes


class Dataset:
    """A dataset opened for reading; safe to use from many threads.

    Attributes:
        root: its folder.
        manifest: its manifest.
        digest: sha256 of the manifest's bytes, which stands for the whole content.

    Raises:
        DatasetError: there is no whole dataset in `root`.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        path = self.root / MANIFEST
        if not self.root.is_dir():
            raise DatasetError(f"{self.root}: no such folder; make a dataset with planet-shard build --out {self.root}")
        if not path.is_file():
            raise DatasetError(
                f"{self.root}: no {MANIFEST}, so its build did not finish (or it is not a dataset); "
                "run the same planet-shard build again, which goes on where it stopped"
            )
        data = path.read_bytes()
        self.manifest: Manifest = parse_manifest(data, str(path))
        self.digest = hashlib.sha256(data).hexdigest()
        self._starts = np.cumsum([0] + [shard.count for shard in self.manifest.shards])
        self._open: dict[int, _OpenShard] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.manifest.count

    def index(self) -> NDArray[np.void]:
        """The records of all chips (N,), of schema.index_dtype."""
        parts = [self._shard(number).index for number in range(len(self.manifest.shards))]
        if not parts:
            raise DatasetError(f"{self.root}: the dataset has no chips")
        return np.concatenate(parts)

    def keys(self, ids: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The names of chips."""
        return [bytes(self._record(int(i))[1]["key"]).decode() for i in ids]

    def image(self, chip_id: int) -> memoryview:
        """The bytes of a chip's image file, checked against its digest.

        Raises:
            DatasetError: the bytes are not those that were packed.
        """
        shard, record = self._record(chip_id)
        offset, size = int(record["offset"]), int(record["size"])
        data = memoryview(shard.tar)[offset : offset + size]
        if hashlib.sha256(data).digest() != record["digest"].tobytes():
            raise DatasetError(
                f"{self._name(chip_id)}: its bytes have changed since the build (sha256 differs); "
                "run planet-shard verify, then restore or rebuild the shard"
            )
        return data

    def pixels(self, chip_id: int, out: Pixels | None = None) -> Pixels:
        """A chip's pixels (H, W, bands), in the dataset's dtype; written into `out` when it's given.

        Raises:
            DatasetError: the chip's bytes have changed or do not decode.
        """
        image = self.manifest.image
        form = image.pixels
        if out is None:
            out = np.empty((form.height, form.width, form.bands), form.dtype)
        data = self.image(chip_id)
        raw_offset = int(self._record(chip_id)[1]["pixels"])
        try:
            if raw_offset:
                return raw_pixels(data, raw_offset, form, out)
            return decode(data, image.kind, out)
        except DecodeError as error:
            raise DatasetError(f"{self._name(chip_id)}: {error}") from error

    def _name(self, chip_id: int) -> str:
        shard = self.manifest.shards[self._locate(chip_id)[0]]
        return f"{self.root / shard.name}.tar, chip {self.keys([chip_id])[0]!r} (id {chip_id})"

    def _locate(self, chip_id: int) -> tuple[int, int]:
        if not 0 <= chip_id < len(self):
            raise IndexError(f"chip id {chip_id} of {len(self)} chips")
        number = int(np.searchsorted(self._starts, chip_id, side="right")) - 1
        return number, chip_id - int(self._starts[number])

    def _record(self, chip_id: int) -> tuple[_OpenShard, np.void]:
        number, row = self._locate(chip_id)
        shard = self._shard(number)
        return shard, shard.index[row]

    def _shard(self, number: int) -> _OpenShard:
        shard = self._open.get(number)
        if shard is None:
            with self._lock:
                shard = self._open.get(number)
                if shard is None:
                    shard = self._open[number] = open_shard(self.root, self.manifest.shards[number])
        return shard


def open_shard(root: Path, shard: Shard) -> _OpenShard:
    """Maps a shard's tar and reads its index.

    Raises:
        DatasetError: a file is missing, of another size, or the index is not the manifest's.
    """
    tar_path, index_path = root / f"{shard.name}.tar", root / f"{shard.name}.idx"
    try:
        index = parse_index(index_path.read_bytes(), shard, str(index_path))
        with tar_path.open("rb") as file:
            size = file.seek(0, 2)
            if size != shard.bytes:
                raise DatasetError(
                    f"{tar_path}: {size} bytes where the manifest says {shard.bytes}; restore or rebuild the shard"
                )
            tar = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise DatasetError(
            f"{error.filename}: {error.strerror}; restore the file or run planet-shard build again"
        ) from error
    return _OpenShard(index, tar)
