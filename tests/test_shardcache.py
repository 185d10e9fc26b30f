"""The cache stays within its size, gives up the oldest first, and takes no harm from processes that die."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from shards.errors import DatasetError
from shards.shardcache import CacheLimits, ShardCache


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


class Source:
    """Writes `size` bytes, and remembers for whom."""

    def __init__(self, size: int = 100) -> None:
        self.size, self.fetched = size, 0

    def __call__(self, sink: BinaryIO) -> None:
        self.fetched += 1
        sink.write(b"x" * self.size)


def cache_of(folder: Path, limit_bytes: int, patience_seconds: float = 5) -> ShardCache:
    return ShardCache(folder, CacheLimits(limit_bytes, patience_seconds))


def names(cache: ShardCache, *candidates: str) -> set[str]:
    return {name for name in candidates if (cache.folder / key(name)).exists()}


def put(cache: ShardCache, name: str, seconds: int) -> None:
    """Fetches 100 bytes, as if used at that second."""
    cache.obtain(key(name), 100, Source()).close()
    os.utime(cache.folder / key(name), (seconds, seconds))


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 350)
    for second, name in enumerate("abc"):
        put(cache, name, second)
    found = cache.find(key("a"))
    assert found is not None
    found.close()
    put(cache, "d", 10)
    assert names(cache, *"abcd") == set("acd")
    cache.obtain(key("e"), 200, Source(200)).close()
    assert names(cache, *"abcde") == set("ae")


def test_a_file_is_fetched_once_and_opened_often(tmp_path: Path) -> None:
    cache, source = cache_of(tmp_path, 1000), Source()
    for _ in range(3):
        with cache.obtain(key("a"), 500, source) as file:
            assert file.read() == b"x" * 100, "what was set aside and not needed is cut off"
    assert source.fetched == 1


def test_a_file_that_was_removed_stays_readable_where_it_is_open(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 150)
    with cache.obtain(key("a"), 100, Source()) as file:
        status = os.fstat(file.fileno())
        assert cache.holds(key("a"), status)
        cache.obtain(key("b"), 100, Source()).close()
        assert not cache.holds(key("a"), status)
        assert len(file.read()) == 100


def test_a_file_larger_than_the_cache_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    source = Source()
    with pytest.raises(DatasetError, match="101 bytes does not fit a cache of 100 bytes; allow the cache more"):
        cache_of(tmp_path, 100).obtain(key("a"), 101, source)
    assert source.fetched == 0


def test_a_fetch_that_fails_leaves_nothing_and_is_tried_by_the_next(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 1000)

    def fail(sink: BinaryIO) -> None:
        sink.write(b"half")
        raise DatasetError("the server went away")

    with pytest.raises(DatasetError, match="went away"):
        cache.obtain(key("a"), 100, fail)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    cache.obtain(key("a"), 100, Source()).close()


def test_what_a_killed_process_left_is_taken_over_or_cleared_away(tmp_path: Path) -> None:
    (tmp_path / f"{key('a')}.part").write_bytes(b"y" * 250)
    (tmp_path / f"{key('b')}.part").write_bytes(b"y" * 250)
    cache = cache_of(tmp_path, 300)
    with cache.obtain(key("a"), 250, Source()) as file:
        assert file.read() == b"x" * 100
    assert names(cache, "a") == {"a"} and not list(tmp_path.glob("*.part"))


def test_a_fetch_that_another_process_is_stuck_in_is_not_awaited_for_ever(tmp_path: Path) -> None:
    with (tmp_path / f"{key('a')}.part").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DatasetError, match=r"another process holds.*end that process"):
            cache_of(tmp_path, 300, patience_seconds=0.2).obtain(key("a"), 100, Source())


def test_files_of_others_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_bytes(b"z" * 1000)
    (tmp_path / f"{key('a')[:-1]}").write_bytes(b"z" * 1000)
    cache = cache_of(tmp_path, 150)
    for name in "abc":
        cache.obtain(key(name), 100, Source()).close()
    assert (tmp_path / "thesis.txt").exists() and (tmp_path / key("a")[:-1]).exists()
    assert names(cache, *"abc") == {"c"}


def test_many_threads_that_want_more_than_fits_all_get_it_in_turn(tmp_path: Path) -> None:
    cache, source, sizes = cache_of(tmp_path, 250), Source(), []

    def use(number: int) -> None:
        with cache.obtain(key(str(number % 7)), 100, source) as file:
            sizes.append(len(file.read()))
            whole = [path for path in tmp_path.iterdir() if len(path.name) == 64]
            assert len(whole) <= 2

    threads = [threading.Thread(target=use, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sizes == [100] * 40


def test_a_full_disk_is_named_with_its_remedy(tmp_path: Path) -> None:
    def fill(sink: BinaryIO) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DatasetError, match=r"cache cannot be used \(No space.*allow the cache less"):
        cache_of(tmp_path, 1000).obtain(key("a"), 100, fill)
