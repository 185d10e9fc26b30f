"""Decoded chips in a file of the host, filled by whoever decodes a chip first and shared by all processes.

FOLDER/decoded/
  KEY-BOOT.chips   one dataset's chips: a head that says what the file is, a flag a chip, then the pixels by id
  .lock            held for a moment while a file is opened, made or removed

KEY stands for the dataset's content, the form of its chips and the decoder, so that nothing else is ever read out of a
file; BOOT for this start of this host's kernel. A chip's flag is set after its pixels were handed to the kernel: a
process that is killed between the two leaves a chip that is decoded again. What a process has written outlives it in
the kernel's page cache, and a crash of the whole host leaves a file of another start, which is never read again.

Files stay for the next run. Those that nobody uses make room, the least recently used first. A process that uses a file
holds a lock on it (flock), which ends with the process.

Letters in array names: N chips of the dataset, B of one batch, H rows, W columns, C bands.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from shards import pixels
from shards.errors import DatasetError
from shards.pixels import Pixels
from shards.reader import Dataset

_ALIGNMENT = 64 * 1024  # of the parts of a file: no page of any kernel is larger
_DECODERS = ("simplejpeg", "tifffile")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class HostCache:
    """The decoded chips of one dataset on this host; safe to use from many threads and processes.

    Args:
        folder: on a disk of this host, or in its memory (/dev/shm).
        dataset: whose chips they are.
        limit_bytes: that all files in the folder may take.

    Attributes:
        path: the file.

    Raises:
        DatasetError: the chips don't fit, or the folder cannot be used.
    """

    def __init__(self, folder: Path, dataset: Dataset, limit_bytes: int) -> None:
        form = dataset.manifest.image.pixels
        shape = (form.height, form.width, form.bands)
        count = len(dataset)
        self._chip_bytes = int(np.prod(shape)) * np.dtype(form.dtype).itemsize
        self._pixels_at = _ALIGNMENT + _aligned(count)
        size = self._pixels_at + count * self._chip_bytes
        key, head = identity(dataset)
        self.path = folder.expanduser() / "decoded" / f"{key[:16]}-{_boot()}.chips"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.parent / ".lock"):
                self._descriptor = _Place(self.path, size, limit_bytes).open(head)
                weakref.finalize(self, os.close, self._descriptor)
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            flags = mmap.mmap(self._descriptor, _aligned(count), offset=_ALIGNMENT)
            mapped = mmap.mmap(
                self._descriptor, count * self._chip_bytes, offset=self._pixels_at, access=mmap.ACCESS_READ
            )
        except OSError as error:
            raise self._unusable(error) from error
        self._filled_N = np.frombuffer(flags, np.uint8, count)
        self._chips_NHWC: Pixels = np.frombuffer(mapped, form.dtype).reshape(count, *shape)

    def holds(self, ids_B: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these chips (B,) are in the cache; padding, -1, is not."""
        held_B: NDArray[np.bool_] = (ids_B >= 0) & (self._filled_N[ids_B] != 0)
        return held_B

    def take(self, ids_B: NDArray[np.int64], out_BHWC: Pixels) -> None:
        """Copies chips that the cache holds into `out_BHWC`, in one pass that leaves the interpreter lock alone."""
        # Without a mode NumPy would fill a copy of `out` first, in case an id is out of range.
        np.take(self._chips_NHWC, ids_B, axis=0, out=out_BHWC, mode="clip")

    def put(self, chip_id: int, pixels_HWC: Pixels) -> None:
        """Keeps a decoded chip.

        Raises:
            DatasetError: the file cannot be written.
        """
        # Written, not stored through a mapping: a page that is touched first costs five times its copying.
        offset = self._pixels_at + chip_id * self._chip_bytes
        data = pixels_HWC.reshape(-1).view(np.uint8).data
        try:
            while data:
                written = os.pwrite(self._descriptor, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise self._unusable(error) from error
        self._filled_N[chip_id] = 1

    def _unusable(self, error: OSError) -> DatasetError:
        return DatasetError(
            f"{self.path}: decoded chips cannot be kept there ({error.strerror or error}); set runtime.cache_dir to a "
            "folder on a disk of this host that can be written, or data.cache=none"
        )


def identity(dataset: Dataset) -> tuple[str, bytes]:
    """What decoded chips depend on: its digest, and the text that a cache's file begins with.

    The dataset's digest stands for every byte of it and for the form of its chips.
    """
    facts = {
        "what": "planet-dist decoded chips, by id",
        "dataset": dataset.digest,
        "form": str(dataset.manifest.image.pixels),
        "count": len(dataset),
        "decoder": hashlib.sha256(Path(pixels.__file__).read_bytes()).hexdigest(),
        **{name: version(name) for name in _DECODERS},
    }
    head = json.dumps(facts, indent=1).encode() + b"\n"
    return hashlib.sha256(head).hexdigest(), head


class _Place:
    """Where a file of `size` bytes is, or will be once there is room for it; used under the folder's lock."""

    def __init__(self, path: Path, size: int, limit_bytes: int) -> None:
        self.path, self.size, self.limit_bytes = path, size, limit_bytes

    def open(self, head: bytes) -> int:
        """A descriptor of the file, made where it isn't there yet; what no run can use any more is removed."""
        self._remove_leftovers()
        with suppress(FileNotFoundError):
            with self.path.open("rb") as file:
                whole = os.fstat(file.fileno()).st_size == self.size and file.read(len(head)) == head
            if whole:
                os.utime(self.path)  # a use of it
                return os.open(self.path, os.O_RDWR)
            self.path.unlink()
        self._make_room()
        part = self.path.with_suffix(".part")
        try:
            with part.open("wb") as new:
                new.write(head)
                new.flush()
                # All of it now: a disk that is full later would end the run, or leave a hole under a mapping.
                os.posix_fallocate(new.fileno(), 0, self.size)
            part.rename(self.path)
        except OSError as error:
            part.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise self._refused(f"and its disk has no room for it ({error.strerror})") from error
            raise
        return os.open(self.path, os.O_RDWR)

    def _remove_leftovers(self) -> None:
        for path in self.path.parent.glob("*.part"):
            path.unlink(missing_ok=True)  # its maker held the lock that is held now, so it was killed
        for path in self.path.parent.glob("*.chips"):
            if not path.stem.endswith(f"-{_boot()}"):
                _remove_unused(path)

    def _make_room(self) -> None:
        others = sorted(self.path.parent.glob("*.chips"), key=lambda path: path.stat().st_mtime_ns)
        while (lack := self._lack()) is not None:
            if not others:
                raise self._refused(lack)
            _remove_unused(others.pop(0))

    def _lack(self) -> str | None:
        """What keeps the file from being made, or None."""
        used = sum(path.stat().st_size for path in self.path.parent.glob("*.chips"))
        if used + self.size > self.limit_bytes:
            others = f", of which runs that go on right now use {used:,}" if used else ""
            return f"and runtime.cache_gib allows {self.limit_bytes:,} bytes{others}"
        free = psutil.disk_usage(str(self.path.parent)).free
        if self.size > free:
            return f"and {free:,} bytes are free on its disk"
        if _in_memory(self.path.parent) and self.size > (available := available_memory_bytes()):
            return f"and {available:,} bytes of memory are available"
        return None

    def _refused(self, lack: str) -> DatasetError:
        return DatasetError(
            f"{self.path}: the decoded chips of data.cache=host take {self.size:,} bytes, {lack}; free some, set "
            "runtime.cache_dir to a folder with room or runtime.cache_gib higher, or data.cache=none"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_unused(path: Path) -> None:
    """Removes a file of decoded chips unless a process uses it."""
    with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def available_memory_bytes() -> int:
    """Memory that may be taken here: the host's, or what the container's limit leaves of it."""
    available = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        available = min(available, limit - int((group / "memory.current").read_text()))
    return available


def _in_memory(folder: Path) -> bool:
    folder = folder.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    return bool(mounts) and max(mounts, key=lambda part: len(part.mountpoint)).fstype in ("tmpfs", "ramfs")


def _boot() -> str:
    """This start of this host's kernel."""
    try:
        return _BOOT_ID.read_text().replace("-", "").strip()[:12]
    except OSError:  # not Linux
        return f"{int(psutil.boot_time()):012d}"


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
