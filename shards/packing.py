"""Packs a chunk of chips: reads, checks, measures and wraps each into finished tar members.

A chunk's bytes depend on its chips alone, so that any worker may pack it and the shard is the same.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.errors import DecodeError, Problem
from shards.moments import Moments, MomentSum
from shards.names import printable
from shards.pixels import PixelFormat, Pixels, decode, decode_tiff
from shards.schema import image_digest, index_dtype
from shards.sources import Record
from shards.ustar import BLOCK_BYTES, member_bytes, member_header, padding

_CLASS_BYTES = 20  # digits of the largest number that MAX_LABELS bits make


@dataclass(frozen=True)
class Chunk:
    """Chips to pack: all of `kind` and expected to be of `form`, keys at most `key_bytes` long."""

    records: tuple[Record, ...]
    kind: str
    form: PixelFormat
    key_bytes: int


@dataclass(frozen=True)
class Packed:
    """A packed chunk.

    Attributes:
        tar: uint8, whole members of a USTAR archive, without an archive's end.
        index: one record of schema.index_dtype a chip, offsets counted from the chunk's start.
        moments: of the packed chips' pixels.
        problems: one for every chip that was left out.
    """

    tar: NDArray[np.uint8]
    index: NDArray[np.void]
    moments: Moments
    problems: list[Problem]


def pack_chunk(chunk: Chunk) -> Packed:
    """Packs the chips that are what they should be, in order."""
    index = np.zeros(len(chunk.records), index_dtype(chunk.key_bytes))
    moments = MomentSum(chunk.form)
    form = chunk.form
    canvas = np.empty((form.height, form.width, form.bands), form.dtype)
    # Images are read to where they stay: memory of their own, given back and asked for again, takes a tenth as long as
    # decoding them.
    tar = np.empty(sum(_most_bytes(record) for record in chunk.records), np.uint8)
    room = tar.data
    problems: list[Problem] = []
    position = count = 0
    for record in chunk.records:
        image = room[position + BLOCK_BYTES :][: record.size]
        try:
            _read(record, image)
            pixels, raw_offset = _decode(image, chunk, canvas)
        except DecodeError as error:
            where = printable(record.path)
            problems.append(Problem(error.rule, where, 0, error.value, error.remedy))
            continue
        moments.add(pixels)
        labels, labelled = record.labels or 0, record.labels is not None
        digest = np.frombuffer(image_digest(image), np.uint8)
        index[count] = (record.key.encode(), position + BLOCK_BYTES, record.size, raw_offset, labels, labelled, digest)
        count += 1
        position = _wrap(record, chunk.kind, room, position)
    return Packed(tar[:position], index[:count], moments.total(), problems)


def _most_bytes(record: Record) -> int:
    return member_bytes(record.size) + member_bytes(_CLASS_BYTES)


def _wrap(record: Record, kind: str, room: memoryview, position: int) -> int:
    """Makes members of an image that lies a block behind `position`: KEY.jpg or KEY.tif, then KEY.cls if it has labels.

    Returns:
        Where they end.
    """
    name, start = f"{record.key}.{kind}", position + BLOCK_BYTES
    room[position:start] = member_header(name, record.size)
    rest = padding(record.size)
    if record.labels is not None:
        rest += class_member(name, record.labels)
    end = start + record.size + len(rest)
    room[start + record.size : end] = rest
    return end


def class_member(image_name: str, labels: int) -> bytes:
    """The member KEY.cls beside an image: the packed label bits as a decimal integer."""
    text = b"%d" % labels
    name = image_name.rpartition(".")[0] + ".cls"
    return member_header(name, len(text)) + text + padding(len(text))


def _read(record: Record, image: memoryview) -> None:
    try:
        with io.FileIO(record.path) as file:
            count = _fill(file, image)
            count += len(file.read())  # to the end, past which there should be nothing
    except OSError as error:
        raise DecodeError(
            str(error.strerror), "an image can be read", "make the file readable, or leave it out"
        ) from error
    if count != record.size:
        raise DecodeError(
            f"{count} bytes where there were {record.size} when the build began",
            "images stay as they are while they are packed",
            "run the same command again when nothing writes to the folder",
        )


def _fill(file: io.FileIO, image: memoryview) -> int:
    """Reads until the image is full or the file ends; the bytes that were read."""
    count = 0
    while count < len(image) and (more := file.readinto(image[count:])):
        count += more
    return count


def _decode(image: memoryview, chunk: Chunk, canvas: Pixels) -> tuple[Pixels, int]:
    raw_offset = 0
    if chunk.kind == "tif":
        pixels, raw_offset = decode_with_offset(image, chunk.kind)
    else:
        try:
            return decode(image, chunk.kind, canvas), 0  # it fits, so it's of the form
        except DecodeError:
            # The canvas may be at fault: only without it is a sound image of another form told from a bad one.
            pixels = decode(image, chunk.kind)
    check_form(pixels, chunk.form)
    return pixels, raw_offset


def decode_with_offset(image: bytes | memoryview, kind: str) -> tuple[Pixels, int]:
    """An image's pixels (H, W, bands), and where in it they lie uncompressed, as the index states it.

    Raises:
        DecodeError: the bytes are not a whole image of that kind.
    """
    if kind != "tif":
        return decode(image, kind), 0
    pixels, raw_offset = decode_tiff(image)
    return pixels, raw_offset


def form_of(pixels: Pixels) -> PixelFormat:
    """The form of pixels (H, W, bands)."""
    height, width, bands = pixels.shape
    return PixelFormat(height, width, bands, pixels.dtype.name)


def check_form(pixels: Pixels, form: PixelFormat) -> None:
    """Raises DecodeError unless pixels (H, W, bands) are of the form that all chips share, and finite."""
    found = form_of(pixels)
    if found != form:
        raise DecodeError(
            str(found),
            f"all chips are of one form, which is {form} for most",
            "convert the chip to that form, or put chips of another form into a folder of their own",
        )
    if form.dtype == "float32" and not np.isfinite(pixels).all():
        raise DecodeError(
            f"{int(np.count_nonzero(~np.isfinite(pixels)))} values that are infinite or no number",
            "pixels are finite numbers",
            "replace them by a number that stands for no data",
        )
