"""What users read when something is wrong: every problem, grouped by rule, with one remedy each."""

from __future__ import annotations

import pytest

from shards.errors import (
    ConfigError,
    DatasetError,
    DecodeError,
    InputError,
    PlanetError,
    Problem,
    RunError,
    SceneError,
    TrainingError,
)


@pytest.mark.parametrize(
    "kind", [ConfigError, DatasetError, DecodeError, InputError, RunError, SceneError, TrainingError]
)
def test_every_error_of_a_user_is_caught_as_one_kind(kind: type[Exception]) -> None:
    assert issubclass(kind, PlanetError) and issubclass(kind, ValueError)


def test_a_bad_image_says_value_rule_and_remedy() -> None:
    error = DecodeError("3 bytes", "an image is a whole file", "fetch it again")
    assert str(error) == "3 bytes: an image is a whole file; fetch it again"


def test_problems_are_grouped_by_rule_with_file_row_and_value() -> None:
    error = InputError(
        [
            Problem("rule two", "b.csv", 7, "'fog'", "mend it"),
            Problem("rule one", "a.jpg", 0, "0 bytes", "fetch it"),
            Problem("rule two", "b.csv", 3, "'snow'", "mend it"),
        ]
    )
    assert str(error).splitlines() == [
        "3 problem(s) in the input",
        "  rule one (1):",
        "    a.jpg: 0 bytes",
        "    remedy: fetch it",
        "  rule two (2):",
        "    b.csv:3: 'snow'",
        "    b.csv:7: 'fog'",
        "    remedy: mend it",
    ]


def test_of_many_problems_ten_a_rule_are_shown_and_all_are_held_and_counted() -> None:
    error = InputError([Problem("rule", "a.csv", row, "x", "mend it") for row in range(1, 26)])
    assert str(error).startswith("25 problem(s)") and "... and 15 more" in str(error)
    assert str(error).count("a.csv:") == 10
    assert len(error.problems) == 25
