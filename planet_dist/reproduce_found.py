"""What the trained rows of a paper came to.

Suffixes: M members, N chips, C labels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planet_dist.bundle_files import read_description
from planet_dist.data import open_data
from planet_dist.finished import FinishedRun, Scorer, open_run
from planet_dist.metrics import Bools, Floats, accuracy, cross_entropy_of_logits, mean_f2, probabilities
from planet_dist.reproduce_rows import LeftOut, PlannedRow
from planet_dist.runfolder import RunFolder
from planet_dist.thresholds import RULES, decide
from shards.errors import RunError
from shards.reader import Dataset

PAPER_RULE = "grid-independent"  # first paper, 4.5: per label the best of 100 steps by the label's own F2
_SAMPLE_STREAM = 7  # beside the seed, so that no two uses of a seed share their draws


@dataclass(frozen=True)
class TrainScores:
    """Scores on training chips, in float32 and evaluation mode.

    Attributes:
        f2: with the thresholds that were fitted on the validation chips.
        loss, accuracy: mean binary cross-entropy in nats, and element-wise at 0.5; NaN of an ensemble that votes.
        chips: how many were drawn.
    """

    f2: float
    loss: float
    accuracy: float
    chips: int


@dataclass(frozen=True)
class FoundRow:
    """A trained row.

    Attributes:
        planned: which, and on what.
        run: it, or an ensemble's first member.
        fitted_f2: validation F2 with thresholds fitted on the same chips, as the papers do.
        cross_fitted_f2: with thresholds fitted on other chips than those that they decide.
        train: on a sample of the training chips.
    """

    planned: PlannedRow
    run: FinishedRun
    fitted_f2: float
    cross_fitted_f2: float
    train: TrainScores

    def dataset(self) -> Dataset:
        """The chips that it was trained on, opened."""
        return Dataset(self.planned.data)


@dataclass(frozen=True)
class Found:
    """The rows of a paper: those that were trained by name, and the others."""

    rows: dict[str, FoundRow] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)

    def first(self, *names: str) -> FoundRow | None:
        """The first of some rows that was trained."""
        return next((self.rows[name] for name in names if name in self.rows), None)


def look_at(planned: PlannedRow, sample: int) -> FoundRow:
    """Reads a trained row, and scores it on training chips.

    Args:
        sample: most training chips to look at.

    Raises:
        RunError: it isn't finished, or damaged.
    """
    dataset = Dataset(planned.data)
    ids_N, true_NC = _training_chips(planned, dataset, sample)
    if planned.ensemble is not None:
        return _look_at_ensemble(planned, dataset, ids_N, true_NC)
    run = open_run(planned.folder)
    train = _score(run, Scorer(run, dataset), ids_N, true_NC)
    return FoundRow(planned, run, run.rule_f2(PAPER_RULE), run.rule_f2(PAPER_RULE, cross_fitted=True), train)


def last_train_scores(found: FoundRow, sample: int) -> TrainScores:
    """Scores on training chips of the weights at the training's end, which need not be the best ones."""
    dataset = found.dataset()
    ids_N, true_NC = _training_chips(found.planned, dataset, sample)
    return _score(found.run, Scorer(found.run, dataset, last=True), ids_N, true_NC)


def _score(run: FinishedRun, scorer: Scorer, ids_N: NDArray[np.int64], true_NC: Bools) -> TrainScores:
    logits_NC = scorer.logits(ids_N)
    probabilities_NC = probabilities(logits_NC)
    return TrainScores(
        mean_f2(decide(probabilities_NC, fit(run, PAPER_RULE)), true_NC),
        cross_entropy_of_logits(logits_NC, true_NC),
        accuracy(probabilities_NC, true_NC),
        len(ids_N),
    )


def fit(run: FinishedRun, rule: str) -> Floats:
    """Thresholds float64 (C,) of a rule, fitted on a run's validation chips."""
    found = run.predictions
    return next(one for one in RULES if one.name == rule).fit(found.probabilities_NC, found.targets_NC)


def _look_at_ensemble(planned: PlannedRow, dataset: Dataset, ids_N: NDArray[np.int64], true_NC: Bools) -> FoundRow:
    assert planned.ensemble is not None
    folder = RunFolder(planned.folder)
    bundle = read_description(folder.bundle)
    runs = [open_run(member.run) for member in planned.members]
    probabilities_MNC = np.stack([probabilities(Scorer(run, dataset).logits(ids_N)) for run in runs])
    decided_NC = bundle.combination().decide(probabilities_MNC)
    path = folder.evaluation / "metrics.json"
    try:
        contenders = json.loads(path.read_text())["contenders"]
        together = next(one for one in contenders if one["name"] == planned.ensemble.rule)
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise RunError(f"{path}: cannot be read ({error!r}); combine the members again") from error
    train = TrainScores(mean_f2(decided_NC, true_NC), float("nan"), float("nan"), len(ids_N))
    return FoundRow(planned, runs[0], together["same_rows_f2"], together["cross_fitted_f2"], train)


def _training_chips(planned: PlannedRow, dataset: Dataset, sample: int) -> tuple[NDArray[np.int64], Bools]:
    """Ids of a sample of the training chips, ascending, and their labels."""
    data = open_data(planned.config, Path(dataset.root))
    rng = np.random.default_rng([planned.config.seed, _SAMPLE_STREAM])
    train_ids = data.split.train_ids
    ids_N = np.sort(rng.choice(train_ids, size=min(sample, len(train_ids)), replace=False))
    return ids_N, data.targets_NC[ids_N].astype(bool)
