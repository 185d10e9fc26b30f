"""Made chips on disk, in the Kaggle layout: a folder of images and a CSV of labels.

    OUT/train-jpg/train_0.jpg ...   3-component JPEG
    OUT/train-tif/train_0.tif ...   blue, green, red, near-infrared as uint16, interleaved, uncompressed
    OUT/train.csv                   image_name,tags

Chip i is a pure function of the seed, i and the size, so that a larger set begins with the smaller one.
"""

from __future__ import annotations

import ctypes
import io
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import Literal

import simplejpeg
import tifffile

from shards.errors import ConfigError
from shards.synth_scene import Chip, draw_chip

Kind = Literal["jpg", "tif", "both"]

_EXTENSIONS: dict[str, tuple[str, ...]] = {"jpg": ("jpg",), "tif": ("tif",), "both": ("jpg", "tif")}
_CHUNK_CHIPS = 16
_MIN_SIZE, _MAX_SIZE = 32, 4096
_JPEG_QUALITY = 90
_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def write_chips(
    out: Path,
    count: int,
    kind: Kind,
    seed: int,
    size: int = 256,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Draws `count` labelled chips into a new folder, which appears when it's complete.

    Args:
        out: the folder to make; it may exist if it's empty.
        count: number of chips, 1 or more.
        kind: "jpg", "tif", or "both" for the same scenes in both forms.
        seed: 0 or more.
        size: side in pixels, 32 to 4096.
        workers: number of processes, by default one per core that this process may use. The files don't
            depend on it. With more than one, the caller's main module is imported again in each.
        progress: called with the number of chips done so far, ending with `count`.

    Raises:
        ConfigError: an argument is out of range, `out` is not empty or cannot be written, or a worker died.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    _check(out, count, kind, seed, size, workers)
    out = out.absolute()
    # Beside a new folder, so that one rename makes it; in one that is there, for it may be a disk of its own.
    home = out if out.is_dir() else out.parent
    aside = home / f".{out.name}.{os.getpid()}.tmp"
    try:
        aside.mkdir(parents=True)
        for extension in _EXTENSIONS[kind]:
            (aside / f"train-{extension}").mkdir()
        rows: list[str] = [""] * count
        done = 0
        with closing(_draw_all(aside, count, kind, seed, size, workers)) as chunks:
            for start, tags in chunks:
                rows[start : start + len(tags)] = [f"train_{start + i},{tag}" for i, tag in enumerate(tags)]
                done += len(tags)
                if progress is not None:
                    progress(done)
        (aside / "train.csv").write_text("\n".join(["image_name,tags", *rows]) + "\n", encoding="utf-8")
        _reveal(aside, out)
    except OSError as error:
        raise ConfigError(
            f"made chips cannot be written to {out}: {error.strerror or error}; "
            "give a folder on a disk with room that you may write to"
        ) from error
    except BrokenProcessPool as error:
        raise ConfigError(
            f"a worker process died while drawing into {out}, often for want of memory; use fewer workers "
            f"than {workers}"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def encode_jpeg(chip: Chip) -> bytes:
    """The chip as a JPEG of three components, quality 90."""
    return bytes(simplejpeg.encode_jpeg(chip.rgb_HWC, _JPEG_QUALITY, "RGB", "420"))


def encode_tiff(chip: Chip) -> bytes:
    """The chip as a TIFF of four interleaved uint16 bands, little-endian, without a date in it."""
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        chip.bands_HWB,
        byteorder="<",
        photometric="minisblack",
        planarconfig="contig",
        metadata=None,
        software=False,
    )
    return buffer.getvalue()


def _reveal(aside: Path, out: Path) -> None:
    """Moves what was drawn to its place; the CSV comes last, for a set without it is no set."""
    if not out.exists():
        aside.rename(out)
        return
    for child in sorted(aside.iterdir()):  # train-jpg, train-tif, train.csv
        child.rename(out / child.name)


def _check(out: Path, count: int, kind: str, seed: int, size: int, workers: int) -> None:
    if count < 1:
        raise ConfigError(f"count {count}: a set has at least 1 chip; give a larger count")
    if kind not in _EXTENSIONS:
        raise ConfigError(f"kind {kind!r}: chips are drawn as one of {', '.join(_EXTENSIONS)}; give one of these")
    if seed < 0:
        raise ConfigError(f"seed {seed}: a seed is 0 or more; give another")
    if not _MIN_SIZE <= size <= _MAX_SIZE:
        raise ConfigError(f"size {size}: a chip is {_MIN_SIZE} to {_MAX_SIZE} pixels wide; give a size in between")
    if workers < 1:
        raise ConfigError(f"workers {workers}: at least 1 process draws; give 1 or more")
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out}: exists and is not an empty folder, and made chips never overwrite anything; "
            "give another folder or remove this one"
        )


def _draw_all(
    folder: Path, count: int, kind: Kind, seed: int, size: int, workers: int
) -> Generator[tuple[int, list[str]], None, None]:
    """Yields the first index and the tags of each chunk, in any order, once its images are written."""
    starts = range(0, count, _CHUNK_CHIPS)
    if workers == 1 or len(starts) == 1:
        for start in starts:
            yield _draw_chunk(folder, start, min(start + _CHUNK_CHIPS, count), kind, seed, size)
        return
    with ProcessPoolExecutor(
        min(workers, len(starts)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(),),
    ) as pool:
        waiting: set[Future[tuple[int, list[str]]]] = {
            pool.submit(_draw_chunk, folder, start, min(start + _CHUNK_CHIPS, count), kind, seed, size)
            for start in starts
        }
        try:
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _draw_chunk(folder: Path, start: int, stop: int, kind: Kind, seed: int, size: int) -> tuple[int, list[str]]:
    tags = []
    for index in range(start, stop):
        chip = draw_chip(seed, index, size)
        for extension in _EXTENSIONS[kind]:
            data = encode_jpeg(chip) if extension == "jpg" else encode_tiff(chip)
            (folder / f"train-{extension}" / f"train_{index}.{extension}").write_bytes(data)
        tags.append(" ".join(chip.labels))
    return start, tags


def _start_worker(parent: int) -> None:
    """Leaves Ctrl-C to the parent, and has the kernel end this worker when the parent is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the kernel was asked
        os._exit(1)
