"""groups.json: which chips of a dataset are related and must stay on one side of a split.

    planet-shard groups DATASET

finds them (shards/relatives.py) and writes the file beside the manifest, with the manifest's digest: it belongs to
that content and no other. Groups are of keys, so that they can be written by hand or by other means too
(docs/format.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shards.errors import DatasetError
from shards.location import local_folder, redact
from shards.names import natural_order, printable
from shards.reader import Dataset
from shards.relatives import KINDS, PASSES, Kind, Link, find_relatives, rule
from shards.schema import Sha256, write_whole
from shards.storage import GROUPS, MAX_GROUPS_BYTES
from shards.views import view_chips

FORMAT: Final = "planet-dist-groups"
VERSION: Final = 1
LARGEST_SHARE: Final = 0.01  # of a dataset's chips in one group at most; a fold must be dealt of many groups
LARGEST_AT_LEAST: Final = 16


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Relation(_Record):
    """Why two chips stand in one group: their keys, how they are related, and how surely (up to 1)."""

    first: str
    second: str
    kind: Kind
    score: float = Field(allow_inf_nan=False)


class Groups(_Record):
    """The file's content.

    Attributes:
        dataset: sha256 of the manifest that the groups belong to.
        rule: the constants by which they were found; empty for groups that were made otherwise.
        left_out: relations that would have made a group too large.
        relations: between chips of one group, the surest of each kind first.
        groups: keys of related chips, two at least in each; a chip that stands in none is related to no other.
    """

    format: Literal["planet-dist-groups"] = FORMAT
    version: Literal[1] = VERSION
    dataset: Sha256
    rule: dict[str, float] = {}
    left_out: int = Field(0, ge=0)
    relations: list[Relation] = []
    groups: list[list[str]]

    def to_bytes(self) -> bytes:
        """The file's bytes, a relation or group a line; the same for the same content."""
        table = self.model_dump()
        lines = []
        for name, value in table.items():
            text = json.dumps(value, ensure_ascii=False)
            if isinstance(value, list) and value:
                text = "[\n  " + ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n ]"
            lines.append(f" {json.dumps(name)}: {text}")
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()

    def numbers(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Each chip's group as a number (N,): equal for chips of one group, and for no others."""
        group_of = {key: number for number, group in enumerate(self.groups) for key in group}
        alone = range(len(self.groups), len(self.groups) + len(keys))
        return np.array([group_of.get(key, own) for key, own in zip(keys, alone, strict=True)], dtype=np.int64)


@dataclass(frozen=True)
class OpenGroups:
    """A dataset's groups as they were read.

    Attributes:
        digest: sha256 of the file's bytes.
    """

    groups: Groups
    digest: str


def read_groups(dataset: Dataset, keys: Sequence[str]) -> OpenGroups:
    """The groups that are stored beside a dataset.

    Args:
        keys: of all its chips.

    Raises:
        DatasetError: there are none, or they are damaged or another dataset's; the text names the command to run.
    """
    where = f"{dataset.shown.rstrip('/')}/{GROUPS}"
    data = dataset.storage.groups()
    if data is None:
        raise DatasetError(f"{where}: no such file, so it isn't known which chips are related; {_remedy(dataset)}")
    groups = parse_groups(data, where)
    if groups.dataset != dataset.digest:
        raise DatasetError(
            f"{where}: belongs to another dataset (the manifest of sha256 {groups.dataset[:16]}..., and this one's is "
            f"{dataset.digest[:16]}...); {_remedy(dataset)}"
        )
    known = set(keys)
    unknown = [key for group in groups.groups for key in group if key not in known]
    if unknown:
        raise DatasetError(
            f"{where}: names {len(unknown)} chip(s) that the dataset lacks, such as {printable(repr(unknown[0]))}; "
            f"{_remedy(dataset)}"
        )
    return OpenGroups(groups, hashlib.sha256(data).hexdigest())


def _remedy(dataset: Dataset) -> str:
    if dataset.storage.remote:
        return (
            f"run planet-shard groups on a copy of the dataset in a folder, and upload its {GROUPS} beside the manifest"
        )
    return f"run planet-shard groups {dataset.shown}"


def parse_groups(data: bytes, where: str) -> Groups:
    """Reads the file's bytes; `where` names it in errors.

    Raises:
        DatasetError: not such a file, of another version, or inconsistent in itself.
    """
    try:
        if len(data) > MAX_GROUPS_BYTES:
            raise ValueError(f"more than {MAX_GROUPS_BYTES >> 20} MiB")
        table: Any = json.loads(data)
        if not isinstance(table, dict) or table.get("format") != FORMAT or table.get("version") != VERSION:
            raise ValueError(f"its format is not {FORMAT!r}, version {VERSION}")
        groups = Groups.model_validate(table)
        number_of: dict[str, int] = {}
        for number, group in enumerate(groups.groups):
            for key in group:
                if number_of.setdefault(key, number) != number or group.count(key) > 1:
                    raise ValueError(f"the chip {printable(repr(key))} stands in it more than once")
            if len(group) < 2:
                raise ValueError(f"group {number} has {len(group)} chip(s), and a group has two at least")
        for relation in groups.relations:
            if number_of.get(relation.first, -1) != number_of.get(relation.second, -2):
                pair = printable(repr((relation.first, relation.second)))
                raise ValueError(f"the related chips {pair} stand in different groups")
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise DatasetError(f"{where}: {at}: {first['msg']}; run planet-shard groups again") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: {error}; run planet-shard groups again") from error
    return groups


def make_groups(
    dataset: Dataset, workers: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> Groups:
    """Finds the related chips of a dataset; the order in which they were packed does not matter.

    Args:
        workers: threads.
        progress: called with the chips that are through, in all passes over them, and their number.

    Raises:
        DatasetError: a chip is damaged.
    """
    keys = [key.decode() for key in dataset.index()["key"].tolist()]
    ids = sorted(range(len(keys)), key=lambda chip: natural_order(keys[chip]))
    ordered = [keys[chip] for chip in ids]
    whole = (PASSES + 1) * len(ids)
    seen = view_chips(dataset, ids, workers, lambda done: progress(done, whole))
    links = find_relatives(seen, workers, lambda done: progress(len(ids) + done, whole))
    kept, groups = unite(links, len(ids), max(LARGEST_AT_LEAST, int(LARGEST_SHARE * len(ids))))
    return Groups(
        dataset=dataset.digest,
        rule=rule(),
        left_out=len(links) - len(kept),
        relations=[
            Relation(first=ordered[link.first], second=ordered[link.second], kind=link.kind, score=link.score)
            for link in kept
        ],
        groups=[[ordered[chip] for chip in group] for group in groups],
    )


def unite(links: Sequence[Link], count: int, largest: int) -> tuple[list[Link], list[list[int]]]:
    """Groups of linked chips. Links are taken in their order, and left out where a group would grow beyond `largest`.

    Args:
        links: the surest first.
        count: chips.

    Returns:
        The links that were taken, and the groups of two chips and more: ascending, by their first chip.
    """
    group_of = list(range(count))
    members = {chip: [chip] for chip in range(count)}
    kept = []
    for link in links:
        one, other = sorted((group_of[link.first], group_of[link.second]), key=lambda group: len(members[group]))
        if one != other:
            if len(members[one]) + len(members[other]) > largest:
                continue
            for chip in members[one]:
                group_of[chip] = other
            members[other] += members.pop(one)
        kept.append(link)
    return kept, sorted(sorted(group) for group in members.values() if len(group) > 1)


def write_groups(location: str | Path, groups: Groups) -> Path:
    """Stores groups beside a dataset's manifest, whole or not at all, and says where.

    Raises:
        DatasetError: the dataset lies behind a URL, or its folder cannot be written.
    """
    folder = writable_folder(location)
    try:
        write_whole(folder / GROUPS, groups.to_bytes())
    except OSError as error:
        raise DatasetError(
            f"{folder / GROUPS}: {error.strerror}; make the folder writable or free some space"
        ) from error
    return folder / GROUPS


def writable_folder(location: str | Path) -> Path:
    """A dataset's folder.

    Raises:
        DatasetError: it lies behind a URL, which is only read.
    """
    folder = local_folder(location)
    if folder is None:
        raise DatasetError(
            f"{redact(location, location)}: a dataset behind a URL is only read; run planet-shard groups on a copy of "
            f"it in a folder, and upload its {GROUPS} beside the manifest"
        )
    return folder


def counts(groups: Groups) -> dict[str, int]:
    """Figures of a file: relations by kind, groups, chips in them, and the largest."""
    by_kind: dict[str, int] = {kind: sum(relation.kind == kind for relation in groups.relations) for kind in KINDS}
    sizes = [len(group) for group in groups.groups]
    return {**by_kind, "groups": len(sizes), "chips": sum(sizes), "largest": max(sizes, default=0)}
