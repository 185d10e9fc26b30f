"""Label sets pack into bits and back, and their rules are held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.errors import ConfigError
from shards.labels import PLANET, ExclusiveGroup, Vocabulary, read_vocabulary


def test_label_i_is_bit_i_for_all_64() -> None:
    vocabulary = Vocabulary(tuple(f"l{number}" for number in range(64)))
    assert vocabulary.mask(["l0", "l63"]) == 1 | 1 << 63
    assert vocabulary.names(1 << 63 | 2) == ["l1", "l63"]
    matrix = vocabulary.matrix(np.array([1 << 63 | 2, 0], np.uint64))
    assert matrix.shape == (2, 64) and matrix.dtype == np.uint8
    assert np.flatnonzero(matrix[0]).tolist() == [1, 63] and not matrix[1].any()


def test_planets_labels_are_seventeen_with_their_own_spelling() -> None:
    assert len(PLANET.labels) == 17 and "artisinal_mine" in PLANET.labels
    assert list(PLANET.labels) == sorted(PLANET.labels)


@pytest.mark.parametrize(
    ("tags", "broken"),
    [
        ("clear primary", []),
        ("cloudy", []),
        ("primary", ["no weather label"]),
        ("", ["no weather label"]),
        ("clear haze", ["more than one weather label"]),
        ("cloudy primary", ["cloudy beside other labels"]),
        ("cloudy haze", ["more than one weather label", "cloudy beside other labels"]),
    ],
)
def test_every_broken_rule_is_named(tags: str, broken: list[str]) -> None:
    assert PLANET.breaches(PLANET.mask(tags.split())) == broken


def test_an_unknown_label_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="sunny"):
        PLANET.mask(["sunny"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((), "has 0 labels"),
        (tuple(f"l{number}" for number in range(65)), "has 65 labels"),
        (("a", "a"), "repeats"),
        (("a b",), "white space"),
        (("",), "empty"),
    ],
)
def test_a_vocabulary_that_cannot_be_packed_is_refused(labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Vocabulary(labels)


def test_a_rule_about_an_unknown_label_is_refused() -> None:
    with pytest.raises(ConfigError, match="'snow'"):
        Vocabulary(("a",), alone=("snow",))
    with pytest.raises(ConfigError, match="'snow'"):
        Vocabulary(("a",), exclusive=(ExclusiveGroup("weather", ("a", "snow")),))


def test_a_list_of_labels_is_read_with_byte_order_mark_crlf_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(b"\xef\xbb\xbfwater\r\n\r\n  road \r\n")
    assert read_vocabulary(tmp_path / "v.txt") == Vocabulary(("water", "road"))


def test_a_toml_vocabulary_brings_its_rules(tmp_path: Path) -> None:
    (tmp_path / "v.toml").write_text(
        'labels = ["clear", "cloudy"]\nalone = ["cloudy"]\n'
        '[[exclusive]]\nname = "weather"\nlabels = ["clear", "cloudy"]\nrequired = true\n'
    )
    group = ExclusiveGroup("weather", ("clear", "cloudy"), required=True)
    assert read_vocabulary(tmp_path / "v.toml") == Vocabulary(("clear", "cloudy"), (group,), ("cloudy",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('labels = ["a"]\nlone = ["a"]', "unknown keys.*lone.*valid"),
        ("labels = [", "it needs labels"),
        ('alone = ["a"]', "labels"),
        ('labels = ["a"]\n[[exclusive]]\nlabels = ["a"]', "name"),
    ],
)
def test_a_faulty_toml_vocabulary_says_what_it_needs(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "v.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_vocabulary(tmp_path / "v.toml")


def test_a_vocabulary_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        read_vocabulary(tmp_path / "nowhere.txt")
    (tmp_path / "v.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_vocabulary(tmp_path / "v.txt")
