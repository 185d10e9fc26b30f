"""A run read back: its configuration, its logs, its predictions, and its network on any chips.

Suffixes: N chips, C labels, E epochs.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from webdataset.pipeline import DataPipeline

from planet_dist.augment import Preprocess
from planet_dist.checkpoint import load_checkpoint, newest
from planet_dist.config import Config, parse_config
from planet_dist.decision import Decision, read_decision
from planet_dist.evaluate import audit, infer
from planet_dist.losses import competing_groups, independent_logits
from planet_dist.models import Network, build_model
from planet_dist.plan import evaluation_batches
from planet_dist.predictions import Predictions, read_predictions
from planet_dist.runfolder import RunFolder
from planet_dist.runlogs import read_records
from planet_dist.stream import DecodedBatches, FixedSteps, OnDevice, decode_threads
from shards.errors import RunError
from shards.reader import Dataset


@dataclass(frozen=True)
class FinishedRun:
    """What a run left.

    Attributes:
        folder: its paths.
        config: as it was resolved.
        predictions: of the validation chips, by the kept checkpoint.
        thresholds: the decision that evaluation chose.
        scores: evaluation/metrics.json, as crossfit.Evaluation.to_json() has it.
        epochs: one record an epoch, in order: phase, epoch, f2, accuracy, loss and more.
        steps: one record a logged step: phase, epoch, loss and more.
    """

    folder: RunFolder
    config: Config
    predictions: Predictions
    thresholds: Decision
    scores: dict[str, Any]
    epochs: list[dict[str, Any]]
    steps: list[dict[str, Any]]

    def train_losses(self) -> list[float]:
        """The mean training loss of each epoch's logged steps (E,); NaN for an epoch of which none was logged."""
        found: dict[tuple[int, int], list[float]] = {}
        for step in self.steps:
            found.setdefault((step["phase"], step["epoch"]), []).append(step["loss"])
        places = [(epoch["phase"], epoch["epoch"]) for epoch in self.epochs]
        return [float(np.mean(found[place])) if place in found else float("nan") for place in places]

    def rule_f2(self, rule: str, *, cross_fitted: bool = False) -> float:
        """The sample-averaged F2 of a decision rule on the validation chips.

        Args:
            rule: a name of decision_rules.rules_for.
            cross_fitted: judged on rows that it wasn't fitted on, instead of the same ones as in the papers.
        """
        score = next(score for score in self.scores["rules"] if score["rule"] == rule)
        return float(score["cross_fitted_f2" if cross_fitted else "same_rows_f2"])

    def dataset_digest(self) -> str:
        """Of the dataset that it was trained on.

        Raises:
            RunError: the bundle cannot be read.
        """
        path = self.folder.bundle / "bundle.json"
        try:
            return str(json.loads(path.read_text())["dataset_digest"])
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{path}: cannot be read ({error!r}); restore it or train again") from error

    def phase_ends(self) -> list[int]:
        """The numbers of epochs after which another phase begins."""
        ends = np.cumsum([phase.epochs for phase in self.config.phases])[:-1]
        return [int(end) for end in ends if end < len(self.epochs)]


def open_run(root: Path) -> FinishedRun:
    """Reads a finished run.

    Raises:
        RunError: it isn't finished, or a file of it cannot be read.
    """
    folder = RunFolder(root)
    if not (folder.bundle / "bundle.json").is_file():
        raise RunError(
            f"{root}: not a finished run (it has no bundle); give the --out of a training that ended, "
            "or end it with --resume auto"
        )
    try:
        config = parse_config(tomllib.loads(folder.config.read_text()), str(folder.config))
        records = read_records(folder.metrics)
        return FinishedRun(
            folder,
            config,
            read_predictions(folder.evaluation / "predictions.npz"),
            read_decision(folder.evaluation / "thresholds.json"),
            json.loads((folder.evaluation / "metrics.json").read_text()),
            [record for record in records if record["kind"] == "epoch"],
            [record for record in records if record["kind"] == "train"],
        )
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, json.JSONDecodeError, KeyError) as error:
        raise RunError(f"{root}: a file of the run cannot be read ({error!r}); restore it or train again") from error


def dataset_of(run: FinishedRun, dataset: Dataset) -> None:
    """Makes sure that a run was trained on a dataset, so that ids mean the same chips.

    Raises:
        RunError: it was trained on another.
    """
    digest = run.dataset_digest()
    if digest != dataset.digest:
        raise RunError(
            f"{run.folder.root} was trained on a dataset with digest {digest[:12]}, and {dataset.shown} has "
            f"{dataset.digest[:12]}; give the dataset of the run"
        )


class Scorer:
    """A run's network, ready to look at chips again, in float32 and without averaging over views.

    Args:
        run: whose network; the checkpoint that it kept as its best.
        dataset: that it was trained on.
        last: the weights at the training's end instead of the best ones.

    Attributes:
        model: in evaluation mode, on `device`.

    Raises:
        RunError: the checkpoint cannot be read.
    """

    def __init__(self, run: FinishedRun, dataset: Dataset, *, last: bool = False) -> None:
        folder = newest(run.folder.checkpoints) if last else (run.folder.checkpoints / "best").resolve()
        if folder is None or not folder.is_dir():
            raise RunError(f"{run.folder.checkpoints}: holds no checkpoint to look at chips with; restore it")
        checkpoint = load_checkpoint(folder)
        manifest = dataset.manifest
        config = run.config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dataset, self.config = dataset, config
        self.preprocess = Preprocess(
            config.data, manifest.image.pixels, manifest.mean, manifest.std, device=self.device
        )
        # the weights come from the checkpoint, never from where training began
        network = config.model.without_weights()
        image = manifest.image
        model = build_model(network, len(manifest.labels), image.bands, self.preprocess.side, image.band_order)
        model.load_state_dict(checkpoint.model if checkpoint.ema is None else checkpoint.ema)
        self.model: Network = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self._groups = competing_groups(config.loss, manifest.vocabulary)

    def independent(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """Logits whose sigmoid is each label's probability, whatever the loss."""
        return independent_logits(logits_BC, self._groups)

    def inputs(self, ids: NDArray[np.int64]) -> torch.Tensor:
        """The network's input float32 (N, bands, S, S) of a few chips."""
        chips = np.stack([self.dataset.pixels(int(i)) for i in ids])
        return self.preprocess.evaluate(torch.from_numpy(chips).to(self.device))

    def logits(self, ids_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits float32 (N, C) of chips, whose sigmoid is each label's probability, in ascending order of their ids.

        Args:
            ids_N: int64, no id twice.
        """
        size = self.config.evaluate.batch_size
        targets_NC = self.dataset.manifest.vocabulary.matrix(self.dataset.index()["labels"])
        decoded = DecodedBatches(self.dataset, targets_NC, size, threads=decode_threads(0, 1), prefetch_batches=2)
        steps = FixedSteps(evaluation_batches(np.sort(ids_N), size, 0, 1))
        pipeline = DataPipeline(steps, decoded, OnDevice(self.device))
        return audit(infer(self.model, self.independent, self.preprocess, pipeline, 1), ids_N).logits_NC
