"""Labels that look wrong (second paper, section 4.2), found from labels and predictions alone.

Suffixes: N chips, C labels.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planet_dist.metrics import Bools, Floats
from shards.errors import RunError
from shards.labels import Vocabulary
from shards.reader import Dataset
from shards.schema import write_whole

SURE = 0.9


@dataclass(frozen=True)
class Suspicion:
    """Chips whose labels look wrong for one reason.

    Attributes:
        kind: a short name.
        meaning: one sentence.
        ids: of the chips, int64, the most suspicious first where that is known.
    """

    kind: str
    meaning: str
    ids: NDArray[np.int64]


def suspicions_of_labels(targets_NC: Bools, vocabulary: Vocabulary) -> list[Suspicion]:
    """What labels alone give away; only for vocabularies that have the labels concerned.

    Args:
        targets_NC: bool, the labels of every chip of the dataset by id.
    """
    found = []
    labels = vocabulary.labels
    if "cultivation" in labels and "agriculture" in labels:
        without_N = targets_NC[:, labels.index("cultivation")] & ~targets_NC[:, labels.index("agriculture")]
        found.append(
            Suspicion(
                "cultivation-without-agriculture",
                "cultivation is meant to be a part of agriculture",
                np.flatnonzero(without_N),
            )
        )
    if "haze" in labels:
        alone_N = targets_NC[:, labels.index("haze")] & (targets_NC.sum(axis=1) == 1)
        found.append(
            Suspicion("haze-alone", "haze lets the ground be seen, and none is named", np.flatnonzero(alone_N))
        )
    return found


def suspicion_of_predictions(
    ids_N: NDArray[np.int64], probabilities_NC: Floats, targets_NC: Bools, vocabulary: Vocabulary
) -> Suspicion | None:
    """Chips whose label forbids any other (cloudy), in which the model is sure of a label of the ground.

    Of the ground is a label that is in no exclusive group. The surest come first.

    Returns:
        None for a vocabulary without a label that stands alone.
    """
    grouped = {label for group in vocabulary.exclusive for label in group.labels}
    ground = [i for i, label in enumerate(vocabulary.labels) if label not in grouped | set(vocabulary.alone)]
    alone = [i for i, label in enumerate(vocabulary.labels) if label in vocabulary.alone]
    if not alone or not ground:
        return None
    surest_N = probabilities_NC[:, ground].max(axis=1)
    chosen = np.flatnonzero(targets_NC[:, alone].any(axis=1) & (surest_N >= SURE))
    name = vocabulary.alone[0].replace("_", " ")
    return Suspicion(
        f"{name.replace(' ', '-')}-yet-ground-seen",
        f"labelled {name}, where no ground is seen, yet the model gives a label of the ground {SURE} or more",
        ids_N[chosen[np.argsort(-surest_N[chosen], kind="stable")]],
    )


def write_suspicions(path: Path, suspicions: Sequence[Suspicion], dataset: Dataset) -> None:
    """Writes a CSV of kind, image_name, tags, whole or not at all.

    Raises:
        RunError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "image_name", "tags"])
    bits_N = dataset.index()["labels"]
    vocabulary = dataset.manifest.vocabulary
    for suspicion in suspicions:
        for chip_id, key in zip(suspicion.ids, dataset.keys(suspicion.ids), strict=True):
            writer.writerow([suspicion.kind, key, " ".join(vocabulary.names(int(bits_N[chip_id])))])
    try:
        write_whole(path, text.getvalue().encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error}); give another --out") from error
