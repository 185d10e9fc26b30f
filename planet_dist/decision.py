"""A fitted decision, whatever its kind: rule name, labels, `decide`, and JSON that executes nothing.

Two kinds: thresholds.Thresholds, and ExpectedF2, which has no thresholds: whether a label is decided hangs on the
chip's other labels. Both lie in evaluation/thresholds.json and in bundles, told apart by their `format`.

Suffixes: N chips, C labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from planet_dist.calibration import Calibration, calibration_from_json
from planet_dist.expected_f2 import Units, most_expected, units_of
from planet_dist.metrics import Array, Bools, Floats, check_probabilities
from planet_dist.thresholds import Thresholds, check_labels
from shards.errors import ConfigError, RunError
from shards.labels import ExclusiveGroup
from shards.schema import write_whole

FORMAT = "planet-dist-expected-f2"
VERSION = 1


@dataclass(frozen=True)
class ExpectedF2:
    """A fitted rule: of all label sets the one of greatest expected F2, by calibrated probabilities.

    Attributes:
        rule: the name of the rule that gave it.
        labels: C names.
        calibration: of the probabilities, before they are used.
        exclusive, alone: label rules, by which labels are taken as true together (expected_f2); none for independent
            labels.

    Raises:
        RunError: the numbers of labels differ, or the label rules are none that expected F2 knows.
    """

    rule: str
    labels: tuple[str, ...]
    calibration: Calibration
    exclusive: tuple[ExclusiveGroup, ...] = ()
    alone: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        calibrated = self.calibration.labels
        if calibrated is not None and calibrated != len(self.labels):
            raise RunError(f"a calibration of {calibrated} labels for {len(self.labels)}; each label needs one")
        try:
            self.units()
        except ConfigError as error:
            raise RunError(str(error)) from error

    def units(self) -> Units:
        """Which labels are true together."""
        return units_of(self.labels, self.exclusive, self.alone)

    def decide(self, probabilities_NC: Array) -> Bools:
        """Decisions for probabilities of any real dtype (N, C), labels in this rule's order.

        Returns:
            bool (N, C).

        Raises:
            RunError: another number of labels, or a probability that is NaN or outside [0, 1].
        """
        checked_NC = check_probabilities(probabilities_NC)
        check_labels(checked_NC, self.labels)
        return most_expected(self.calibration.apply(checked_NC), self.units(), units_of(self.labels))

    def to_json(self) -> dict[str, Any]:
        """The content of thresholds.json."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "rule": self.rule,
            "decides": "the label set of greatest expected F2",
            "labels": list(self.labels),
            "exclusive": [
                {"name": group.name, "labels": list(group.labels), "required": group.required}
                for group in self.exclusive
            ],
            "alone": list(self.alone),
            "calibration": self.calibration.to_json(),
        }

    @staticmethod
    def from_json(table: dict[str, Any], where: str) -> ExpectedF2:
        """The rule in a parsed thresholds.json of this format; `where` names it in errors.

        Raises:
            RunError: of another version, or inconsistent in itself.
        """
        if table.get("version") != VERSION:
            raise RunError(
                f"{where}: {FORMAT} version {table.get('version')!r}; this program reads version {VERSION}; fit the "
                "rule again with planet-dist thresholds, or use the release that wrote it"
            )
        calibration = calibration_from_json(table.get("calibration"), where)
        try:
            groups = tuple(
                ExclusiveGroup(str(group["name"]), tuple(group["labels"]), bool(group["required"]))
                for group in table["exclusive"]
            )
            rule, labels = table["rule"], tuple(table["labels"])
            if not labels or not all(isinstance(text, str) for text in (rule, *labels)):
                raise TypeError(rule, labels)
            return ExpectedF2(rule, labels, calibration, groups, tuple(table["alone"]))
        except RunError as error:
            raise RunError(f"{where}: {error}") from error
        except (KeyError, TypeError) as error:
            raise RunError(f"{where}: {error!r}; needs a rule, labels and their rules; fit it again") from error


Decision = Thresholds | ExpectedF2


class DecisionRule(Protocol):
    """A way to get a decision from rows."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def decision(self, probabilities_NC: Floats, true_NC: Bools, labels: Sequence[str]) -> Decision:
        """Fits it on all the rows given.

        Args:
            probabilities_NC: float64 in [0, 1] (N, C), checked.
            true_NC: bool (N, C).
            labels: C names.
        """

    def values_taken(self, decision: Any) -> int:
        """How many values a decision of this rule took from the data."""


def decision_from_json(table: object, where: str) -> Decision:
    """The decision in a parsed thresholds.json; `where` names it in errors.

    Raises:
        RunError: not such a file, of another version, or inconsistent in itself.
    """
    if isinstance(table, dict) and table.get("format") == FORMAT:
        return ExpectedF2.from_json(table, where)
    return Thresholds.from_json(table, where)


def write_decision(path: Path, decision: Decision) -> None:
    """Writes thresholds.json whole or not at all; an older one is replaced."""
    write_whole(path, (json.dumps(decision.to_json(), indent=1, ensure_ascii=False) + "\n").encode())


def read_decision(path: Path) -> Decision:
    """Reads thresholds.json.

    Raises:
        RunError: the file is missing, or decision_from_json cannot use it.
    """
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: {error}; give the thresholds.json of planet-dist thresholds --out") from error
    return decision_from_json(table, str(path))
