"""Puts the manifest on finished shards: the end of a build, or of its parts, which ran side by side.

Every part of a build writes what the manifest needs beside the shards into DATASET/.build/parts.json. It's the same
for all of them: each looks at the whole folder and CSV, and packs its share of the shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from shards.assemble import make_manifest, rejected_csv
from shards.errors import ConfigError, DatasetError, InputError, Problem
from shards.labels import Vocabulary
from shards.pixels import PixelFormat
from shards.schema import MANIFEST, Manifest, parse_manifest, write_whole
from shards.unfinished import FinishedShard, Workplace, reopen_workplace
from shards.workers import available_cores

OnBad = Literal["fail", "skip"]
_NAMED = 10


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`, counted from 0: of the shards in order it takes number, number + count, ..."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ConfigError(f"part {self}: give I/N with I from 0 to N - 1, for instance 0/4, 1/4, 2/4 and 3/4")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Part(0, 1)


@dataclass(frozen=True)
class Inventory:
    """What a manifest needs beside its shards.

    Attributes:
        problems: of names and rows; those of images stand with their shards.
        shards: every shard's name and the fingerprint of what it is made from.
        parts: how many there are.
    """

    kind: str
    form: PixelFormat
    band_order: tuple[str, ...]
    vocabulary: Vocabulary
    labels_sha256: str | None
    repeated_tags: int
    breaches: dict[str, int]
    other_files: list[str]
    problems: list[Problem]
    on_bad: OnBad
    shards: list[tuple[str, str]]
    parts: int


_INVENTORY = TypeAdapter(Inventory)


@dataclass(frozen=True)
class BuildReport:
    """What was built, and what the build did about its input."""

    manifest: Manifest
    problems: list[Problem]
    breaches: Counter[str]
    other_files: list[str]
    reused_shards: int


def write_inventory(place: Workplace, inventory: Inventory) -> None:
    """Leaves the inventory for `publish`; parts with other options than the last to start count as not packed."""
    write_whole(_inventory_path(place), _INVENTORY.dump_json(inventory))


def _inventory_path(place: Workplace) -> Path:
    return place.state / "parts.json"


def usable(done: FinishedShard | None, on_bad: OnBad) -> bool:
    """Whether a shard that an earlier start left may stay.

    One from which a start that skips bad chips left something out is not one without problems.
    """
    return done is not None and (on_bad == "skip" or not done.problems)


def complete(
    place: Workplace, inventory: Inventory, ordered: Sequence[FinishedShard], reused_shards: int
) -> BuildReport:
    """Writes the manifest of all shards, in order.

    Raises:
        InputError: problems that are not to be skipped, or that leave no chip.
    """
    problems = inventory.problems + [problem for shard in ordered for problem in shard.problems]
    if problems and (inventory.on_bad == "fail" or not any(shard.shard.count for shard in ordered)):
        raise InputError(problems)
    manifest = make_manifest(
        place.out,
        ordered,
        inventory.vocabulary,
        (inventory.kind, inventory.form, inventory.band_order),
        (inventory.labels_sha256, inventory.repeated_tags, len(problems)),
    )
    names = {shard.name for shard in manifest.shards}
    place.complete(manifest.to_bytes(), names, rejected_csv(problems) if problems else None)
    return BuildReport(manifest, sorted(problems), Counter(inventory.breaches), inventory.other_files, reused_shards)


def publish(out: Path) -> BuildReport:
    """Makes a dataset of the shards that all parts of a build have packed; a finished dataset is left as it is.

    Every shard is held against its digest first.

    Raises:
        DatasetError: shards are missing or damaged, with their parts; a part is still at work; no build has begun.
        InputError: chips or rows that no part may leave out.
    """
    path = out / MANIFEST
    if path.is_file():
        # Written last of all, so that what may remain of the build is of a publisher that was killed just then.
        manifest = parse_manifest(path.read_bytes(), str(path))
        Workplace(out).clear()
        return BuildReport(manifest, [], Counter(), [], len(manifest.shards))
    try:
        with reopen_workplace(out) as place:
            inventory = _read_inventory(place)
            with ThreadPoolExecutor(available_cores()) as pool:
                found = list(pool.map(lambda shard: place.finished(*shard), inventory.shards))
            ordered = [done for done in found if done is not None and usable(done, inventory.on_bad)]
            if len(ordered) < len(found):
                raise _missing(out, inventory, [usable(done, inventory.on_bad) for done in found])
            return complete(place, inventory, ordered, len(ordered))
    except OSError as error:
        raise DatasetError(
            f"{error.filename or out}: {error.strerror}; make the place writable or free some space, and publish again"
        ) from error


def _read_inventory(place: Workplace) -> Inventory:
    path = _inventory_path(place)
    try:
        return _INVENTORY.validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(
            f"{place.out}: holds a build that was not begun in parts; run the same planet-shard build again, which "
            "goes on where it stopped and publishes by itself"
        ) from error
    except ValidationError as error:
        raise DatasetError(
            f"{path}: damaged ({error.error_count()} fault(s)); run a part of the build again"
        ) from error


def _missing(out: Path, inventory: Inventory, found: Sequence[bool]) -> DatasetError:
    numbers = [number for number, there in enumerate(found) if not there]
    names = [inventory.shards[number][0] for number in numbers]
    parts = sorted({number % inventory.parts for number in numbers})
    return DatasetError(
        f"{out}: {len(names)} of {len(found)} shards are missing or damaged: {_listed(names)}; run planet-shard build "
        f"with --part {_listed([str(Part(part, inventory.parts)) for part in parts])} and the other options as before, "
        "then publish again"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
