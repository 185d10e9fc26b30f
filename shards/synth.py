"""Made chips on disk, in the Kaggle layout: a folder of images and a CSV of labels.

    OUT/train-jpg/train_0.jpg ...   3-component JPEG
    OUT/train-tif/train_0.tif ...   blue, green, red, near-infrared as uint16, interleaved, uncompressed
    OUT/train.csv                   image_name,tags

Chip i is a pure function of the seed, i and the size, so that a larger set begins with the smaller one.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import simplejpeg
import tifffile

from shards.errors import ConfigError
from shards.synth_scene import Chip, draw_chip
from shards.workers import available_cores, map_in_order, worker_pool

Kind = Literal["jpg", "tif", "both"]

_EXTENSIONS: dict[str, tuple[str, ...]] = {"jpg": ("jpg",), "tif": ("tif",), "both": ("jpg", "tif")}
_CHUNK_CHIPS = 16
_MIN_SIZE, _MAX_SIZE = 32, 4096
_JPEG_QUALITY = 90


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
        ConfigError: an argument is out of range, or `out` is not empty or cannot be written.
        PlanetError: a worker process died.
    """
    workers = available_cores() if workers is None else workers
    _check(out, count, kind, seed, size, workers)
    out = out.absolute()
    # Beside a new folder, so that one rename makes it; in one that is there, for it may be a disk of its own.
    home = out if out.is_dir() else out.parent
    aside = home / f".{out.name}.{os.getpid()}.tmp"
    try:
        aside.mkdir(parents=True)
        for extension in _EXTENSIONS[kind]:
            (aside / f"train-{extension}").mkdir()
        chunks = [range(start, min(start + _CHUNK_CHIPS, count)) for start in range(0, count, _CHUNK_CHIPS)]
        draw = partial(_draw_chunk, aside, kind, seed, size)
        lines = ["image_name,tags"]
        with worker_pool(min(workers, len(chunks))) as pool:
            for rows in map_in_order(pool, draw, chunks, look_ahead=4 * workers):
                lines += rows
                if progress is not None:
                    progress(len(lines) - 1)
        (aside / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        _reveal(aside, out)
    except OSError as error:
        raise ConfigError(
            f"made chips cannot be written to {out}: {error.strerror or error}; "
            "give a folder on a disk with room that you may write to"
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


def _draw_chunk(folder: Path, kind: Kind, seed: int, size: int, indices: range) -> list[str]:
    """Writes the images of these chips; returns their lines of the CSV."""
    rows = []
    for index in indices:
        chip = draw_chip(seed, index, size)
        for extension in _EXTENSIONS[kind]:
            data = encode_jpeg(chip) if extension == "jpg" else encode_tiff(chip)
            (folder / f"train-{extension}" / f"train_{index}.{extension}").write_bytes(data)
        rows.append(f"train_{index},{' '.join(chip.labels)}")
    return rows
