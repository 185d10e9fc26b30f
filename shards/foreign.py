"""The samples of a WebDataset tar that somebody else wrote: webdataset's ShardWriter, GNU tar, or any other writer.

A sample is what webdataset takes for one: neighbouring members whose names are equal up to the first dot of their last
part. Its image may stand before or after its other members, of which KEY.cls alone is looked at.
"""

from __future__ import annotations

import mmap
import os
import tarfile
from dataclasses import dataclass, field
from io import BufferedReader

from shards.errors import Problem
from shards.names import ENDINGS, NAME_REMEDY, NAME_RULE, name_fault, printable
from shards.ustar import BLOCK_BYTES

MAX_CLASS_BYTES = 64
_TAR_RULE = "a tar holds whole members up to its end, which is marked by two blocks of zeros"
_TAR_REMEDY = "copy or write the tar again"
_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Sample:
    """A chip in a tar: its name, its image's kind, offset and size in bytes, and what its KEY.cls holds, if any."""

    key: str
    kind: str
    offset: int
    size: int
    class_text: bytes | None


@dataclass
class Listing:
    """What a tar holds: chips in its order, how many members were passed over, and everything that is wrong."""

    samples: list[Sample] = field(default_factory=list)
    other_members: int = 0
    problems: list[Problem] = field(default_factory=list)


@dataclass
class _Group:
    prefix: str
    images: list[tuple[str, tarfile.TarInfo]] = field(default_factory=list)
    classes: list[tarfile.TarInfo] = field(default_factory=list)


def list_samples(file: BufferedReader, name: str) -> Listing:
    """Reads the names in a tar and the contents of KEY.cls members; opens no image, and never loops or hangs.

    Args:
        file: the tar, opened.
        name: for people.

    Raises:
        OSError: the file cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
    walk = _Walk(name, data)
    try:
        # No compression: offsets into a compressed tar mean nothing.
        with tarfile.open(fileobj=file, mode="r:") as tar:
            walk.members(tar)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        walk.fault(_TAR_RULE, f"{type(error).__name__}: {error}", _TAR_REMEDY)
    return walk.listing


class _Walk:
    """Goes through a tar once, from its start to its end."""

    def __init__(self, name: str, data: memoryview) -> None:
        self.listing = Listing()
        self._where, self._data = printable(name), data
        self._seen: set[str] = set()
        self._group = _Group("")

    def fault(self, rule: str, value: str, remedy: str) -> None:
        self.listing.problems.append(Problem(rule, self._where, 0, printable(value), remedy))

    def members(self, tar: tarfile.TarFile) -> None:
        position = 0
        while (member := tar.next()) is not None:
            vars(tar)["members"].clear()  # it would keep every member for as long as the file is open
            # A size that is negative or lies leads backwards, and a walk without end.
            if member.size < 0 or tar.offset <= position or member.offset_data + member.size > len(self._data):
                self.fault(_TAR_RULE, f"{member.name!r} ends at byte {tar.offset} of {len(self._data)}", _TAR_REMEDY)
                return
            position = tar.offset
            self._member(member)
        self._finish_group()
        rest = len(self._data) - tar.offset
        # tarfile ends in silence at a header that it cannot read, as webdataset does.
        if rest < 2 * BLOCK_BYTES or not _zeros(self._data[tar.offset :]):
            found = f"{rest} byte(s) at {tar.offset} that are no such end"
            self.fault(_TAR_RULE, found, _TAR_REMEDY)

    def _member(self, member: tarfile.TarInfo) -> None:
        folder, _, name = member.name.rpartition("/")
        stem, dot, ending = name.partition(".")
        special = name.startswith("__") and name.endswith("__")
        if not member.isreg() or not stem or not dot or special:
            self.listing.other_members += 1
            return
        prefix = f"{folder}/{stem}"
        if prefix != self._group.prefix:
            self._finish_group()
            self._group = _Group(prefix)
        kind = ENDINGS.get(f".{ending.lower()}")
        if member.issparse() and (kind or ending.lower() == "cls"):
            self.fault("a member lies in the tar as it is", f"{member.name!r} is sparse", "pack it without --sparse")
        elif kind:
            self._group.images.append((kind, member))
        elif ending.lower() == "cls":
            self._group.classes.append(member)
        else:
            self.listing.other_members += 1

    def _finish_group(self) -> None:
        group, key = self._group, self._group.prefix.rpartition("/")[2]
        self._group = _Group("")
        if not group.images:
            self.listing.other_members += len(group.classes)
            return
        if len(group.images) > 1 or len(group.classes) > 1:
            names = ", ".join(member.name for member in [*(image for _, image in group.images), *group.classes])
            self.fault("a sample has one image and one class", names, "give each image a name of its own")
        elif key in self._seen:
            remedy = "pack members of one sample side by side, and give each sample a name of its own"
            self.fault("a name stands for one sample, whose members are neighbours", repr(key), remedy)
        elif fault := name_fault(key):
            self.fault(NAME_RULE, fault, NAME_REMEDY)
        else:
            kind, image = group.images[0]
            text = self._class_text(group.classes[0]) if group.classes else None
            self.listing.samples.append(Sample(key, kind, image.offset_data, image.size, text))
        self._seen.add(key)

    def _class_text(self, member: tarfile.TarInfo) -> bytes:
        end = member.offset_data + min(member.size, MAX_CLASS_BYTES)
        return bytes(self._data[member.offset_data : end])


def _zeros(data: memoryview) -> bool:
    return not any(any(data[start : start + _CHUNK_BYTES]) for start in range(0, len(data), _CHUNK_BYTES))
