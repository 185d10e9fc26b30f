"""Makes a dataset of WebDataset tars where they lie: an index beside each, and a manifest; no tar is touched."""

from __future__ import annotations

import hashlib
import mmap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shards.assemble import band_names, make_manifest
from shards.csvlabels import LabelFile, empty_label_file, read_labels
from shards.errors import ConfigError, DatasetError, DecodeError, InputError, Problem
from shards.foreign import Listing, Sample, list_samples
from shards.labels import Vocabulary
from shards.moments import Moments, MomentSum, total_moments
from shards.names import natural_order, printable
from shards.packing import check_form, decode_with_offset, form_of
from shards.pixels import PixelFormat
from shards.schema import MANIFEST, SHARD_NAME, Manifest, Shard, image_digest, index_bytes, index_dtype, write_whole
from shards.unfinished import FinishedShard
from shards.workers import map_in_order, worker_pool

_PROBED_CHIPS = 101
_MOMENT_CHIPS = 64
ClassMeaning = Literal["bits", "index"]


@dataclass(frozen=True)
class IndexOptions:
    """What to make a dataset of.

    Attributes:
        root: the folder of tars, into which indexes and manifest are written.
        labels: a CSV of labels, or None.
        vocabulary: the labels that its tags or the classes stand for.
        classes: what the number in KEY.cls is: label bits, or the place of one label; None where there is a CSV, and
            where chips are to have no labels.
        unlabelled: take chips without a row or a KEY.cls.
        workers: processes that read and check.
    """

    root: Path
    labels: Path | None
    vocabulary: Vocabulary
    classes: ClassMeaning | None = None
    unlabelled: bool = False
    workers: int = 1


@dataclass(frozen=True)
class IndexReport:
    """What was made: the manifest, how many members no chip was made of, and breaches of the vocabulary's rules."""

    manifest: Manifest
    other_members: int
    breaches: Counter[str]


@dataclass(frozen=True)
class _Task:
    path: Path
    samples: list[Sample]
    labels: list[int | None]
    kind: str
    form: PixelFormat
    key_bytes: int


def index_tars(options: IndexOptions, progress: Callable[[int, int], None] = lambda done, total: None) -> IndexReport:
    """Indexes tars. Every image is decoded once to check it, as by a build.

    Args:
        progress: called with the chips done and their number.

    Raises:
        InputError: everything that is wrong with the tars and the labels.
        DatasetError: the folder holds a dataset already, or files that an index would write over.
        ConfigError: there are no tars, or nothing says what their labels are.
    """
    paths = _tars(options.root)
    listings = [_list(path) for path in paths]
    problems = [problem for listing in listings for problem in listing.problems]
    problems += _doubled(paths, listings)
    kind, kind_problems = _one_kind(paths, listings)
    labels = _Labels(options, listings)
    problems += kind_problems + labels.problems
    form = _common_form(paths, listings, kind)
    if problems or form is None:
        raise InputError(problems or [_no_image(options.root)])
    key_bytes = max(len(sample.key.encode()) for listing in listings for sample in listing.samples)
    tasks = [
        _Task(path, listing.samples, [labels.of(path, sample) for sample in listing.samples], kind, form, key_bytes)
        for path, listing in zip(paths, listings, strict=True)
        if listing.samples
    ]
    if labels.problems:
        raise InputError(labels.problems)
    manifest = _write(options, tasks, labels.table, form, progress)
    breaches = Counter(
        rule for task in tasks for bits in task.labels if bits is not None for rule in options.vocabulary.breaches(bits)
    )
    return IndexReport(manifest, sum(listing.other_members for listing in listings), breaches)


def _tars(root: Path) -> list[Path]:
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; give the folder that holds the tars")
    if (root / MANIFEST).exists():
        raise DatasetError(f"{root}: holds a dataset already; remove its {MANIFEST} and .idx files to index it anew")
    paths = sorted(root.glob("*.tar"), key=lambda path: natural_order(path.name))
    if not paths:
        packed = sorted([*root.glob("*.tar.*"), *root.glob("*.tgz")])
        hint = f"; unpack {packed[0].name} and the like by gunzip or its kin first" if packed else ""
        raise ConfigError(f"{root}: holds no file that ends in .tar{hint}")
    for path in paths:
        if not SHARD_NAME.fullmatch(path.stem) or not path.is_file():
            raise ConfigError(
                f"{printable(str(path))}: a shard is a file whose name holds letters, digits, - and _ alone; rename it"
            )
        index = path.with_suffix(".idx")
        if index.exists() and not index.read_bytes()[:10].startswith(b"\x93NUMPY"):
            raise DatasetError(f"{index}: a file of another program; move it elsewhere, since the index goes there")
    return paths


def _list(path: Path) -> Listing:
    try:
        with path.open("rb") as file:
            return list_samples(file, str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; make the file readable") from error


def _doubled(paths: Sequence[Path], listings: Sequence[Listing]) -> list[Problem]:
    first: dict[str, Path] = {}
    problems = []
    for path, listing in zip(paths, listings, strict=True):
        for sample in listing.samples:
            if first.setdefault(sample.key, path) is not path:
                value = f"{sample.key!r} stands in {first[sample.key].name} too"
                remedy = "give each sample a name of its own, or index the tars in two folders"
                rule = "a name stands for one sample of all tars"
                problems.append(Problem(rule, printable(str(path)), 0, value, remedy))
    return problems


def _one_kind(paths: Sequence[Path], listings: Sequence[Listing]) -> tuple[str, list[Problem]]:
    counts = Counter(sample.kind for listing in listings for sample in listing.samples)
    kind = counts.most_common(1)[0][0] if counts else "jpg"
    return kind, [
        Problem(
            "a dataset holds one kind of image",
            printable(str(path)),
            0,
            f"{sample.key!r} is {sample.kind} among {counts[kind]} {kind}",
            "put JPEG and TIFF chips into tars of two folders",
        )
        for path, listing in zip(paths, listings, strict=True)
        for sample in listing.samples
        if sample.kind != kind
    ]


def _no_image(root: Path) -> Problem:
    remedy = "give tars that hold KEY.jpg or KEY.tif members"
    return Problem("tars hold images that decode", printable(str(root)), 0, "not one", remedy)


def _common_form(paths: Sequence[Path], listings: Sequence[Listing], kind: str) -> PixelFormat | None:
    """The most common form among up to 101 evenly spaced chips, the first of equals; None if none decodes."""
    every = [(path, sample) for path, listing in zip(paths, listings, strict=True) for sample in listing.samples]
    found: Counter[PixelFormat] = Counter()
    for path, sample in every[:: max(1, -(-len(every) // _PROBED_CHIPS))]:
        with path.open("rb") as file:
            file.seek(sample.offset)
            image = file.read(sample.size)
        try:
            found[form_of(decode_with_offset(image, kind)[0])] += 1
        except DecodeError:
            continue
    return found.most_common(1)[0][0] if found else None


class _Labels:
    """Where a chip's labels come from, and what is wrong with them."""

    def __init__(self, options: IndexOptions, listings: Sequence[Listing]) -> None:
        self._options = options
        has_classes = any(sample.class_text is not None for listing in listings for sample in listing.samples)
        if options.labels is not None and options.classes is not None:
            raise ConfigError("labels come from --labels or from KEY.cls as --classes says; give one of the two")
        if options.labels is None and options.classes is None and not (options.unlabelled and not has_classes):
            raise ConfigError(
                f"{options.root}: nothing says what the labels are; give a CSV as --labels, or say what the number in "
                "KEY.cls is by --classes bits or --classes index, or pass --unlabelled for tars without KEY.cls"
            )
        try:
            self.table: LabelFile = (
                read_labels(options.labels, options.vocabulary) if options.labels else empty_label_file()
            )
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}; give a readable CSV as --labels") from error
        self.problems = list(self.table.problems)
        if options.labels is not None and self.table.usable:
            self._check_rows({sample.key for listing in listings for sample in listing.samples})

    def _check_rows(self, keys: set[str]) -> None:
        self.problems += [
            Problem(
                "a row of labels has its image",
                printable(str(self._options.labels)),
                row.line,
                f"no member for {key!r}",
                "take the row out, or add the tar that holds the image",
            )
            for key, row in self.table.rows.items()
            if key not in keys
        ]

    def of(self, path: Path, sample: Sample) -> int | None:
        """The label bits of a chip, None for an unlabelled one."""
        if self._options.labels is not None:
            row = self.table.rows.get(sample.key)
            found = row.bits if row else None
        elif self._options.classes is not None and sample.class_text is not None:
            found = self._of_class(path, sample)
        else:
            found = None
        if found is None and not self._options.unlabelled:
            value = f"{sample.key!r} has none"
            remedy = "add its row or its KEY.cls, or take such chips with --unlabelled"
            self.problems.append(Problem("a chip has labels", printable(str(path)), 0, value, remedy))
        return found

    def _of_class(self, path: Path, sample: Sample) -> int:
        text = (sample.class_text or b"").strip()
        most = len(self._options.vocabulary.labels)
        number = int(text) if text.isdigit() else -1
        if self._options.classes == "index":
            fits, rule = 0 <= number < most, f"KEY.cls is the place of one of {most} labels, from 0"
        else:
            fits, rule = 0 <= number < 1 << most, f"KEY.cls is the bits of {most} labels as a decimal number"
        if not fits:
            value = f"{sample.key!r}: {printable(repr(text[:40]))}"
            remedy = "give the labels as --labels CSV, or the fitting --vocabulary or --classes"
            self.problems.append(Problem(rule, printable(str(path)), 0, value, remedy))
            return 0
        return 1 << number if self._options.classes == "index" else number


def _write(
    options: IndexOptions,
    tasks: list[_Task],
    table: LabelFile,
    form: PixelFormat,
    progress: Callable[[int, int], None],
) -> Manifest:
    finished: list[tuple[FinishedShard, bytes]] = []
    total = sum(len(task.samples) for task in tasks)
    done = 0
    progress(done, total)
    with worker_pool(min(options.workers, len(tasks))) as pool:
        for shard, data in map_in_order(pool, _index_one, tasks, 2 * options.workers + 2):
            finished.append((shard, data))
            done += len(tasks[len(finished) - 1].samples)
            progress(done, total)
    problems = [problem for shard, _ in finished for problem in shard.problems]
    if problems:
        raise InputError(problems)
    kind = tasks[0].kind
    try:
        for shard, data in finished:
            write_whole(options.root / f"{shard.shard.name}.idx", data)
        manifest = make_manifest(
            options.root,
            [shard for shard, _ in finished],
            options.vocabulary,
            (kind, form, band_names(kind, form.bands)),
            (table.sha256, table.repeated_tags, 0),
        ).model_copy(update={"tars": "indexed"})
        write_whole(options.root / MANIFEST, manifest.to_bytes())
    except OSError as error:
        raise DatasetError(
            f"{error.filename or options.root}: {error.strerror}; make the folder writable, or free some space"
        ) from error
    return manifest


def _index_one(task: _Task) -> tuple[FinishedShard, bytes]:
    """Checks every image of a tar, and makes its index."""
    index: NDArray[np.void] = np.zeros(len(task.samples), index_dtype(task.key_bytes))
    problems: list[Problem] = []
    parts: list[Moments] = []
    moments = MomentSum(task.form)
    with task.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        tar = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    for number, (sample, bits) in enumerate(zip(task.samples, task.labels, strict=True)):
        image = tar[sample.offset : sample.offset + sample.size]
        try:
            pixels, raw_offset = decode_with_offset(image, task.kind)
            check_form(pixels, task.form)
        except DecodeError as error:
            where = printable(f"{task.path}: {sample.key}")
            problems.append(Problem(error.rule, where, 0, error.value, error.remedy))
            continue
        moments.add(pixels)
        digest = np.frombuffer(image_digest(image), np.uint8)
        key = sample.key.encode()
        index[number] = (key, sample.offset, sample.size, raw_offset, bits or 0, bits is not None, digest)
        if number % _MOMENT_CHIPS == _MOMENT_CHIPS - 1:
            parts.append(moments.total())
            moments = MomentSum(task.form)
    parts.append(moments.total())
    data = index_bytes(index)
    shard = Shard(
        name=task.path.stem,
        count=len(index),
        bytes=len(tar),
        sha256=sha256,
        index_sha256=hashlib.sha256(data).hexdigest(),
    )
    return FinishedShard("", shard, total_moments(parts, task.form.bands), problems), data
