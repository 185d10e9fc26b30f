"""A folder of chips and a CSV of labels as ordered records, with every problem found at once."""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from shards.csvlabels import LabelFile, empty_label_file, read_labels
from shards.errors import Problem
from shards.labels import Vocabulary
from shards.names import ENDINGS, NAME_REMEDY, NAME_RULE, name_fault, natural_order, printable, split_ending

MAX_FILE_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class Record:
    """One chip to pack.

    Attributes:
        key: its name without the ending.
        path: its file.
        size: of the file, bytes.
        mtime_ns: when the file was last changed, to notice a change between two runs.
        labels: packed bits, or None for an unlabelled chip.
    """

    key: str
    path: str
    size: int
    mtime_ns: int
    labels: int | None


@dataclass(frozen=True)
class Scan:
    """What a folder and its CSV hold.

    Attributes:
        kind: "jpg" or "tif", the more frequent one.
        records: the chips without a problem, in natural order (train_2 before train_10).
        problems: everything that is wrong.
        fatal: a problem leaves nothing to be packed, or makes the labels of all chips unknown.
        repeated_tags: rows that name a tag twice.
        breaches: how many chips break each rule of the vocabulary.
        labels_sha256: of the CSV, None without one.
        other_files: names in the folder that are no images.
    """

    kind: str
    records: list[Record]
    problems: list[Problem]
    fatal: bool
    repeated_tags: int
    breaches: Counter[str]
    labels_sha256: str | None
    other_files: list[str]


@dataclass
class _Folder:
    files: dict[str, list[os.DirEntry[str]]] = field(default_factory=lambda: defaultdict(list))
    problems: list[Problem] = field(default_factory=list)
    other_files: list[str] = field(default_factory=list)


def scan_sources(
    images: Path,
    labels: Path | None,
    vocabulary: Vocabulary,
    *,
    unlabelled: bool = False,
    strict: bool = False,
) -> Scan:
    """Reads the names in a folder and the rows of a CSV; opens no image.

    Args:
        images: the folder, of files KEY.jpg or KEY.tif.
        labels: the CSV with columns image_name and tags, or None.
        vocabulary: the labels that tags may name.
        unlabelled: an image without a row is packed without labels rather than a problem.
        strict: a label set that breaks a rule of the vocabulary is a problem.

    Raises:
        OSError: the folder or the CSV cannot be read.
    """
    folder = _list_folder(images)
    table = empty_label_file() if labels is None else read_labels(labels, vocabulary)
    problems = folder.problems + table.problems
    chips, file_problems = _one_file_a_name(folder.files)
    kind, kind_problems = _one_kind(chips)
    problems += file_problems + kind_problems
    if not folder.files:
        problems.append(
            Problem(
                f"a folder of chips holds files ending in {', '.join(ENDINGS)}",
                printable(str(images)),
                0,
                f"{len(folder.other_files)} other files" if folder.other_files else "empty",
                "give the folder that holds the images themselves as --images",
            )
        )
    keep_unlabelled = unlabelled or not table.usable
    records, breaches, breached = [], Counter[str](), cache(vocabulary.breaches)  # few label sets, many chips
    for key in sorted(chips, key=natural_order):
        row = table.rows.get(key)
        if split_ending(chips[key].name)[1] != kind or key in table.refused:
            continue
        if row is None and not keep_unlabelled:
            problems.append(_image_without_row(chips[key].path, labels))
            continue
        broken = breached(row.bits) if row else []
        breaches.update(broken)
        if strict and row:
            problems += [_breach(labels, row.line, key, vocabulary.names(row.bits), rule) for rule in broken]
            if broken:
                continue
        status = chips[key].stat()
        records.append(Record(key, chips[key].path, status.st_size, status.st_mtime_ns, row.bits if row else None))
    if table.usable:
        problems += _rows_without_image(table, folder.files, labels)
    return Scan(
        kind=kind,
        records=records,
        problems=problems,
        fatal=not table.usable or not records,
        repeated_tags=table.repeated_tags,
        breaches=breaches,
        labels_sha256=table.sha256,
        other_files=folder.other_files,
    )


def _list_folder(images: Path) -> _Folder:
    folder = _Folder()
    with os.scandir(images) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            key, kind = split_ending(entry.name)
            if kind is None:
                folder.other_files.append(printable(entry.name))
                continue
            fault = name_fault(key)
            if fault:
                where = printable(entry.path)
                folder.problems.append(Problem(NAME_RULE, where, 0, fault, NAME_REMEDY))
                continue
            folder.files[key].append(entry)
    return folder


def _one_file_a_name(
    files: dict[str, list[os.DirEntry[str]]],
) -> tuple[dict[str, os.DirEntry[str]], list[Problem]]:
    chips, problems = {}, []
    for key, entries in files.items():
        if len(entries) > 1:
            problems += [
                Problem(
                    "a name stands for one image",
                    printable(entry.path),
                    0,
                    f"{key!r} also names {printable(entries[0].name)}",
                    "keep one file of each name, or build two datasets",
                )
                for entry in entries[1:]
            ]
            continue
        fault = _file_fault(entries[0])
        if fault:
            problems.append(
                Problem(
                    f"an image is a readable file of at most {MAX_FILE_BYTES >> 20} MiB",
                    printable(entries[0].path),
                    0,
                    fault,
                    "copy the image itself into the folder, or leave it out",
                )
            )
            continue
        chips[key] = entries[0]
    return chips, problems


def _file_fault(entry: os.DirEntry[str]) -> str | None:
    try:
        status = entry.stat()
    except OSError as error:
        return str(error.strerror)
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return f"{status.st_size} bytes" if status.st_size > MAX_FILE_BYTES else None


def _one_kind(chips: dict[str, os.DirEntry[str]]) -> tuple[str, list[Problem]]:
    by_kind: dict[str, list[os.DirEntry[str]]] = {"jpg": [], "tif": []}
    for entry in chips.values():
        by_kind[split_ending(entry.name)[1] or ""].append(entry)
    kind, other = ("tif", "jpg") if len(by_kind["tif"]) > len(by_kind["jpg"]) else ("jpg", "tif")
    return kind, [
        Problem(
            "a dataset holds one kind of image",
            printable(entry.path),
            0,
            f"{other} among {len(by_kind[kind])} {kind}",
            "put JPEG and TIFF chips into two folders and build a dataset of each",
        )
        for entry in by_kind[other]
    ]


def _image_without_row(path: str, labels: Path | None) -> Problem:
    return Problem(
        "an image has a row of labels",
        printable(path),
        0,
        f"no row in {printable(str(labels))}" if labels else "no --labels given",
        "add its row, or pack such images with --unlabelled",
    )


def _rows_without_image(table: LabelFile, files: Iterable[str], labels: Path | None) -> list[Problem]:
    present = set(files)
    return [
        Problem(
            "a row of labels has its image",
            printable(str(labels)),
            row.line,
            f"no file for {key!r}",
            "copy the image into the folder, take the row out, or leave such rows out with --on-bad skip",
        )
        for key, row in table.rows.items()
        if key not in present
    ]


def _breach(labels: Path | None, line: int, key: str, names: list[str], rule: str) -> Problem:
    return Problem(
        f"label sets follow the vocabulary's rules: {rule}",
        printable(str(labels)),
        line,
        f"{key}: {' '.join(names) or 'no labels'}",
        "correct the row, or build without --strict",
    )
