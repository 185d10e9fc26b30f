"""The files of a dataset as the reader and the check see them: in a folder, or elsewhere behind a cache.

A storage opens a shard's files and names them for people; what they hold is for others to judge.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Literal, Protocol

from shards.errors import DatasetError
from shards.location import local_folder
from shards.schema import MANIFEST, MAX_MANIFEST_BYTES, Shard

Ending = Literal["tar", "idx"]
GROUPS = "groups.json"
MAX_GROUPS_BYTES = 256 * 2**20  # some two million chips with relatives


@dataclass(frozen=True)
class Patience:
    """How long a fetch may take, so that a server that is gone or drips never holds a process for good.

    Attributes:
        stall_seconds: without a byte.
        slowest_bytes_per_second: over a whole file, beyond a minute.
        tries: of a file that fails to come, with pauses that double from `first_pause_seconds`.
    """

    stall_seconds: float = 60
    slowest_bytes_per_second: float = 32 * 1024
    tries: int = 4
    first_pause_seconds: float = 0.5


@dataclass(frozen=True)
class CacheOptions:
    """Where files of a dataset that lies elsewhere are kept, and how much of them; no part in a local one.

    Attributes:
        folder: on a disk of the host, for all its processes and any number of datasets.
        limit_bytes: that the folder may hold.
    """

    folder: Path = Path("~/.cache/planet-dist")
    limit_bytes: int = 64 * 2**30
    patience: Patience = Patience()


class Storage(Protocol):
    """A dataset's files.

    Attributes:
        root: the folder that its files are read from on this host.
        shown: its location for people, without credentials.
        remote: whether its files are fetched, and lie in a cache that may let them go.
    """

    root: Path
    shown: str
    remote: bool

    def manifest(self) -> bytes:
        """The manifest's bytes. Raises DatasetError when there is none."""

    def groups(self) -> bytes | None:
        """The bytes of groups.json (shards/groups.py), None where there is none. Raises DatasetError."""

    def open(self, shard: Shard, ending: Ending) -> BufferedReader:
        """Opens a shard's tar or index. Raises OSError or DatasetError when it cannot be had."""

    def holds(self, shard: Shard, opened: os.stat_result) -> bool:
        """Whether a tar that was opened, of which this is the status, is still where it was."""

    def discard(self, shard: Shard) -> None:
        """Forgets what has been fetched of a shard, so that it's fetched again."""

    def prefetch(self, shards: Iterable[Shard]) -> None:
        """Starts to fetch shards that are soon to be read; returns at once."""

    def name(self, shard: Shard, ending: Ending) -> str:
        """A file's name for people."""


def read_at_most(file: BufferedReader, most_bytes: int) -> bytes:
    """A file's bytes, or one more than `most_bytes` of a larger one; takes memory for what the file has alone."""
    return file.read(min(os.fstat(file.fileno()).st_size, most_bytes) + 1)


def open_storage(location: str | Path, cache: CacheOptions | None = None) -> Storage:
    """The storage at a folder or URL.

    Raises:
        DatasetError: it cannot be reached, or lacks what its kind of URL needs.
    """
    folder = local_folder(location)
    if folder is not None:
        return Folder(folder)
    from shards.remote import RemoteStorage

    return RemoteStorage(str(location), cache or CacheOptions())


class Folder:
    """A dataset in a folder of this host."""

    remote = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shown = str(root)

    def manifest(self) -> bytes:
        """The manifest's bytes.

        Raises:
            DatasetError: there is no folder, no manifest in it, or an absurdly large one.
        """
        path = self.root / MANIFEST
        if not self.root.is_dir():
            raise DatasetError(f"{self.root}: no such folder; make a dataset with planet-shard build --out {self.root}")
        if not path.is_file():
            raise DatasetError(
                f"{self.root}: no {MANIFEST}, so its build did not finish (or it is not a dataset); "
                "run the same planet-shard build again, which goes on where it stopped"
            )
        try:
            with path.open("rb") as file:
                return read_at_most(file, MAX_MANIFEST_BYTES)
        except OSError as error:
            raise DatasetError(f"{path}: {error.strerror}; make the file readable") from error

    def groups(self) -> bytes | None:
        """The bytes of groups.json, None where there is none.

        Raises:
            DatasetError: it cannot be read.
        """
        path = self.root / GROUPS
        try:
            with path.open("rb") as file:
                return read_at_most(file, MAX_GROUPS_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DatasetError(f"{path}: {error.strerror}; make the file readable") from error

    def open(self, shard: Shard, ending: Ending) -> BufferedReader:
        """Opens a shard's tar or index.

        Raises:
            OSError: it cannot be opened.
            DatasetError: it is no regular file, of which a read could wait for ever.
        """
        path = self.root / f"{shard.name}.{ending}"
        # Not blocking, because opening a named pipe waits for somebody to write to it.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise DatasetError(f"{path}: not a regular file; restore the shard from a copy")
        return file

    def holds(self, shard: Shard, opened: os.stat_result) -> bool:
        """Always: nobody takes files away from a folder."""
        return True

    def discard(self, shard: Shard) -> None:
        """Nothing was fetched."""

    def prefetch(self, shards: Iterable[Shard]) -> None:
        """Nothing is to be fetched."""

    def name(self, shard: Shard, ending: Ending) -> str:
        """The file's path."""
        return str(self.root / f"{shard.name}.{ending}")
