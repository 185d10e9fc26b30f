"""A bounded folder of fetched files, shared by all processes of a host.

CACHE/
  <sha256>         a whole file, named by what it holds: checked, flushed and renamed into place
  <sha256>.part    one that is being fetched; its size is what was set aside for it
  .lock            held for a moment while room is made

Locks are the kernel's (flock) and end with the process that held them, so that a killed process leaves nothing but a
.part that the next one takes over or clears away. The least recently used files make room for new ones. A file that
is removed while a process reads it stays readable to that process; its space comes back when the process lets go.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from shards.errors import DatasetError

_ENTRY = re.compile(r"[0-9a-f]{64}(\.part)?")
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class CacheLimits:
    """How large a cache may grow, and how long a process waits for another one's fetch that does not move."""

    limit_bytes: int
    patience_seconds: float


class ShardCache:
    """The cache in one folder; safe to use from many threads and processes.

    Raises:
        DatasetError: the folder cannot be used.
    """

    def __init__(self, folder: Path, limits: CacheLimits) -> None:
        self.folder, self.limits = folder.expanduser(), limits
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def find(self, sha256: str) -> BufferedReader | None:
        """Opens a file that the cache has, which counts as a use of it; None where it doesn't have it."""
        path = self.folder / sha256
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        with suppress(OSError):  # another process may just have removed it, or own it
            os.utime(path)
        return file

    def obtain(self, sha256: str, most_bytes: int, fetch: Callable[[BinaryIO], None]) -> BufferedReader:
        """Opens a file, fetched first where the cache doesn't have it: by one process, while the others wait.

        Args:
            sha256: of its content, 64 hex digits.
            most_bytes: that it may have; set aside before it's fetched.
            fetch: writes the content, or raises.

        Raises:
            DatasetError: it's larger than the cache, the folder cannot be written, or another process's fetch
                stands still. And what `fetch` raises.
        """
        if most_bytes > self.limits.limit_bytes:
            raise DatasetError(
                f"{self.folder}: a file of {most_bytes:,} bytes does not fit a cache of "
                f"{self.limits.limit_bytes:,} bytes; allow the cache more"
            )
        part = self.folder / f"{sha256}.part"
        try:
            while True:
                if (found := self.find(sha256)) is not None:
                    return found
                with self._claim(part) as claimed:
                    if claimed is None:
                        continue
                    if (found := self.find(sha256)) is not None:
                        part.unlink(missing_ok=True)
                        return found
                    return self._fill(part, claimed, most_bytes, fetch)
        except OSError as error:
            raise self._unusable(error) from error

    def holds(self, sha256: str, opened: os.stat_result) -> bool:
        """Whether a file that was opened is still the one in the cache, and was not removed to make room."""
        with suppress(OSError):
            return os.path.samestat(opened, (self.folder / sha256).stat())
        return False

    def discard(self, sha256: str) -> None:
        """Removes a file that turned out to be damaged."""
        (self.folder / sha256).unlink(missing_ok=True)

    def _fill(
        self, part: Path, claimed: BinaryIO, most_bytes: int, fetch: Callable[[BinaryIO], None]
    ) -> BufferedReader:
        try:
            self._make_room(claimed, most_bytes)
            claimed.seek(0)
            fetch(claimed)
            claimed.truncate(claimed.tell())
            claimed.flush()
            os.fsync(claimed.fileno())
            file = part.open("rb")
            with self._lock():  # who makes room meanwhile would see neither name
                part.rename(part.with_suffix(""))
            return file
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    @contextmanager
    def _claim(self, part: Path) -> Iterator[BinaryIO | None]:
        """Waits for a .part and takes it; gives None where it was finished or given up by another meanwhile."""
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
        with os.fdopen(descriptor, "r+b") as file:
            self._wait_for(file, part.name.removesuffix(".part")[:12])
            try:
                current = os.path.samestat(os.fstat(file.fileno()), part.stat())
            except FileNotFoundError:
                current = False
            yield file if current else None

    def _wait_for(self, file: BinaryIO, what: str) -> None:
        moved, seen = time.monotonic(), -1
        while not _try_lock(file):
            written = os.fstat(file.fileno()).st_mtime_ns
            if written != seen:
                moved, seen = time.monotonic(), written
            if time.monotonic() - moved > self.limits.patience_seconds:
                raise DatasetError(
                    f"{self.folder}: another process holds {what} and has written nothing for "
                    f"{self.limits.patience_seconds:.0f} seconds; end that process, or give another cache folder"
                )
            time.sleep(_POLL_SECONDS)

    def _make_room(self, claimed: BinaryIO, size: int) -> None:
        """Sets `size` bytes aside for a .part, once the files that are fetched right now leave so much."""
        while True:
            with self._lock():
                claimed.truncate(0)
                if self._evict(size):
                    claimed.truncate(size)
                    return
            os.utime(claimed.fileno())  # waiting for room is no standing still
            time.sleep(_POLL_SECONDS)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / ".lock").open("ab") as lock:
            self._wait_for(lock, "the lock")
            yield

    def _evict(self, size: int) -> bool:
        used = 0
        whole: list[tuple[int, int, Path]] = []
        for path in self.folder.iterdir():
            if not _ENTRY.fullmatch(path.name):
                continue  # not ours: a folder may hold what a person has put there
            with suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == ".part":
                    used += 0 if _clear_if_abandoned(path) else status.st_size
                else:
                    used += status.st_size
                    whole.append((status.st_mtime_ns, status.st_size, path))
        for _, freed, path in sorted(whole):
            if used + size <= self.limits.limit_bytes:
                break
            path.unlink(missing_ok=True)
            used -= freed
        return used + size <= self.limits.limit_bytes

    def _unusable(self, error: OSError) -> DatasetError:
        remedy = "give another cache folder, on a disk of this host that can be written"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space, allow the cache less, or give a cache folder on another disk"
        return DatasetError(f"{self.folder}: the cache cannot be used ({error.strerror or error}); {remedy}")


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clear_if_abandoned(part: Path) -> bool:
    """Removes a .part that no process holds: one that was killed has left it."""
    with part.open("r+b") as file:
        if os.fstat(file.fileno()).st_size == 0 or not _try_lock(file):
            return False  # claimed, or about to be: an empty one takes no room
        part.unlink(missing_ok=True)
        return True
