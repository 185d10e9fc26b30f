"""Predictions on disk: what evaluation writes, and anybody's probabilities with their truth.

    predictions.npz   ids (N,), logits or probabilities (N, C), targets (N, C) of 0 and 1, and labels (C,) if
                      they have names
    CSV               LABEL_pred and LABEL_true columns, in any order; the first other column is the id. The
                      truth may be a count: Planet's own label file repeats a tag in some rows

Suffixes: N samples, C labels.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planet_dist.metrics import Array, Bools, Floats, check_probabilities, check_targets, probabilities
from shards.errors import RunError
from shards.schema import write_whole

_FORMS = "give an npz with ids, logits and targets, or a CSV with LABEL_pred and LABEL_true columns"


@dataclass(frozen=True)
class Predictions:
    """Probabilities and truth.

    Attributes:
        labels: C names.
        ids_N: unique, integers or strings (N,).
        probabilities_NC: float64 (N, C) in [0, 1].
        targets_NC: bool (N, C).
        repeated_tags: cells of truth above 1, which count as 1.
    """

    labels: tuple[str, ...]
    ids_N: Array
    probabilities_NC: Floats
    targets_NC: Bools
    repeated_tags: int = 0


def write_predictions(path: Path, labels: Sequence[str], ids_N: Array, logits_NC: Array, targets_NC: Array) -> None:
    """Writes predictions.npz whole or not at all; the same content gives the same bytes.

    Args:
        labels: C names.
        ids_N: int64 (N,).
        logits_NC: floating (N, C).
        targets_NC: 0 and 1 or bool (N, C).
    """
    buffer = io.BytesIO()
    np.savez(
        buffer,
        ids=np.asarray(ids_N),
        logits=np.asarray(logits_NC),
        targets=np.asarray(targets_NC, dtype=np.uint8),
        labels=np.array(list(labels), dtype=np.str_),
    )
    write_whole(path, buffer.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Reads an npz, or otherwise a CSV.

    Raises:
        RunError: the file cannot be read or used; its text names the file, the value and the rule.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such file; {_FORMS}")
    found = _read_npz(path) if zipfile.is_zipfile(path) else _read_csv(path)
    distinct, counts = np.unique(found.ids_N, return_counts=True)
    if len(distinct) < len(found.ids_N):
        raise RunError(
            f"{path}: id {distinct[counts.argmax()]!s} comes {counts.max()} times; each must come once; "
            "remove the others"
        )
    return found


def _read_npz(path: Path) -> Predictions:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Array] = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: not a readable npz ({error}); {_FORMS}") from error
    given = [name for name in ("logits", "probabilities") if name in arrays]
    if len(given) != 1 or "ids" not in arrays or "targets" not in arrays:
        raise RunError(
            f"{path}: has the arrays {sorted(arrays)}; it needs ids, targets and one of logits, probabilities"
        )
    ids_N, scores_NC = arrays["ids"], arrays[given[0]]
    if scores_NC.ndim != 2 or ids_N.shape != scores_NC.shape[:1]:
        raise RunError(
            f"{path}: ids {ids_N.shape} and {given[0]} {scores_NC.shape} do not match; "
            "they must be (samples,) and (samples, labels)"
        )
    names_C = arrays.get("labels", np.array([f"label_{i}" for i in range(scores_NC.shape[1])]))
    if names_C.shape != scores_NC.shape[1:]:
        raise RunError(f"{path}: {names_C.size} labels for {scores_NC.shape[1]} columns of {given[0]}")
    try:
        values_NC = probabilities(scores_NC) if given[0] == "logits" else scores_NC
        checked_NC = check_probabilities(values_NC)
        true_NC = check_targets(arrays["targets"], checked_NC.shape)
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}: {error}") from error
    return Predictions(tuple(str(name) for name in names_C), ids_N, checked_NC, true_NC)


def _read_csv(path: Path) -> Predictions:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            numbered = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path}: not a readable CSV ({error}); {_FORMS}") from error
    labels = _labels_of(path, header)
    if not numbered:
        raise RunError(f"{path}: no rows below the header; {_FORMS}")
    for line, row in numbered:
        if len(row) != len(header):
            raise RunError(f"{path}:{line}: {len(row)} fields where the header has {len(header)}; mend the row")
    cells_NF, lines = np.array([row for _, row in numbered]), [line for line, _ in numbered]
    probabilities_NC = _numbers(path, header, cells_NF, lines, [f"{label}_pred" for label in labels])
    targets_NC = _numbers(path, header, cells_NF, lines, [f"{label}_true" for label in labels])
    others = [i for i, name in enumerate(header) if not name.endswith(("_pred", "_true"))]
    ids_N = cells_NF[:, others[0]] if others else np.arange(len(lines))
    return Predictions(
        labels, ids_N, probabilities_NC, targets_NC > 0, repeated_tags=int(np.count_nonzero(targets_NC > 1))
    )


def _labels_of(path: Path, header: list[str]) -> tuple[str, ...]:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise RunError(f"{path}:1: the header repeats {repeated}; name each column once")
    predicted, true = ([name.removesuffix(end) for name in header if name.endswith(end)] for end in ("_pred", "_true"))
    if not predicted:
        raise RunError(f"{path}:1: no column ends with _pred; {_FORMS}")
    if set(predicted) != set(true):
        raise RunError(
            f"{path}:1: {sorted(set(predicted) ^ set(true))} lack one of LABEL_pred and LABEL_true; "
            "each label needs both columns"
        )
    return tuple(predicted)


def _numbers(path: Path, header: list[str], cells_NF: Array, lines: list[int], columns: list[str]) -> Floats:
    """The cells of columns as numbers: probabilities, or counts for columns of truth."""
    text_NC = cells_NF[:, [header.index(column) for column in columns]]
    is_truth = columns[0].endswith("_true")
    try:
        values_NC: Floats = text_NC.astype(np.float64)
    except ValueError:
        values_NC = np.vectorize(_number_or_nan, otypes=[np.float64])(text_NC)
    most = np.finfo(np.float64).max if is_truth else 1.0
    lawful_NC = (values_NC >= 0) & (values_NC <= most)
    if is_truth:
        lawful_NC &= np.where(lawful_NC, values_NC, 0.5) % 1 == 0
    if not lawful_NC.all():
        row, column = (int(i) for i in np.argwhere(~lawful_NC)[0])
        rule = "0 or 1 (or a count)" if is_truth else "a probability in [0, 1]"
        raise RunError(
            f"{path}:{lines[row]}: {columns[column]} is {str(text_NC[row, column])!r}; it must be {rule} "
            f"({np.count_nonzero(~lawful_NC)} such cells); mend or remove the rows"
        )
    return values_NC


def _number_or_nan(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
