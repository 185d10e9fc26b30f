"""What a run's predictions are worth: figures at each epoch, and at the end the rules, evaluation/ and bundle/."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planet_dist.bundle import Bundle, write_bundle
from planet_dist.config import Config
from planet_dist.crossfit import Evaluation, evaluate_rules
from planet_dist.data import Data
from planet_dist.metrics import accuracy, cross_entropy_of_logits, mean_f2, probabilities
from planet_dist.predictions import read_predictions
from planet_dist.runfolder import RunFolder
from planet_dist.thresholds import decide, fit_single, write_thresholds
from shards.errors import TrainingError
from shards.schema import write_whole


@dataclass(frozen=True)
class Validation:
    """An epoch's validation.

    Attributes:
        figures: by name: f2 (with the best single threshold), f2_at_0.5, f2_at_0.2, accuracy, loss.
        score: what evaluate.best_by names, turned so that larger is better.
    """

    figures: dict[str, float]
    score: float


def validate(logits_NC: NDArray[np.float32], targets_NC: NDArray[np.uint8], best_by: str) -> Validation:
    """Figures of the validation chips.

    Raises:
        TrainingError: a logit is not finite.
    """
    if not np.isfinite(logits_NC).all():
        raise TrainingError("validation gave logits that are not finite: training diverged; lower the learning rate")
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
    return Validation(figures, -figures["loss"] if best_by == "loss" else figures[best_by])


def conclude(config: Config, data: Data, run: RunFolder) -> Evaluation:
    """Judges the rules on the best checkpoint's predictions, and writes evaluation/ and bundle/."""
    best = (run.checkpoints / "best").resolve()
    found = read_predictions(best / "predictions.npz")
    evaluation = evaluate_rules(
        found.probabilities_NC, found.targets_NC, found.labels, ids_N=found.ids_N, seed=config.seed
    )
    run.evaluation.mkdir(exist_ok=True)
    shutil.copyfile(best / "predictions.npz", run.evaluation / "predictions.npz")
    write_thresholds(run.evaluation / "thresholds.json", evaluation.chosen)
    scores = evaluation.to_json()
    write_whole(run.evaluation / "metrics.json", (json.dumps(scores, indent=1) + "\n").encode())
    manifest = data.dataset.manifest
    bundle = Bundle(
        labels=manifest.labels,
        model_config=config.model,
        image=manifest.image,
        data=config.data,
        mean=manifest.mean,
        std=manifest.std,
        turns=config.evaluate.turns,
        thresholds=evaluation.chosen,
        scores=scores,
        dataset_digest=data.dataset.digest,
    )
    averaged = best / "ema.safetensors"
    write_bundle(run.bundle, bundle, averaged if averaged.exists() else best / "model.safetensors")
    return evaluation
