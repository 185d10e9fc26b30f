"""Keys: sound whatever labels are called, each with one meaning, and the same in the docs."""

from __future__ import annotations

import re

import pytest

from planet_dist.tracking_names import METRICS, as_markdown, definitions, key_part, key_parts, numbers, times
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("road", "road"),
        ("partly_cloudy", "partly_cloudy"),
        ("a.b", "a_b"),
        ("roads/paths", "roads_paths"),
        ("森林", "unnamed"),
    ],
)
def test_a_key_part_has_letters_digits_and_underscores_alone(name: str, part: str) -> None:
    assert key_part(name) == part


def test_labels_that_would_share_a_key_do_not() -> None:
    labels = ["a-b", "a_b", "a.b", "森林", "草", "unnamed", "a_b_2", "clear"]
    parts = key_parts(labels)
    assert list(parts) == labels
    assert len(set(parts.values())) == len(labels)
    assert all(re.fullmatch(r"[A-Za-z0-9_]+", part) for part in parts.values())
    assert [parts[label] for label in ("a_b", "unnamed", "a_b_2", "clear")] == ["a_b", "unnamed", "a_b_2", "clear"]


def test_every_key_has_one_definition() -> None:
    keys = [metric.key for metric in definitions(["clear", "haze", "a.b"], ["weather"])]
    assert len(keys) == len(set(keys))
    assert {"label/a_b/f2", "confusion/weather", "val/f2"} <= set(keys)
    assert not any("{" in key for key in keys)


def test_a_line_of_metrics_jsonl_is_logged_under_names_that_are_defined() -> None:
    place = {"phase": 0, "epoch": 1, "step": 7}
    train = numbers({"kind": "train", **place, "loss": 0.5, "grad_norm": 1.0, "learning_rate": 0.1})
    assert train == {
        "train/step": 7,
        "train/phase": 0,
        "train/epoch": 1,
        "train/loss": 0.5,
        "train/grad_norm": 1.0,
        "train/learning_rate": 0.1,
    }
    epoch = numbers({"kind": "epoch", **place, "f2": 0.8, "f2_at_0.2": 0.7, "loss": 0.3, "best": True})
    assert epoch.items() >= {"val/f2": 0.8, "val/f2_at_0_2": 0.7, "val/loss": 0.3}.items()
    assert "val/best" not in epoch
    whole = {"kind": "train", **place, "seconds": 2.0, "time": 1e9, "decode_share": 0.25}
    assert times(whole).items() >= {"time/seconds": 2.0, "time/decode_share": 0.25}.items()
    assert "time/time" not in times(whole)
    known = {metric.key for metric in METRICS}
    assert (train | epoch | times(whole)).keys() <= known


def test_the_docs_list_every_key() -> None:
    text = (REPOSITORY / "docs" / "tracking.md").read_text()
    start = text.index("| key |")
    assert text[start : text.index("\n\n", start) + 1] == as_markdown()
