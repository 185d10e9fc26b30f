"""W&B's own files: the records of RUN/wandb/*-run-*/run-ID.wandb, read and written.

W&B has no public reader or writer for them. A file is a header of seven bytes, then LevelDB's log: blocks of 32 KiB,
in which a record stands whole or in parts, each behind a checksum (CRC-32), its size and its kind. What a record holds
are W&B's own protobuf messages.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shards.errors import RunError

_HEADER = b":W&B\xe1\xbe\x00"
_BLOCK, _PREFIX = 32768, 7  # bytes; the prefix is checksum (4), size (2) and kind (1)
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def new_record(message: bytes = b"") -> Any:
    """A wandb Record: an empty one, or what a message says."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2
    return messages.Record.FromString(message)


def read_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, up to where it was cut off.

    Yields:
        wandb Records (wandb.proto.wandb_internal_pb2).

    Raises:
        RunError: not such a file, or damaged before its end.
    """
    from google.protobuf.message import DecodeError

    data = path.read_bytes()
    if data[: len(_HEADER)] != _HEADER:
        if len(data) < len(_HEADER):
            return  # killed before its first byte was on disk
        raise RunError(
            f"{path}: not a W&B file of a version that is known here; send it with: wandb sync {path.parent}"
        )
    try:
        for message in _messages(data):
            yield new_record(message)
    except (DecodeError, _DamagedError) as error:
        raise RunError(
            f"{path}: damaged ({error}); move {path.parent} away, and planet-dist sync sends the rest, or all numbers "
            "with --rebuild"
        ) from error


class _DamagedError(Exception):
    pass


def _messages(data: bytes) -> Iterator[bytes]:
    at, parts = len(_HEADER), b""
    while at + _PREFIX <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _PREFIX:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        body = data[at + _PREFIX : at + _PREFIX + size]
        if len(body) < size or (kind == 0 and not any(data[at:])):
            return  # the last record was being written, or its block was never filled
        if zlib.crc32(data[at + 6 : at + 7] + body) != int.from_bytes(data[at : at + 4], "little"):
            raise _DamagedError(f"checksum of the record at byte {at}")
        parts = body if kind in (_WHOLE, _FIRST) else parts + body
        at += _PREFIX + size
        if kind in (_WHOLE, _LAST):
            yield parts


def write_records(path: Path, records: Iterable[Any]) -> None:
    """Writes records as a .wandb file, numbered anew.

    Args:
        path: must not exist.
        records: wandb Records; their numbers are changed.
    """
    with path.open("xb") as file:
        file.write(_HEADER)
        at = len(_HEADER)
        for number, record in enumerate(records, start=1):
            record.num = number
            written = _framed(record.SerializeToString(), at)
            file.write(written)
            at += len(written)


def _framed(body: bytes, at: int) -> bytes:
    """A record's bytes where `at` bytes stand before it."""
    out, first = b"", True
    while True:
        left = _BLOCK - (at + len(out)) % _BLOCK
        if left < _PREFIX:
            out += bytes(left)
            left = _BLOCK
        part, body = body[: left - _PREFIX], body[left - _PREFIX :]
        kind = (_WHOLE if first else _LAST) if not body else (_FIRST if first else _MIDDLE)
        checksum = zlib.crc32(bytes([kind]) + part).to_bytes(4, "little")
        out += checksum + len(part).to_bytes(2, "little") + bytes([kind]) + part
        first = False
        if not body:
            return out
