"""The CSV of labels: one row `image_name,tags` a chip, tags separated by spaces."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import Problem
from shards.labels import Vocabulary
from shards.names import NAME_REMEDY, NAME_RULE, name_fault, printable, split_ending

NAME_COLUMN = "image_name"
TAGS_COLUMN = "tags"


@dataclass(frozen=True)
class LabelRow:
    """The labels of one chip as packed bits, and the line they stand on, counted from 1."""

    bits: int
    line: int


@dataclass
class LabelFile:
    """A CSV of labels.

    Attributes:
        rows: the good rows by the chip's name.
        refused: names of which a row has a problem; the chip must not be packed.
        problems: everything that is wrong with the file.
        usable: every row was read, so that a missing row is missing indeed.
        repeated_tags: rows that name a tag twice.
        sha256: of the file, None without one.
    """

    rows: dict[str, LabelRow] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    usable: bool = True
    repeated_tags: int = 0
    sha256: str | None = None


def empty_label_file() -> LabelFile:
    """What stands for the labels where there is no CSV."""
    return LabelFile()


def read_labels(path: Path, vocabulary: Vocabulary) -> LabelFile:
    """Reads a CSV with a header that has the columns image_name and tags.

    A byte order mark, CRLF line ends, further columns and an image's ending after the name are accepted.

    Raises:
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    table = LabelFile(sha256=hashlib.sha256(data).hexdigest())
    where = printable(str(path))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte {data[error.start]:#04x}"
        return _unusable(table, Problem("a label file is UTF-8 text", where, line, found, "save it as UTF-8"))
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(lines, [])]
        if header.count(NAME_COLUMN) != 1 or header.count(TAGS_COLUMN) != 1:
            return _unusable(table, _header_problem(header, where))
        rows = _Rows(table, vocabulary, header, where)
        for fields in lines:
            if fields:
                rows.read(fields, lines.line_num)
    except csv.Error as error:
        rule, remedy = "a label file is a CSV with closed quotes", "correct the line; nothing after it was read"
        return _unusable(table, Problem(rule, where, lines.line_num, str(error), remedy))
    if not table.rows and not table.problems:
        remedy = "give the CSV with the rows, or leave --labels out and pack with --unlabelled"
        return _unusable(table, Problem("a label file has rows", where, 1, "a header alone", remedy))
    for key in table.refused:
        table.rows.pop(key, None)
    return table


def _unusable(table: LabelFile, problem: Problem) -> LabelFile:
    table.problems.append(problem)
    table.usable = False
    return table


def _header_problem(header: list[str], where: str) -> Problem:
    return Problem(
        f"a label file starts with a header that names {NAME_COLUMN} and {TAGS_COLUMN} once each",
        where,
        1,
        printable(f"columns {', '.join(header)[:200]}") if header else "empty",
        f"make its first line {NAME_COLUMN},{TAGS_COLUMN}",
    )


@dataclass(frozen=True)
class _Rows:
    table: LabelFile
    vocabulary: Vocabulary
    header: list[str]
    where: str

    def read(self, fields: list[str], line: int) -> None:
        name_at, tags_at = self.header.index(NAME_COLUMN), self.header.index(TAGS_COLUMN)
        key = split_ending(fields[name_at].strip())[0] if name_at < len(fields) else ""
        if len(fields) != len(self.header):
            value = f"{len(fields)} fields of {len(self.header)}: {','.join(fields)[:80]}"
            remedy = "separate tags by spaces, not by commas"
            self._refuse(key, line, "a row has as many fields as the header", value, remedy=remedy)
        elif fault := name_fault(key):
            self._refuse(key, line, NAME_RULE, fault, remedy=NAME_REMEDY)
        elif key in self.table.rows:
            value = f"{key!r} stands on line {self.table.rows[key].line} too"
            self._refuse(key, line, "a name has one row", value, remedy="keep one row of each name")
        else:
            self._read_tags(key, fields[tags_at].split(), line)

    def _read_tags(self, key: str, tags: list[str], line: int) -> None:
        known = self.vocabulary.labels
        for tag in sorted(set(tags) - set(known)):
            near = difflib.get_close_matches(tag, known, 1)
            value = f"{key}: {tag!r}" + (f" (perhaps {near[0]!r})" if near else "")
            remedy = "correct the tag, or give your own labels by --vocabulary"
            self._refuse(key, line, "a tag is in the vocabulary", value, remedy=remedy)
        self.table.repeated_tags += len(set(tags)) != len(tags)
        bits = self.vocabulary.mask(tag for tag in tags if tag in known)
        self.table.rows[key] = LabelRow(bits, line)

    def _refuse(self, key: str, line: int, rule: str, value: str, *, remedy: str) -> None:
        self.table.problems.append(Problem(rule, self.where, line, printable(value), remedy))
        self.table.refused.add(key)
