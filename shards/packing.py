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
from shards.ustar import BLOCK_BYTES, member_header, padding


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
        tar: whole members of a USTAR archive, without an archive's end.
        index: one record of schema.index_dtype a chip, offsets counted from the chunk's start.
        moments: of the packed chips' pixels.
        problems: one for every chip that was left out.
    """

    tar: bytes
    index: NDArray[np.void]
    moments: Moments
    problems: list[Problem]


def pack_chunk(chunk: Chunk) -> Packed:
    """Packs the chips that are what they should be, in order."""
    index = np.zeros(len(chunk.records), index_dtype(chunk.key_bytes))
    moments = MomentSum(chunk.form)
    form = chunk.form
    canvas = np.empty((form.height, form.width, form.bands), form.dtype)
    parts: list[bytes] = []
    problems: list[Problem] = []
    position = count = 0
    for record in chunk.records:
        try:
            image = _read(record)
            pixels, raw_offset = _decode(image, chunk, canvas)
        except DecodeError as error:
            where = printable(record.path)
            problems.append(Problem(error.rule, where, 0, error.value, error.remedy))
            continue
        moments.add(pixels)
        members = sample_members(f"{record.key}.{chunk.kind}", image, record.labels)
        labels, labelled = record.labels or 0, record.labels is not None
        digest = np.frombuffer(image_digest(image), np.uint8)
        key, offset = record.key.encode(), position + BLOCK_BYTES
        index[count] = (key, offset, len(image), raw_offset, labels, labelled, digest)
        count += 1
        parts += members
        position += sum(map(len, members))
    return Packed(b"".join(parts), index[:count], moments.total(), problems)


def sample_members(image_name: str, image: bytes, labels: int | None) -> list[bytes]:
    """A chip's members: its image KEY.jpg or KEY.tif, then KEY.cls where it has labels.

    Returns:
        The pieces in order, to be joined.
    """
    members = [member_header(image_name, len(image)), image, padding(len(image))]
    if labels is not None:
        members.append(class_member(image_name, labels))
    return members


def class_member(image_name: str, labels: int) -> bytes:
    """The member KEY.cls beside an image: the packed label bits as a decimal integer."""
    text = b"%d" % labels
    name = image_name.rpartition(".")[0] + ".cls"
    return member_header(name, len(text)) + text + padding(len(text))


def _read(record: Record) -> bytes:
    try:
        with io.FileIO(record.path) as file:
            data = file.readall()
    except OSError as error:
        raise DecodeError(
            str(error.strerror), "an image can be read", "make the file readable, or leave it out"
        ) from error
    if len(data) != record.size:
        raise DecodeError(
            f"{len(data)} bytes where there were {record.size} when the build began",
            "images stay as they are while they are packed",
            "run the same command again when nothing writes to the folder",
        )
    return data


def _decode(image: bytes, chunk: Chunk, canvas: Pixels) -> tuple[Pixels, int]:
    raw_offset = 0
    if chunk.kind == "tif":
        pixels, raw_offset = decode_with_offset(image, chunk.kind)
    else:
        try:
            pixels = decode(image, chunk.kind, canvas)
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
