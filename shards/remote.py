"""Datasets behind a URL: s3://, gs://, http:// and whatever else fsspec opens, through a cache on this host.

The manifest is fetched when a dataset is opened; its digests say what every other file must hold, so that nothing
wrong ever stands in the cache under a right name. Credentials are best given where each protocol looks for them (the
environment, ~/.aws, ~/.netrc). Those in a URL work, and are hidden wherever this program shows the URL; a launcher or
`ps` may still show a command line, so write $NAME in the URL for a secret that an environment variable holds.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO

from shards.errors import DatasetError
from shards.location import join_url, redact
from shards.schema import MANIFEST, MAX_MANIFEST_BYTES, Shard, most_index_bytes
from shards.shardcache import CacheLimits, ShardCache
from shards.storage import GROUPS, MAX_GROUPS_BYTES, CacheOptions, Ending, Patience

_BLOCK_BYTES = 8 * 2**20  # of one request, where a protocol reads by ranges
_WAITING_BLOCKS = 2  # received and not yet written
_GRACE_SECONDS = 60  # before the slowest rate is held against a fetch
_PREFETCHERS = 4
_TOUCH_SECONDS = 10


class _Damaged(Exception):
    """Content that is not what the manifest says."""


class _AbsentError(DatasetError):
    """A file that is not there, while the place where it would be answers."""


class RemoteStorage:
    """A dataset behind a URL; see storage.Storage. Safe to use from many threads.

    Raises:
        DatasetError: nothing here opens such a URL, or the cache folder cannot be used.
    """

    remote = True

    def __init__(self, location: str, cache: CacheOptions) -> None:
        location = os.path.expandvars(location)
        self.shown = redact(location, location)
        self._location, self._options = location, cache
        self._cache = ShardCache(
            cache.folder, CacheLimits(cache.limit_bytes, 2 * cache.patience.stall_seconds + _GRACE_SECONDS)
        )
        self.root = self._cache.folder
        self._open_url = self._opener()
        self._ahead: queue.SimpleQueue[Shard] = queue.SimpleQueue()
        self._prefetchers: list[threading.Thread] = []
        self._announced: dict[str, float] = {}

    def __reduce__(self) -> tuple[Callable[..., RemoteStorage], tuple[str, CacheOptions]]:
        return RemoteStorage, (self._location, self._options)

    def manifest(self) -> bytes:
        """The manifest's bytes, fetched anew. Raises DatasetError when it cannot be had."""
        return self._fetch_bytes(MANIFEST, MAX_MANIFEST_BYTES + 1)

    def groups(self) -> bytes | None:
        """The bytes of groups.json, fetched anew; None where there is none. Raises DatasetError where it cannot be."""
        try:
            return self._fetch_bytes(GROUPS, MAX_GROUPS_BYTES + 1)
        except _AbsentError:
            return None

    def open(self, shard: Shard, ending: Ending) -> io.BufferedReader:
        """Opens a shard's tar or index in the cache, fetched first where it's not there.

        Raises:
            DatasetError: it cannot be fetched, or is twice not what the manifest says.
        """
        sha256, most_bytes = _claims(shard, ending)
        file = self._cache.obtain(sha256, most_bytes, partial(self._fetch, shard, ending))
        if not _looks_whole(file, shard, ending):
            # It was whole once: a disk has lost it, or somebody has written over it.
            file.close()
            self._cache.discard(sha256)
            file = self._cache.obtain(sha256, most_bytes, partial(self._fetch, shard, ending))
        return file

    def holds(self, shard: Shard, opened: os.stat_result) -> bool:
        """Whether the cache still has a tar that was opened here."""
        return self._cache.holds(shard.sha256, opened)

    def discard(self, shard: Shard) -> None:
        """Removes a shard's tar from the cache."""
        self._cache.discard(shard.sha256)

    def prefetch(self, shards: Iterable[Shard]) -> None:
        """Fetches shards in the background, and marks those that the cache has as soon to be used.

        What goes wrong is kept for the one who reads the shard.
        """
        now = time.monotonic()
        for shard in shards:
            if now - self._announced.get(shard.sha256, -_TOUCH_SECONDS) < _TOUCH_SECONDS:
                continue
            self._announced[shard.sha256] = now
            found = self._cache.find(shard.sha256)
            if found is not None:
                found.close()
                continue
            self._ahead.put(shard)
            if len(self._prefetchers) < _PREFETCHERS:
                # Daemons, because a process that ends must not wait for what nobody is going to read.
                thread = threading.Thread(target=self._fetch_ahead, name="fetch-ahead", daemon=True)
                self._prefetchers.append(thread)
                thread.start()

    def name(self, shard: Shard, ending: Ending) -> str:
        """A file's URL, without credentials."""
        return self._shown_url(f"{shard.name}.{ending}")

    def _fetch_ahead(self) -> None:
        while True:
            with suppress(DatasetError):
                self.open(self._ahead.get(), "tar").close()

    def _shown_url(self, name: str) -> str:
        return redact(join_url(self._location, name), self._location)

    def _opener(self) -> Callable[[str], BinaryIO]:
        """A function that opens a URL for reading from its start to its end."""
        try:
            from fsspec.asyn import AsyncFileSystem
            from fsspec.core import url_to_fs

            system, _ = url_to_fs(self._location, **_settings(self._location, self._options.patience))
        except (ImportError, ValueError) as error:
            raise DatasetError(
                f"{self.shown}: this kind of URL cannot be opened ({redact(error, self._location)}); install what it "
                "needs, for s3:// pip install 'planet-dist[s3]', or copy the dataset into a folder"
            ) from None
        options: dict[str, Any] = {}
        if self._location.lower().startswith("http"):
            # One plain request: with a size given fsspec asks for none, and with no blocks for no ranges.
            options = {"block_size": 0, "size": 1}
        elif isinstance(system, AsyncFileSystem):
            options = {"block_size": _BLOCK_BYTES, "cache_type": "none"}

        def open_url(url: str) -> BinaryIO:
            file: BinaryIO = system.open(system._strip_protocol(url), "rb", **options)
            return file

        return open_url

    def _fetch(self, shard: Shard, ending: Ending, sink: BinaryIO) -> None:
        """Writes a file into `sink`, checked; once more where it came wrong."""
        digest, most = _claims(shard, ending)
        name = f"{shard.name}.{ending}"
        for last in (False, True):
            try:
                found = self._try_hard(name, most, sink)
                if found != digest:
                    raise _Damaged(f"its sha256 is {found[:16]}..., the manifest's {digest[:16]}...")
                return
            except _Damaged as error:
                if last:
                    raise DatasetError(
                        f"{self._shown_url(name)}: not what the manifest says, fetched twice: {error}; "
                        "upload the file again, or build the dataset again"
                    ) from None

    def _fetch_bytes(self, name: str, most_bytes: int) -> bytes:
        sink = io.BytesIO()
        try:
            self._try_hard(name, most_bytes, sink)
        except _Damaged as error:
            raise DatasetError(f"{self._shown_url(name)}: {error}; this is not the {name} of a dataset") from None
        return sink.getvalue()[: sink.tell()]

    def _try_hard(self, name: str, most_bytes: int, sink: BinaryIO) -> str:
        """Writes a file's content; again from its start, after a pause, where the way there failed.

        Returns:
            The content's sha256.
        """
        patience = self._options.patience
        for number in range(patience.tries):
            sink.seek(0)
            try:
                return self._copy(name, most_bytes, sink)
            except (DatasetError, _Damaged):
                raise
            except Exception as error:  # every protocol fails in its own ways
                what, worth_another = _reason(error)
                if not worth_another or number == patience.tries - 1:
                    tries = f" ({number + 1} tries)" if number else ""
                    kind = _AbsentError if isinstance(error, FileNotFoundError) else DatasetError
                    raise kind(
                        f"{self._shown_url(name)}: {redact(what, self._location)}{tries}; {_remedy(error)}"
                    ) from None
                time.sleep(patience.first_pause_seconds * 2**number)
        raise AssertionError("the last try returns or raises")

    def _copy(self, name: str, most_bytes: int, sink: BinaryIO) -> str:
        digest, size = hashlib.sha256(), 0
        patience = self._options.patience
        started = time.monotonic()
        for block in _blocks(partial(self._open_url, join_url(self._location, name)), patience.stall_seconds):
            size += len(block)
            if size > most_bytes:
                raise _Damaged(f"more than the {most_bytes:,} bytes that it may have")
            digest.update(block)
            _write(sink, block)
            seconds = time.monotonic() - started
            if (seconds - _GRACE_SECONDS) * patience.slowest_bytes_per_second > size:
                raise TimeoutError(f"{size:,} bytes in {seconds:.0f} seconds")
        return digest.hexdigest()


def _claims(shard: Shard, ending: Ending) -> tuple[str, int]:
    """A file's sha256, and the bytes that it may have."""
    return (shard.sha256, shard.bytes) if ending == "tar" else (shard.index_sha256, most_index_bytes(shard))


def _looks_whole(file: io.BufferedReader, shard: Shard, ending: Ending) -> bool:
    """Whether a cached file can be what it was: by its size for a tar, whose chips are checked one by one."""
    if ending == "tar":
        return os.fstat(file.fileno()).st_size == shard.bytes
    found = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return found == shard.index_sha256


def _settings(location: str, patience: Patience) -> dict[str, Any]:
    """What a protocol is told of time limits. Ours hold in any case; these free a connection that nobody awaits."""
    scheme = location.partition("://")[0].lower()
    if scheme in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, connect=patience.stall_seconds, sock_read=patience.stall_seconds)
        return {"client_kwargs": {"timeout": limits, "trust_env": True}, "use_listings_cache": False}
    if scheme in ("s3", "s3a"):
        limits_s3 = {"connect_timeout": patience.stall_seconds, "read_timeout": patience.stall_seconds}
        return {"config_kwargs": {**limits_s3, "retries": {"total_max_attempts": 1}}, "use_listings_cache": False}
    return {}


def _blocks(open_file: Callable[[], BinaryIO], stall_seconds: float) -> Iterator[bytes]:
    """The blocks of a file, read by a thread of its own, which may hang without hanging anybody else.

    Raises:
        TimeoutError: nothing came for `stall_seconds`.
        Exception: whatever opening and reading raised.
    """
    arrived: queue.Queue[bytes | BaseException | None] = queue.Queue(_WAITING_BLOCKS)
    given_up = threading.Event()

    def give(item: bytes | BaseException | None) -> None:
        while not given_up.is_set():
            with suppress(queue.Full):
                arrived.put(item, timeout=0.2)
                return

    def read() -> None:
        try:
            with open_file() as file:
                while not given_up.is_set() and (block := file.read(_BLOCK_BYTES)):
                    give(block)
            give(None)
        except BaseException as error:
            give(error)

    threading.Thread(target=read, name="fetch-blocks", daemon=True).start()
    try:
        while True:
            try:
                item = arrived.get(timeout=stall_seconds)
            except queue.Empty:
                raise TimeoutError(f"no byte for {stall_seconds:g} seconds") from None
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        given_up.set()


def _write(sink: BinaryIO, block: bytes) -> None:
    try:
        sink.write(block)
    except OSError as error:
        raise DatasetError(
            f"{getattr(sink, 'name', 'cache')}: cannot be written ({error.strerror}); free some space, allow the "
            "cache less, or give a cache folder on another disk"
        ) from error


def _reason(error: Exception) -> tuple[str, bool]:
    """What happened, and whether it may be otherwise in a moment."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"the server answered {status} {getattr(error, 'message', '')}".rstrip(), status >= 500 or status in (
            408,
            429,
        )
    if isinstance(error, FileNotFoundError):
        return "no such file there", False
    if isinstance(error, PermissionError):
        return "access was refused", False
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return str(error) or "no answer in time", True
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__, _worth_another(error)


def _worth_another(error: Exception) -> bool:
    return not isinstance(error, ValueError | TypeError | NotImplementedError) and "Credentials" not in (
        type(error).__name__
    )


def _remedy(error: Exception) -> str:
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError):
        return "give the URL of a folder in which planet-shard build has finished, with all its files"
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__:
        return "give the credentials where the protocol looks for them, such as the environment"
    return "see whether the server can be reached from this host, and run the same command again"
