"""The files of a dataset: manifest.json, and an index beside every shard (docs/format.md)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shards.errors import DatasetError
from shards.labels import ExclusiveGroup, Vocabulary
from shards.pixels import DTYPES, MAX_BANDS, MAX_PIXELS, PixelFormat

FORMAT: Final = "planet-dist-dataset"
VERSION = 2
MANIFEST = "manifest.json"
MAX_KEY_BYTES = 90  # a USTAR name holds 100 bytes, extension included
DIGEST_BYTES = 16  # of an image
MAX_MANIFEST_BYTES = 64 * 2**20  # some 300,000 shards; a larger file is not read into memory
_SEAL_MARK = b',\n "seal": "'

SHARD_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]*")  # no dot and no slash: it stays in its folder
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]  # what a JSON number holds exactly everywhere
Measure = Annotated[float, Field(allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ImageForm(_Record):
    """What every chip shares: kind "jpg" or "tif", size in pixels, bands, dtype, and what each band is."""

    kind: Literal["jpg", "tif"]
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    bands: int = Field(gt=0)
    dtype: str
    band_order: list[str]

    @model_validator(mode="after")
    def _consistent(self) -> ImageForm:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.height * self.width > MAX_PIXELS or self.bands > MAX_BANDS:
            raise ValueError(
                f"{self.height}x{self.width} pixels of {self.bands} bands; a chip has at most {MAX_PIXELS} pixels "
                f"and {MAX_BANDS} bands"
            )
        if len(self.band_order) != self.bands:
            raise ValueError(f"band_order names {len(self.band_order)} of {self.bands} bands")
        return self

    @property
    def pixels(self) -> PixelFormat:
        """The form as the decoder knows it."""
        return PixelFormat(self.height, self.width, self.bands, self.dtype)


class Shard(_Record):
    """One tar and its index: NAME.tar and NAME.idx."""

    name: str = Field(pattern=rf"^{SHARD_NAME.pattern}$")
    count: Count
    bytes: Count
    sha256: Sha256
    index_sha256: Sha256


class Group(_Record):
    """Labels that exclude each other; exactly one must stand where `required`."""

    name: str
    labels: list[str]
    required: bool


class Sources(_Record):
    """What the dataset was built from, and what the build did about it.

    Attributes:
        labels_sha256: of the CSV's bytes, or null without a CSV.
        images_sha256: over the chips' own digests, in order.
        repeated_tags: rows that named a tag twice (kept once).
        rejected: chips and rows left out and listed in rejected.csv.
    """

    labels_sha256: Sha256 | None
    images_sha256: Sha256
    repeated_tags: Count
    rejected: Count


class Manifest(_Record):
    """All that is known of a dataset without reading its shards.

    Attributes:
        count: chips; `labelled` of them have labels.
        label_counts: chips that bear label i.
        cooccurrence: [i][j] chips that bear both labels i and j.
        mean, std: per band, in the pixels' own units, over some rows of every chip (moments.py).
        tars: "packed" in the one layout that the build writes, or "indexed": somebody else's, read where they lie.
    """

    format: Literal["planet-dist-dataset"]
    version: int
    labels: list[str]
    exclusive: list[Group]
    alone: list[str]
    image: ImageForm
    count: Count
    labelled: Count
    label_counts: list[Count]
    cooccurrence: list[list[Count]]
    mean: list[Measure]
    std: list[Measure]
    tars: Literal["packed", "indexed"] = "packed"
    sources: Sources
    shards: list[Shard]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        labels, bands = len(self.labels), self.image.bands
        if len(self.label_counts) != labels or [len(row) for row in self.cooccurrence] != [labels] * labels:
            raise ValueError(f"label_counts and cooccurrence must have one entry for each of {labels} labels")
        if len(self.mean) != bands or len(self.std) != bands:
            raise ValueError(f"mean and std must have one entry for each of {bands} bands")
        if sum(shard.count for shard in self.shards) != self.count or self.labelled > self.count:
            raise ValueError(f"count {self.count} disagrees with the shards' counts or with labelled {self.labelled}")
        names = [shard.name for shard in self.shards]
        if len(set(names)) != len(names):
            raise ValueError("two shards bear one name")
        return self

    @property
    def vocabulary(self) -> Vocabulary:
        """The labels with their rules."""
        groups = tuple(ExclusiveGroup(g.name, tuple(g.labels), g.required) for g in self.exclusive)
        return Vocabulary(tuple(self.labels), groups, tuple(self.alone))

    def to_bytes(self) -> bytes:
        """The file's bytes: the same for the same content, wherever and whenever it's written."""
        return sealed(self.model_dump())


def sealed(table: dict[str, Any]) -> bytes:
    """A manifest's table as the bytes of its file, whose last key is the sha256 of all bytes before that key."""
    plain = {key: value for key, value in table.items() if key != "seal"}
    body = json.dumps(plain, indent=1, ensure_ascii=False).encode().removesuffix(b"\n}")
    return body + _SEAL_MARK + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def is_sealed(data: bytes) -> bool:
    """Whether a manifest's bytes bear a seal; the first datasets were written without."""
    return _SEAL_MARK in data


def _check_seal(data: bytes, where: str) -> None:
    body, mark, rest = data.rpartition(_SEAL_MARK)
    if not mark or rest != hashlib.sha256(body).hexdigest().encode() + b'"\n}\n':
        raise DatasetError(
            f"{where}: changed since it was written (its seal is not the sha256 of what stands before it); "
            "restore it from a copy, or build the dataset again"
        )


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return table


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Reads a manifest's bytes; `where` names it in errors.

    Raises:
        DatasetError: not a manifest, of another version, or inconsistent in itself.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise DatasetError(f"{where}: more than {MAX_MANIFEST_BYTES >> 20} MiB; this is not the manifest of a dataset")
    try:
        table: Any = json.loads(data, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: not JSON ({error}); run planet-shard build again") from error
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise DatasetError(f"{where}: not the manifest of a dataset (its format is not {FORMAT!r})")
    if table.get("version") != VERSION:
        raise DatasetError(
            f"{where}: format version {table.get('version')!r}; this program reads version {VERSION}; "
            "build the dataset again with it, or use the release that wrote it"
        )
    if "seal" in table:
        _check_seal(data, where)
        del table["seal"]
    try:
        manifest = Manifest.model_validate(table)
        manifest.vocabulary  # noqa: B018 - raises for labels that break the vocabulary's own rules
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise DatasetError(f"{where}: {at}: {first['msg']} ({error.error_count()} fault(s) in all)") from error
    except ValueError as error:
        raise DatasetError(f"{where}: {error}") from error
    return manifest


def index_dtype(key_bytes: int) -> np.dtype[np.void]:
    """The record of one chip in an index.

    Fields: key (UTF-8), offset and size of the image in the tar, pixels (offset inside the image from which
    the pixels lie uncompressed, 0 where they must be decoded), labels (packed bits), labelled, and digest
    (of the image; see image_digest).
    """
    return np.dtype(
        [
            ("key", f"S{key_bytes}"),
            ("offset", "<u8"),
            ("size", "<u8"),
            ("pixels", "<u8"),
            ("labels", "<u8"),
            ("labelled", "?"),
            ("digest", "u1", (DIGEST_BYTES,)),
        ]
    )


def image_digest(image: bytes | memoryview) -> bytes:
    """The 16 bytes by which a change of an image is noticed each time that it's read: its XXH3, 128 bits.

    It guards against accidents, thirty times as fast as sha256, of which the manifest has one for each whole tar.
    """
    return xxhash.xxh3_128_digest(image)


def most_index_bytes(shard: Shard) -> int:
    """The bytes that a shard's index has at most: larger files are not read into memory."""
    return shard.count * index_dtype(MAX_KEY_BYTES).itemsize + 4096


def index_bytes(index: NDArray[np.void]) -> bytes:
    """An index as the bytes of its file, in NumPy's npy format."""
    buffer = io.BytesIO()
    np.save(buffer, index, allow_pickle=False)
    return buffer.getvalue()


def parse_index(data: bytes, shard: Shard, where: str) -> NDArray[np.void]:
    """Reads an index's bytes and holds it against its shard.

    Raises:
        DatasetError: the digest, form, count or an offset is not what the manifest says.
    """
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise DatasetError(
            f"{where}: the index's sha256 is not the manifest's, so it is damaged or of another shard; "
            "restore it or run planet-shard build again"
        )
    # The header is read first, because NumPy would take memory for whatever shape it claims.
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"npy version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        key_bytes = dtype["key"].itemsize if dtype.names else 0
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise DatasetError(f"{where}: not an index ({error}); run planet-shard build again") from error
    if not 0 < key_bytes <= MAX_KEY_BYTES or dtype != index_dtype(key_bytes) or shape != (shard.count,):
        raise DatasetError(f"{where}: {dtype} {shape} is not an index of {shard.count} chips")
    start = stream.tell()
    if len(data) - start != shard.count * dtype.itemsize:
        raise DatasetError(f"{where}: not an index ({len(data)} bytes); run planet-shard build again")
    index: NDArray[np.void] = np.frombuffer(data, dtype, shard.count, start).copy()
    ends = index["offset"] + index["size"]
    if shard.count and (int(ends.max()) > shard.bytes or bool((ends < index["offset"]).any())):
        raise DatasetError(f"{where}: an offset lies outside the shard's {shard.bytes} bytes")
    return index


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that it appears whole or not at all, even when the machine loses power."""
    # Not the process's id, which two containers or hosts can share.
    temporary = path.with_name(f".{path.name}.{int.from_bytes(os.urandom(6))}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to disk, so that a rename in it survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
