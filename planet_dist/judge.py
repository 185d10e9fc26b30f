"""What a run's predictions are worth: figures at each epoch, and at the end the rules, evaluation/ and bundle/."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planet_dist.bundle_description import Description, Member
from planet_dist.bundle_files import file_sha256, write_bundle
from planet_dist.combination import others_right
from planet_dist.config import Config, LossConfig
from planet_dist.crossfit import Evaluation, evaluate_rules
from planet_dist.data import Data
from planet_dist.decision import Decision, write_decision
from planet_dist.decision_rules import THRESHOLD_RULES, rules_for
from planet_dist.evaluate import Logits
from planet_dist.lineage import NO_LINEAGE, ORIGINS, START, Lineage
from planet_dist.losses import competing_groups
from planet_dist.metrics import Bools, accuracy, cross_entropy_of_logits, mean_f2, probabilities
from planet_dist.predictions import write_predictions
from planet_dist.runfolder import RunFolder
from planet_dist.thresholds import decide, fit_single
from shards.errors import TrainingError
from shards.schema import write_whole

_CERTAIN_LOGIT = 40.0  # its probability is 1 in float64


@dataclass(frozen=True)
class Validation:
    """An epoch's validation.

    Attributes:
        figures: by name: f2 (with the best single threshold), f2_at_0.5, f2_at_0.2, accuracy, loss.
        score: what evaluate.best_by names, turned so that larger is better; F2 where that is "last".
    """

    figures: dict[str, float]
    score: float


def weighted_labels(loss: LossConfig, labels: Sequence[str]) -> Bools:
    """The labels that a loss gives weight to, bool (C,): all but those that loss.label_weights sets to 0."""
    return np.array([loss.label_weights.get(label, 1.0) > 0 for label in labels])


def validate(
    logits_NC: NDArray[np.float32], targets_NC: NDArray[np.uint8], best_by: str, speaks_C: Bools
) -> Validation:
    """Figures of the validation chips.

    Args:
        logits_NC, targets_NC: one row a chip.
        best_by: evaluate.best_by.
        speaks_C: labels that the model was trained on; the figures take the others as answered rightly
            (combination.others_right), so that a specialist's figures compare with those of its like alone.

    Raises:
        TrainingError: a logit is not finite.
    """
    if not np.isfinite(logits_NC).all():
        raise TrainingError("validation gave logits that are not finite: training diverged; lower the learning rate")
    logits_NC = others_right(logits_NC, targets_NC, speaks_C, -_CERTAIN_LOGIT, _CERTAIN_LOGIT)
    probabilities_NC = probabilities(logits_NC)
    labels = targets_NC.shape[1]
    thresholds = {
        "f2": fit_single(probabilities_NC, targets_NC.astype(bool)),
        "f2_at_0.5": np.full(labels, 0.5),
        "f2_at_0.2": np.full(labels, 0.2),
    }
    figures = {name: mean_f2(decide(probabilities_NC, values_C), targets_NC) for name, values_C in thresholds.items()}
    figures["accuracy"] = accuracy(probabilities_NC, targets_NC)
    figures["loss"] = cross_entropy_of_logits(logits_NC, targets_NC)
    score = -figures["loss"] if best_by == "loss" else figures["f2" if best_by == "last" else best_by]
    return Validation(figures, score)


def conclude(
    config: Config, data: Data, run: RunFolder, logits: Logits, weights: Path, lineage: Lineage = NO_LINEAGE
) -> Evaluation:
    """Judges the rules on the validation chips' logits, and writes evaluation/ and bundle/.

    Args:
        logits: of the model in `weights`, a safetensors file.
        lineage: that the model came from and learned from.
    """
    targets_NC = data.targets_NC[logits.ids_N]
    speaks_C = weighted_labels(config.loss, data.labels)
    judged_NC = others_right(probabilities(logits.logits_NC), targets_NC, speaks_C)
    # What a specialist says of other labels is not to change what it decides of its own.
    rules = rules_for(data.dataset.manifest.vocabulary) if speaks_C.all() else THRESHOLD_RULES
    evaluation = evaluate_rules(judged_NC, targets_NC, data.labels, ids_N=logits.ids_N, seed=config.seed, rules=rules)
    run.evaluation.mkdir(exist_ok=True)
    write_predictions(run.evaluation / "predictions.npz", data.labels, logits.ids_N, logits.logits_NC, targets_NC)
    write_decision(run.evaluation / "thresholds.json", evaluation.chosen)
    scores = own_scores(evaluation, speaks_C)
    write_whole(run.evaluation / "metrics.json", (json.dumps(scores, indent=1) + "\n").encode())
    protocol = _protocol(config, data, lineage)
    bundle = _bundle(config, data, run.root.resolve().name, weights, speaks_C, evaluation.chosen, scores, protocol)
    write_bundle(run.bundle, bundle, [weights])
    return evaluation


def own_scores(evaluation: Evaluation, speaks_C: Bools) -> dict[str, Any]:
    """An evaluation as plain numbers, without the labels that a specialist leaves to others.

    Args:
        speaks_C: weighted_labels().
    """
    scores = evaluation.to_json()
    if not speaks_C.all():
        # Or a reader would take the others' figures, which stand for right answers, for the model's.
        spoken = [label for label, speaks in zip(evaluation.chosen.labels, speaks_C, strict=True) if speaks]
        scores |= {"specialist_of": spoken, "labels": [one for one in scores["labels"] if one["label"] in spoken]}
    return scores


def _bundle(
    config: Config,
    data: Data,
    name: str,
    weights: Path,
    speaks_C: Bools,
    thresholds: Decision,
    scores: dict[str, Any],
    protocol: dict[str, str],
) -> Description:
    manifest = data.dataset.manifest
    member = Member(
        name=name,
        weights="model.safetensors",
        sha256=file_sha256(weights),
        model=config.model.model_copy(update={"weights": config.model.stated_weights}),  # without a path
        size=config.data.size,
        normalise=config.data.normalise,
        mean=manifest.mean,
        std=manifest.std,
        turns=config.evaluate.turns,
        competing_groups=competing_groups(config.loss, manifest.vocabulary),
        speaks_for=[label for label, speaks in zip(manifest.labels, speaks_C, strict=True) if speaks],
        thresholds=thresholds,
        protocol=protocol,
    )
    trained_NC = data.targets_NC[data.split.train_ids]
    return Description(
        labels=manifest.labels,
        exclusive=manifest.exclusive,
        alone=manifest.alone,
        image=manifest.image,
        members=[member],
        thresholds=thresholds,
        training_chips=len(trained_NC),
        training_label_counts=trained_NC.sum(axis=0, dtype=np.int64).tolist(),
        scores=scores,
        dataset_digest=data.dataset.digest,
    )


def _protocol(config: Config, data: Data, lineage: Lineage) -> dict[str, str]:
    """How a run trained, for the model card: what a reader asks first; no path and no name of a machine."""
    phases = [
        f"{phase.epochs} epochs of {phase.trains}, {phase.optimizer} at {phase.learning_rate:g} ({phase.schedule}), "
        f"batches of {phase.batch_size}"
        for phase in config.phases
    ]
    changes = [f"{name}={value}" for name, value in config.augment.model_dump().items() if value]
    return {
        START: ORIGINS.get(config.model.weights, "a file's weights"),
        "split": f"{config.data.split}, {len(data.split.train_ids):,} chips to train on and "
        f"{len(data.split.val_ids):,} to validate",
        **({"groups of related chips": f"sha256 {data.groups_digest}"} if data.groups_digest else {}),
        "training": "; then ".join(phases),
        "loss": config.loss.name,
        "augmentation": ", ".join(changes) or "none",
        "best checkpoint by": config.evaluate.best_by,
        "seed": str(config.seed),
        **lineage.stated(),
    }
