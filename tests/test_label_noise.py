"""Labels that look wrong."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from planet_dist.label_noise import suspicion_of_predictions, suspicions_of_labels, write_suspicions
from shards.labels import PLANET, Vocabulary
from shards.reader import Dataset


def rows(*labels: str) -> np.ndarray:
    return PLANET.matrix(np.array([PLANET.mask(row.split()) for row in labels], np.uint64)).astype(bool)


def test_cultivation_without_agriculture_and_haze_alone_are_found() -> None:
    true = rows("clear cultivation", "clear cultivation agriculture", "haze", "haze primary", "clear")
    found = {one.kind: one.ids.tolist() for one in suspicions_of_labels(true, PLANET)}
    assert found == {"cultivation-without-agriculture": [0], "haze-alone": [2]}


def test_a_vocabulary_without_those_labels_gives_no_suspicion() -> None:
    vocabulary = Vocabulary(("a", "b"))
    true = np.ones((3, 2), dtype=bool)
    assert suspicions_of_labels(true, vocabulary) == []
    assert suspicion_of_predictions(np.arange(3), np.ones((3, 2)), true, vocabulary) is None


def test_cloudy_chips_sure_of_ground_come_surest_first_and_weather_is_no_ground() -> None:
    true = rows("cloudy", "cloudy", "cloudy", "clear primary", "cloudy")
    p = np.zeros((5, 17))
    primary, clear = PLANET.labels.index("primary"), PLANET.labels.index("clear")
    p[:, primary] = [0.91, 0.89, 0.99, 0.99, 0.0]
    p[4, clear] = 1.0
    found = suspicion_of_predictions(np.array([10, 11, 12, 13, 14]), p, true, PLANET)
    assert found is not None
    assert found.ids.tolist() == [12, 10]


def test_the_list_names_every_chip_with_its_tags(dataset: Dataset, tmp_path: Path) -> None:
    true = dataset.manifest.vocabulary.matrix(dataset.index()["labels"]).astype(bool)
    found = suspicions_of_labels(true, dataset.manifest.vocabulary)
    write_suspicions(tmp_path / "noise.csv", found, dataset)
    with (tmp_path / "noise.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(len(one.ids) for one in found) > 0
    assert all("cultivation" in line["tags"] or line["tags"] == "haze" for line in lines)
