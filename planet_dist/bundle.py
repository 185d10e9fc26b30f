"""The bundle: one folder with all that inference needs, and nothing that executes when it is read.

bundle/
    model.safetensors   weights and buffers
    bundle.json         labels, network, input form, statistics, decision rule, scores, digests
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from planet_dist.augment import Preprocess
from planet_dist.config import DataConfig, ModelConfig
from planet_dist.models import build_model
from planet_dist.thresholds import Thresholds
from shards.errors import PlanetError, RunError
from shards.schema import ImageForm, write_whole

VERSION = 1
_WEIGHTS, _DESCRIPTION = "model.safetensors", "bundle.json"


@dataclass(frozen=True)
class Bundle:
    """A trained model, ready to predict.

    Attributes:
        labels: in the order of the logits.
        image: the form of the training chips: bands, dtype and, where data.size is 0, the size.
        data: how a chip becomes the network's input.
        turns: views averaged for each chip.
        thresholds: the decision rule.
        scores: what evaluation found, for people to read.
        dataset_digest: of the manifest that it was trained on.
    """

    labels: list[str]
    model_config: ModelConfig
    image: ImageForm
    data: DataConfig
    mean: list[float]
    std: list[float]
    turns: int
    thresholds: Thresholds
    scores: dict[str, Any]
    dataset_digest: str

    def build(
        self, weights: dict[str, torch.Tensor], device: torch.device | str = "cpu"
    ) -> tuple[nn.Module, Preprocess]:
        """The network in evaluation mode with its weights, and what prepares its input."""
        preprocess = Preprocess(self.data, self.image.pixels, self.mean, self.std, device=device)
        # The weights come from here, never from where training began.
        config = self.model_config.model_copy(update={"weights": "none"})
        model = build_model(config, len(self.labels), self.image.bands, preprocess.side, self.image.band_order)
        model.load_state_dict(weights)
        model = model.to(device).to(memory_format=torch.channels_last)
        return model.eval(), preprocess


def write_bundle(folder: Path, bundle: Bundle, weights: Path) -> None:
    """Writes a bundle aside and renames it into place.

    Args:
        weights: the safetensors file to copy.
    """
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    shutil.copyfile(weights, aside / _WEIGHTS)
    description = {
        "version": VERSION,
        "labels": bundle.labels,
        "model": bundle.model_config.model_dump(mode="json"),
        "image": bundle.image.model_dump(mode="json"),
        "data": bundle.data.model_dump(mode="json"),
        "mean": bundle.mean,
        "std": bundle.std,
        "turns": bundle.turns,
        "thresholds": bundle.thresholds.to_json(),
        "scores": bundle.scores,
        "dataset_digest": bundle.dataset_digest,
        "weights_sha256": hashlib.sha256((aside / _WEIGHTS).read_bytes()).hexdigest(),
    }
    write_whole(aside / _DESCRIPTION, (json.dumps(description, indent=1, ensure_ascii=False) + "\n").encode())
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def load_bundle(folder: Path) -> tuple[Bundle, dict[str, torch.Tensor]]:
    """Reads a bundle and its weights.

    Raises:
        RunError: it's missing, damaged, changed since it was written, or of another version.
    """
    path = folder / _DESCRIPTION
    try:
        table = json.loads(path.read_text())
        if table["version"] != VERSION:
            raise RunError(f"{path}: bundle version {table['version']!r}; this program reads version {VERSION}")
        data = (folder / _WEIGHTS).read_bytes()
        if hashlib.sha256(data).hexdigest() != table["weights_sha256"]:
            raise RunError(f"{folder / _WEIGHTS}: changed since the bundle was written; copy the bundle again")
        bundle = Bundle(
            labels=table["labels"],
            model_config=ModelConfig.model_validate(table["model"]),
            image=ImageForm.model_validate(table["image"]),
            data=DataConfig.model_validate(table["data"]),
            mean=table["mean"],
            std=table["std"],
            turns=table["turns"],
            thresholds=Thresholds.from_json(table["thresholds"], str(path)),
            scores=table["scores"],
            dataset_digest=table["dataset_digest"],
        )
        return bundle, load_file(folder / _WEIGHTS)
    except PlanetError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, ValidationError) as error:
        raise RunError(f"{folder}: not a whole bundle ({error}); give RUN/bundle of a finished run") from error
