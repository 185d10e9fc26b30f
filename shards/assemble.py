"""Writes packed chunks as a shard, and sums up finished shards as a manifest."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import Problem
from shards.labels import Vocabulary
from shards.moments import total_moments
from shards.packing import Packed
from shards.pixels import PixelFormat
from shards.schema import (
    FORMAT,
    VERSION,
    Group,
    ImageForm,
    Manifest,
    Shard,
    Sources,
    index_bytes,
    parse_index,
)
from shards.unfinished import FinishedShard, Workplace
from shards.ustar import archive_end


def write_shard(
    place: Workplace, name: str, fingerprint: str, pieces: Iterable[Packed], bands: int
) -> tuple[FinishedShard, bytes]:
    """Writes a shard's tar into the state folder, whole and on the disk, for Workplace.finish.

    Returns:
        What there is to know of it, and the bytes of its index.

    Raises:
        OSError: the disk is full or cannot be written; its filename is the tar's.
    """
    path = place.draft(name, "tar")
    digest = hashlib.sha256()
    position = 0
    taken: list[Packed] = []
    try:
        with path.open("wb") as file:
            for packed in pieces:
                packed.index["offset"] += position
                position += len(packed.tar)
                digest.update(packed.tar.data)
                file.write(packed.tar.data)
                taken.append(replace(packed, tar=packed.tar[:0].copy()))
            end = archive_end(position)
            digest.update(end)
            file.write(end)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names no file
        raise
    index = np.concatenate([packed.index for packed in taken])
    data = index_bytes(index)
    shard = Shard(
        name=name,
        count=len(index),
        bytes=position + len(end),
        sha256=digest.hexdigest(),
        index_sha256=hashlib.sha256(data).hexdigest(),
    )
    moments = total_moments((packed.moments for packed in taken), bands)
    problems = [problem for packed in taken for problem in packed.problems]
    return FinishedShard(fingerprint, shard, moments, problems), data


def read_indexes(root: Path, shards: Iterable[Shard]) -> NDArray[np.void]:
    """The index records of all chips (N,), of schema.index_dtype.

    Raises:
        OSError: an index cannot be read.
        DatasetError: one is not its shard's.
    """
    paths = [(root / f"{shard.name}.idx", shard) for shard in shards]
    return np.concatenate([parse_index(path.read_bytes(), shard, str(path)) for path, shard in paths])


def label_statistics(vocabulary: Vocabulary, index_N: NDArray[np.void]) -> tuple[int, list[int], list[list[int]]]:
    """How many chips are labelled, how many bear each label, and how many bear both of each two."""
    labelled_M = index_N["labels"][index_N["labelled"]]
    matrix_MC = vocabulary.matrix(labelled_M).astype(np.float64)  # exact, and BLAS has no integer product
    both_CC = (matrix_MC.T @ matrix_MC).astype(np.int64)
    return len(labelled_M), np.diagonal(both_CC).tolist(), both_CC.tolist()


def band_names(kind: str, bands: int) -> list[str]:
    """What the bands are when nobody says: RGB in a JPEG, Planet's order in a TIFF of four bands."""
    if kind == "jpg":
        return ["red", "green", "blue"]
    if bands == 4:
        return ["blue", "green", "red", "near_infrared"]
    return [f"band_{number}" for number in range(1, bands + 1)]


def make_manifest(
    root: Path,
    finished: Sequence[FinishedShard],
    vocabulary: Vocabulary,
    image: tuple[str, PixelFormat, Sequence[str]],
    sources: tuple[str | None, int, int],
) -> Manifest:
    """The manifest of the shards that hold chips.

    Args:
        root: the folder with their indexes.
        image: kind, form and band order.
        sources: the CSV's sha256 or None, rows with repeated tags, and chips and rows left out.
    """
    kind, form, band_order = image
    labels_sha256, repeated_tags, rejected = sources
    shards = [done.shard for done in finished if done.shard.count]
    index_N = read_indexes(root, shards)
    labelled, label_counts, cooccurrence = label_statistics(vocabulary, index_N)
    moments = total_moments((done.moments for done in finished), form.bands)
    return Manifest(
        format=FORMAT,
        version=VERSION,
        labels=list(vocabulary.labels),
        exclusive=[
            Group(name=group.name, labels=list(group.labels), required=group.required) for group in vocabulary.exclusive
        ],
        alone=list(vocabulary.alone),
        image=ImageForm(
            kind="tif" if kind == "tif" else "jpg",
            height=form.height,
            width=form.width,
            bands=form.bands,
            dtype=form.dtype,
            band_order=list(band_order),
        ),
        count=len(index_N),
        labelled=labelled,
        label_counts=label_counts,
        cooccurrence=cooccurrence,
        mean=moments.mean(),
        std=moments.std(),
        sources=Sources(
            labels_sha256=labels_sha256,
            images_sha256=images_digest(index_N),
            repeated_tags=repeated_tags,
            rejected=rejected,
        ),
        shards=shards,
    )


def images_digest(index_N: NDArray[np.void]) -> str:
    """One sha256 for all images: over their own digests, in order."""
    return hashlib.sha256(np.ascontiguousarray(index_N["digest"]).tobytes()).hexdigest()


def rejected_csv(problems: Sequence[Problem]) -> bytes:
    """The bytes of rejected.csv: one row a problem."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "row", "value", "rule", "remedy"])
    for problem in sorted(problems):
        writer.writerow([problem.file, problem.row or "", problem.value, problem.rule, problem.remedy])
    return text.getvalue().encode()
