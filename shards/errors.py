"""What can go wrong through no fault of the program, as one tree of exceptions.

    PlanetError (ValueError)
    ├── InputError      images or labels that cannot be packed, every problem in one exception
    │   └── (holds Problem records: file, row, value, rule, remedy)
    ├── DecodeError     the bytes of one image are not what they claim to be
    ├── DatasetError    a dataset is unfinished, damaged or of another version
    ├── ConfigError     a recipe, an override or a launch configuration cannot be used
    ├── RunError        a run folder, checkpoint or bundle cannot be used
    ├── SceneError      a georeferenced scene cannot be read or mapped
    └── TrainingError   training cannot go on (a non-finite loss, a chip lost in evaluation)

The command lines print these without a traceback and exit with status 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


class PlanetError(ValueError):
    """A mistake in what the program was given; its text names the remedy."""


class DecodeError(PlanetError):
    """One image that cannot be decoded.

    Args:
        value: what was found.
        rule: what it breaks.
        remedy: what the user can do.
    """

    def __init__(self, value: str, rule: str, remedy: str) -> None:
        super().__init__(f"{value}: {rule}; {remedy}")
        self.value, self.rule, self.remedy = value, rule, remedy


class DatasetError(PlanetError):
    """A dataset that cannot be opened or read as it should be."""


class ConfigError(PlanetError):
    """A configuration that cannot be used."""


class RunError(PlanetError):
    """A run folder, checkpoint or bundle that cannot be used."""


class SceneError(PlanetError):
    """A georeferenced scene that cannot be read or mapped."""


class TrainingError(PlanetError):
    """Training that cannot go on."""


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with an input.

    Attributes:
        rule: what should hold, the same sentence for every problem of a kind.
        file: the file in which it was found.
        row: the line of that file, counted from 1, or 0 where lines mean nothing.
        value: what was found there.
        remedy: what the user can do about it.
    """

    rule: str
    file: str
    row: int
    value: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.row}" if self.row else self.file
        return f"{where}: {self.value}"


class InputError(PlanetError):
    """All the problems of an input at once.

    Args:
        problems: at least one.
    """

    shown_per_rule = 10

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "an InputError needs a problem to report"
        self.problems = sorted(problems)
        super().__init__(self._text())

    def _text(self) -> str:
        by_rule: dict[str, list[Problem]] = defaultdict(list)
        for problem in self.problems:
            by_rule[problem.rule].append(problem)
        lines = [f"{len(self.problems)} problem(s) in the input"]
        for rule, problems in by_rule.items():
            lines.append(f"  {rule} ({len(problems)}):")
            lines += [f"    {problem}" for problem in problems[: self.shown_per_rule]]
            if len(problems) > self.shown_per_rule:
                lines.append(f"    ... and {len(problems) - self.shown_per_rule} more")
            lines.append(f"    remedy: {problems[0].remedy}")
        return "\n".join(lines)
