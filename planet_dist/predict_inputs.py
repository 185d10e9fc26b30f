"""The chips that are to be predicted: those of folders and datasets, under one set of names.

A folder holds image files (shards.sources); a dataset is one of planet-shard, in a folder or behind a URL. The
competition's test chips come in two folders, test_N and file_N, so that several may be given together.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shards.errors import DatasetError, DecodeError, Problem, RunError
from shards.labels import Vocabulary
from shards.location import is_url
from shards.names import natural_order
from shards.pixels import Pixels, decode
from shards.reader import Dataset
from shards.schema import MANIFEST, ImageForm
from shards.sources import Record, scan_sources

_SHOWN = 5


class Unreadable(Exception):
    """A chip without usable pixels; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class Chip(Protocol):
    """A chip that can be read."""

    @property
    def key(self) -> str:
        """Its name, without an ending."""

    @property
    def where(self) -> str:
        """Its file, or its dataset and name, for people."""

    @property
    def identity(self) -> str:
        """What changes when its image does: size and time of a file, the digest of a packed image."""

    def pixels(self) -> Pixels:
        """Its pixels (H, W, bands). Raises Unreadable."""


@dataclass(frozen=True)
class Chips:
    """What is to be predicted.

    Attributes:
        chips: in natural order of their names, no name twice.
        problems: of what was left out.
    """

    chips: list[Chip]
    problems: list[Problem]


def open_chips(locations: Sequence[str], form: ImageForm, vocabulary: Vocabulary) -> Chips:
    """Lists the chips of folders and datasets; opens no image.

    Args:
        locations: folders of images, and folders or URLs of datasets.
        form: of the chips that the model was trained on; kind, bands and dtype must be theirs, sizes may differ.
        vocabulary: of the model.

    Raises:
        RunError: a location holds chips of another kind, or two chips bear one name.
        DatasetError: a dataset cannot be read.
        OSError: a folder cannot be read.
    """
    chips: list[Chip] = []
    problems: list[Problem] = []
    for location in locations:
        if is_url(location) or (Path(location) / MANIFEST).is_file():
            chips += _of_dataset(location, form)
        else:
            found, faults = _of_folder(Path(location), form, vocabulary)
            chips += found
            problems += faults
    chips.sort(key=lambda chip: natural_order(chip.key))
    _refuse_doubles(chips)
    return Chips(chips, problems)


def _refuse_doubles(chips: Sequence[Chip]) -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for chip in chips:
        places[chip.key].append(chip.where)
    doubled = [(key, where) for key, where in places.items() if len(where) > 1]
    if doubled:
        shown = "".join(f"\n  {key}: {', '.join(where)}" for key, where in doubled[:_SHOWN])
        raise RunError(
            f"{len(doubled)} name(s) stand for more than one chip, and a row bears one name; give each chip once{shown}"
        )


@dataclass(frozen=True)
class _FileChip:
    record: Record
    form: ImageForm

    @property
    def key(self) -> str:
        return self.record.key

    @property
    def where(self) -> str:
        return self.record.path

    @property
    def identity(self) -> str:
        return json.dumps([self.record.path, self.record.size, self.record.mtime_ns])

    def pixels(self) -> Pixels:
        try:
            pixels = decode(Path(self.record.path).read_bytes(), self.form.kind)
            if pixels.shape[2] != self.form.bands or pixels.dtype.name != self.form.dtype:
                raise DecodeError(
                    f"{pixels.shape[2]} bands of {pixels.dtype.name}",
                    f"the model was trained on {self.form.bands} bands of {self.form.dtype}",
                    "convert the image, or use a model that was trained on such",
                )
        except DecodeError as error:
            raise Unreadable(Problem(error.rule, self.where, 0, error.value, error.remedy)) from error
        except OSError as error:
            problem = Problem("an image can be read", self.where, 0, str(error.strerror), "mend the file")
            raise Unreadable(problem) from error
        return pixels


def _of_folder(folder: Path, form: ImageForm, vocabulary: Vocabulary) -> tuple[list[_FileChip], list[Problem]]:
    scan = scan_sources(folder, None, vocabulary, unlabelled=True)
    if scan.records and scan.kind != form.kind:
        raise RunError(
            f"{folder}: the images are {scan.kind}, and the model was trained on {form.kind} "
            f"({form.pixels}); give a folder of those"
        )
    return [_FileChip(record, form) for record in scan.records], scan.problems


@dataclass(frozen=True)
class _PackedChip:
    dataset: Dataset
    chip_id: int
    key: str
    digest: str

    @property
    def where(self) -> str:
        return f"{self.dataset.shown.rstrip('/')}/{self.key}"

    @property
    def identity(self) -> str:
        return self.digest

    def pixels(self) -> Pixels:
        try:
            return self.dataset.pixels(self.chip_id)
        except DatasetError as error:
            remedy = "run planet-shard verify, then restore or rebuild the dataset"
            raise Unreadable(Problem("a chip of a dataset can be read", self.where, 0, str(error), remedy)) from error


def _of_dataset(location: str, form: ImageForm) -> list[_PackedChip]:
    dataset = Dataset(location)
    image = dataset.manifest.image
    if (image.kind, image.dtype, image.band_order) != (form.kind, form.dtype, form.band_order):
        raise RunError(
            f"{dataset.shown}: its chips are {image.kind} of {image.dtype} {', '.join(image.band_order)}, and the "
            f"model was trained on {form.kind} of {form.dtype} {', '.join(form.band_order)}; give a dataset of those"
        )
    index_N = dataset.index()
    keys = dataset.keys(range(len(dataset)))
    digests = [digest.tobytes().hex() for digest in index_N["digest"]]
    return [_PackedChip(dataset, i, key, digest) for i, (key, digest) in enumerate(zip(keys, digests, strict=True))]
