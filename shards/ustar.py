"""Members of a USTAR archive as bytes that depend on a name and its content alone."""

from __future__ import annotations

BLOCK_BYTES = 512
RECORD_BYTES = 10240  # tar writes whole records of 20 blocks, and some readers want them whole
MAX_MEMBER_BYTES = 8**11 - 1  # eleven octal digits

_MODE = b"0000644\0"
_ZERO_ID = b"0000000\0"
_ZERO_TIME = b"00000000000\0"
_TAIL = (b"0" + bytes(100) + b"ustar\0" + b"00").ljust(BLOCK_BYTES - 156, b"\0")
_BLANK_CHECKSUM = b" " * 8


def member_header(name: str, size: int) -> bytes:
    """The header of a regular file: mode 0644, owner 0 without a name, modified at 0.

    Args:
        name: at most 100 bytes of UTF-8.
        size: of the content, bytes.

    Returns:
        512 bytes.
    """
    encoded = name.encode()
    assert 0 < len(encoded) <= 100 and 0 <= size <= MAX_MEMBER_BYTES, (name, size)
    head = encoded.ljust(100, b"\0") + _MODE + _ZERO_ID + _ZERO_ID + b"%011o\0" % size + _ZERO_TIME
    checksum = sum(head) + sum(_BLANK_CHECKSUM) + _TAIL_SUM
    return head + b"%06o\0 " % checksum + _TAIL


_TAIL_SUM = sum(_TAIL)


def padding(size: int) -> bytes:
    """The zeros that fill the last block of a content of `size` bytes."""
    return bytes(-size % BLOCK_BYTES)


def member_bytes(size: int) -> int:
    """What a file of `size` bytes takes in the archive, its header and padding included."""
    return BLOCK_BYTES + size + -size % BLOCK_BYTES


def archive_end(size: int) -> bytes:
    """The zeros that end an archive whose members take `size` bytes: two blocks, then a whole record."""
    return bytes(2 * BLOCK_BYTES + -(size + 2 * BLOCK_BYTES) % RECORD_BYTES)
