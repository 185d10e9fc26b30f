"""What a prediction writes: the competition's CSV or Parquet, held against a sample submission, and what was rejected.

    OUT.csv             image_name,tags: one row a chip, tags with spaces between
    OUT.parquet         image_name, tags, and for each label LABEL_probability and LABEL_decided
    OUT.rejected.csv    what could not be predicted, and why

Letters in array names: N chips, C labels.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planet_dist.metrics import Bools, Floats
from shards.assemble import rejected_csv
from shards.errors import ConfigError, PlanetError, Problem, RunError
from shards.schema import write_whole

_SHOWN = 10
_HEADER = ["image_name", "tags"]


@dataclass(frozen=True)
class Predicted:
    """What came of the chips.

    Attributes:
        keys: N names.
        labels: C names.
        probabilities_NC: float64.
        decisions_NC: bool.
        rejected: what could not be predicted.
    """

    keys: list[str]
    labels: tuple[str, ...]
    probabilities_NC: Floats
    decisions_NC: Bools
    rejected: list[Problem]

    @property
    def tags(self) -> list[list[str]]:
        """N lists of the labels that are decided."""
        return [[label for label, yes in zip(self.labels, row, strict=True) if yes] for row in self.decisions_NC]

    def ordered(self, keys: Sequence[str]) -> Predicted:
        """The same in the order of `keys`, which are the same names."""
        places = {key: place for place, key in enumerate(self.keys)}
        order_N = np.array([places[key] for key in keys], dtype=np.int64)
        return Predicted(
            list(keys), self.labels, self.probabilities_NC[order_N], self.decisions_NC[order_N], self.rejected
        )


def check_out(out: Path) -> None:
    """Makes sure, before anything is computed, that OUT can be written.

    Raises:
        ConfigError: it has another ending than .csv and .parquet, or Parquet's library is missing.
        PlanetError: its folder is missing.
    """
    if out.suffix.lower() not in (".csv", ".parquet"):
        raise ConfigError(f"{out}: ends in {out.suffix or 'nothing'}; give --out FILE.csv or FILE.parquet")
    if not out.parent.is_dir():
        raise PlanetError(f"{out}: cannot be written (there is no folder {out.parent}); give another --out")
    if out.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"{out}: Parquet needs pyarrow; pip install 'planet-dist[parquet]'") from error


def read_sample(path: Path) -> list[str]:
    """The names of a sample submission, in its order.

    Raises:
        RunError: it cannot be read, is not image_name,tags, or repeats a name.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path}: not a readable CSV ({error}); give the competition's sample submission") from error
    if not rows or rows[0] != _HEADER:
        found = ",".join(rows[0])[:80] if rows else "empty"
        raise RunError(f"{path}:1: the header is {found!r}; a sample submission's is {','.join(_HEADER)!r}")
    names = [row[0] for row in rows[1:]]
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise RunError(f"{path}: {_some('name', doubled)} more than once; a submission has each once; mend the sample")
    if not names:
        raise RunError(f"{path}: names no chip; give the competition's sample submission")
    return names


def check_names(keys: Sequence[str], sample: Sequence[str], sample_path: Path) -> None:
    """Holds the names that are predicted against those of a sample submission.

    Raises:
        RunError: names are missing or unknown; they are named, and nothing may be written.
    """
    missing = _without(sample, keys)
    unknown = _without(keys, sample)
    faults = [
        *([f"{_some('chip', missing)} of it missing among the images that can be read"] if missing else []),
        *([f"{_some('image', unknown)} unknown to it"] if unknown else []),
    ]
    if faults:
        raise RunError(
            f"{sample_path}: {'; '.join(faults)}. A submission has exactly the sample's names: nothing was written; "
            "give all its images and no others (--images may be repeated)"
        )


def _without(names: Sequence[str], others: Iterable[str]) -> list[str]:
    known = set(others)
    return [name for name in names if name not in known]


def _some(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{len(names):,} {what}{'s' if len(names) > 1 else ''} ({', '.join(names[:_SHOWN])}{more})"


def write_predictions(out: Path, predicted: Predicted) -> None:
    """Writes OUT whole or not at all, by its ending.

    Raises:
        PlanetError: it cannot be written.
    """
    data = _csv(predicted) if out.suffix.lower() == ".csv" else _parquet(predicted)
    try:
        write_whole(out, data)
    except OSError as error:
        raise PlanetError(f"{out}: cannot be written ({error}); give another --out") from error


def write_rejected(out: Path, rejected: Sequence[Problem]) -> Path | None:
    """Writes the list of what was rejected beside OUT, or removes an older one.

    Returns:
        Its path, or None where nothing was rejected.

    Raises:
        PlanetError: it cannot be written.
    """
    path = out.with_name(f"{out.stem}.rejected.csv")
    try:
        if not rejected:
            path.unlink(missing_ok=True)
            return None
        write_whole(path, rejected_csv(rejected))
    except OSError as error:
        raise PlanetError(f"{path}: cannot be written ({error}); give another --out") from error
    return path


def _csv(predicted: Predicted) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows((key, " ".join(tags)) for key, tags in zip(predicted.keys, predicted.tags, strict=True))
    return text.getvalue().encode()


def _parquet(predicted: Predicted) -> bytes:
    import pyarrow
    from pyarrow import parquet

    columns: dict[str, Any] = {"image_name": predicted.keys, "tags": [" ".join(tags) for tags in predicted.tags]}
    for c, label in enumerate(predicted.labels):
        columns[f"{label}_probability"] = predicted.probabilities_NC[:, c]
        columns[f"{label}_decided"] = predicted.decisions_NC[:, c]
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()
