"""The vocabulary: which labels there are, how a set of them packs into bits, and which rules bind them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import ConfigError

MAX_LABELS = 64  # label sets are packed into one unsigned 64-bit integer


@dataclass(frozen=True)
class ExclusiveGroup:
    """Labels of which a chip bears at most one, or exactly one where the group is required."""

    name: str
    labels: tuple[str, ...]
    required: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """Ordered labels and their rules.

    Attributes:
        labels: 1 to 64 names; label i is bit i of a packed label set.
        exclusive: groups of labels that exclude each other.
        alone: labels beside which no other may stand.

    Raises:
        ConfigError: a label is empty, repeated, has white space in it, or a rule names an unknown one.
    """

    labels: tuple[str, ...]
    exclusive: tuple[ExclusiveGroup, ...] = ()
    alone: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.labels) <= MAX_LABELS:
            raise ConfigError(f"vocabulary has {len(self.labels)} labels; a label set packs 1 to {MAX_LABELS}")
        for label in self.labels:
            if not label or label.split() != [label]:
                raise ConfigError(
                    f"label {label!r} is empty or holds white space, which separates tags in a CSV; "
                    "use an underscore instead"
                )
        repeated = {label for label in self.labels if self.labels.count(label) > 1}
        if repeated:
            raise ConfigError(f"vocabulary repeats {sorted(repeated)}; name each label once")
        ruled = [label for group in self.exclusive for label in group.labels] + list(self.alone)
        unknown = sorted(set(ruled) - set(self.labels))
        if unknown:
            raise ConfigError(f"a rule names {unknown}, which the vocabulary lacks; it has {list(self.labels)}")

    def mask(self, labels: Iterable[str]) -> int:
        """The bits of `labels`. Raises KeyError with the first unknown label."""
        bits = 0
        for label in labels:
            bits |= self._bits[label]
        return bits

    @cached_property
    def _bits(self) -> dict[str, int]:
        return {label: 1 << i for i, label in enumerate(self.labels)}

    def names(self, bits: int) -> list[str]:
        """The labels whose bits are set, in the vocabulary's order."""
        return [label for i, label in enumerate(self.labels) if bits >> i & 1]

    def matrix(self, bits_N: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Packed label sets as 0 and 1.

        Args:
            bits_N: uint64 (N,).

        Returns:
            uint8 (N, C), C labels in the vocabulary's order.
        """
        shifts_C = np.arange(len(self.labels), dtype=np.uint64)
        return ((bits_N[:, None] >> shifts_C) & np.uint64(1)).astype(np.uint8)

    def breaches(self, bits: int) -> list[str]:
        """The rules that a label set breaks, each as a short sentence; empty for a lawful set."""
        found = []
        for group in self.exclusive:
            present = self.names(bits & self.mask(group.labels))
            if len(present) > 1:
                found.append(f"more than one {group.name} label")
            if group.required and not present:
                found.append(f"no {group.name} label")
        for label in self.alone:
            bit = self.mask([label])
            if bits & bit and bits != bit:
                found.append(f"{label} beside other labels")
        return found


PLANET = Vocabulary(
    labels=(
        "agriculture",
        "artisinal_mine",
        "bare_ground",
        "blooming",
        "blow_down",
        "clear",
        "cloudy",
        "conventional_mine",
        "cultivation",
        "habitation",
        "haze",
        "partly_cloudy",
        "primary",
        "road",
        "selective_logging",
        "slash_burn",
        "water",
    ),
    exclusive=(ExclusiveGroup("weather", ("clear", "partly_cloudy", "haze", "cloudy"), required=True),),
    alone=("cloudy",),
)


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads a vocabulary from one label a line, or from TOML with rules.

    The TOML form:

        labels = ["clear", "cloudy", "water"]
        alone = ["cloudy"]

        [[exclusive]]
        name = "weather"
        labels = ["clear", "cloudy"]
        required = true

    Raises:
        ConfigError: the file cannot be read or breaks a rule of Vocabulary.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"vocabulary {path}: {error}; give a UTF-8 text or TOML file") from error
    if path.suffix != ".toml":
        return Vocabulary(tuple(line.strip() for line in text.splitlines() if line.strip()))
    try:
        table = tomllib.loads(text)
        unknown = sorted(set(table) - {"labels", "alone", "exclusive"})
        if unknown:
            raise ConfigError(f"vocabulary {path}: unknown keys {unknown}; valid: labels, alone, exclusive")
        groups = tuple(
            ExclusiveGroup(str(group["name"]), tuple(group["labels"]), bool(group.get("required", False)))
            for group in table.get("exclusive", [])
        )
        return Vocabulary(tuple(table["labels"]), groups, tuple(table.get("alone", [])))
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"vocabulary {path}: {error!r}; it needs labels = [...], and each [[exclusive]] a name and labels"
        ) from error
