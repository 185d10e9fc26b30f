"""Names of chips: which endings mean an image, which names a tar of samples can bear, and their order."""

from __future__ import annotations

import re

from shards.schema import MAX_KEY_BYTES

ENDINGS = {".jpg": "jpg", ".jpeg": "jpg", ".tif": "tif", ".tiff": "tif"}

NAME_RULE = (
    f"a name is 1 to {MAX_KEY_BYTES} bytes of printable UTF-8, holds no dot, slash or backslash, "
    "and does not start with two underscores"
)
NAME_REMEDY = "rename the image and its row (WebDataset cuts names at the first dot and skips __names)"


def split_ending(name: str) -> tuple[str, str | None]:
    """A file's name as (key, kind): kind is "jpg", "tif", or None for a name without an image's ending."""
    stem, dot, ending = name.rpartition(".")
    kind = ENDINGS.get(f".{ending.lower()}") if dot else None
    return (stem, kind) if kind else (name, None)


def name_fault(key: str) -> str | None:
    """What makes a key unfit, as found: None for a good one."""
    if not key:
        return "empty"
    if any(char in key for char in "./\\"):
        fault = "holds a dot, slash or backslash"
    elif not key.isprintable():
        fault = "holds a character that cannot be printed or is no UTF-8"
    elif key.startswith("__"):
        fault = "starts with two underscores"
    elif len(key.encode()) > MAX_KEY_BYTES:
        fault = f"has {len(key.encode())} bytes"
    else:
        return None
    return f"{printable(repr(key))} {fault}"


def natural_order(key: str) -> tuple[list[str | int], str]:
    """A sort key by which train_2 comes before train_10, and no two names are equal."""
    parts: list[str | int] = list(re.split(r"([0-9]+)", key))
    parts[1::2] = [int(part) for part in parts[1::2]]
    return parts, key


def printable(text: str) -> str:
    """Text that any terminal and any UTF-8 file takes: bytes of a name that are no UTF-8 become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
