"""Finished runs made without training: networks of random weights, and predictions drawn around the truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from planet_dist.bundle_description import Description, Member
from planet_dist.bundle_files import file_sha256, write_bundle
from planet_dist.config import ModelConfig, load_config
from planet_dist.data import open_data
from planet_dist.models import build_model
from planet_dist.predictions import write_predictions
from planet_dist.thresholds import Thresholds
from shards.reader import Dataset

TINY = ModelConfig(name="small-resnet", width=8)


def random_weights(path: Path, config: ModelConfig, dataset: Dataset, seed: int, size: int = 32) -> Path:
    """A network's weights whose answers to chips differ: its batch-norm scales are random too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(config, len(dataset.manifest.labels), dataset.manifest.image.bands, size)
        for name, tensor in model.state_dict().items():
            if "bn" in name and name.endswith("weight"):
                tensor.uniform_(0.5, 1.5)
            elif name.startswith("head") and name.endswith("weight"):
                tensor.normal_(std=1.0)
    save_file(model.state_dict(), path)
    return path


def member(dataset: Dataset, file: Path, **changes: Any) -> Member:
    """A member of a bundle that decides at 0.5; `changes` stand above that."""
    manifest = dataset.manifest
    made = {
        "name": file.parent.name,
        "weights": "model.safetensors",
        "sha256": file_sha256(file),
        "model": TINY,
        "size": 32,
        "normalise": "dataset",
        "mean": manifest.mean,
        "std": manifest.std,
        "turns": 1,
        "competing_groups": [],
        "speaks_for": manifest.labels,
        "thresholds": flat(manifest.labels, 0.5),
        "protocol": {"split": "tail:80"},
    }
    return Member.model_validate(made | changes)


def bundle_of(dataset: Dataset, members: Sequence[Member], **changes: Any) -> Description:
    """A bundle of members; `changes` stand above what is taken from the dataset."""
    manifest = dataset.manifest
    made = {
        "labels": manifest.labels,
        "exclusive": manifest.exclusive,
        "alone": manifest.alone,
        "image": manifest.image,
        "members": list(members),
        "thresholds": members[0].thresholds,
        "training_chips": manifest.count,
        "training_label_counts": manifest.label_counts,
        "scores": {},
        "dataset_digest": dataset.digest,
    }
    return Description.model_validate(made | changes)


def flat(labels: Sequence[str], value: float, rule: str = "flat-0.5") -> Thresholds:
    """One threshold for all labels."""
    return Thresholds(rule, tuple(labels), (value,) * len(labels))


def made_run(
    run: Path,
    dataset: Dataset,
    seed: int,
    *,
    ids: Sequence[int] = range(40, 120),
    noise: float = 1.5,
    trained_on: Sequence[int] = range(120),
    **changes: Any,
) -> Path:
    """RUN/bundle and RUN/evaluation/predictions.npz; `changes` are the member's."""
    run.mkdir(parents=True)
    weights = random_weights(run / "weights.safetensors", TINY, dataset, seed)
    rule = flat(dataset.manifest.labels, 0.2, "flat-0.2")
    one = member(dataset, weights, **({"thresholds": rule} | changes))
    targets_NC = dataset.manifest.vocabulary.matrix(dataset.index()["labels"])
    counts = targets_NC[list(trained_on)].sum(axis=0, dtype=np.int64).tolist()
    bundle = bundle_of(dataset, [one], training_chips=len(trained_on), training_label_counts=counts)
    write_bundle(run / "bundle", bundle, [weights])
    ids_N = np.array(ids)
    targets_NC = targets_NC[ids_N]
    rng = np.random.default_rng(seed)
    logits_NC = rng.normal(np.where(targets_NC, 1.5, -2.5), noise).astype(np.float32)
    shuffled = rng.permutation(len(ids_N))  # the order in a file means nothing
    (run / "evaluation").mkdir()
    write_predictions(
        run / "evaluation" / "predictions.npz",
        dataset.manifest.labels,
        ids_N[shuffled],
        logits_NC[shuffled],
        targets_NC[shuffled],
    )
    return run


def made_fold_run(
    run: Path, dataset: Dataset, seed: int, split: str, *, words: Sequence[str] = (), noise: float = 1.5, **changes: Any
) -> Path:
    """A run that held out a fold, with its configuration and half a minute of training in its log.

    Args:
        split: of the expression kfold:K/I.
        words: further overrides of small-resnet-32.
        changes: of the member.
    """
    config = load_config("small-resnet-32", [f"data.split={split}", "evaluate.best_by=last", "model.width=8", *words])
    parts = open_data(config, dataset.root).split
    ids, trained_on = parts.val_ids.tolist(), parts.train_ids.tolist()
    made_run(run, dataset, seed, ids=ids, noise=noise, trained_on=trained_on, **changes)
    (run / "config.toml").write_text(config.to_toml())
    steps = [{"kind": "train", "step": step, "seconds": 10.0} for step in (10, 20, 30)]
    (run / "timing.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in steps))
    (run / "metrics.jsonl").write_text(json.dumps({"kind": "epoch", "phase": 0, "epoch": 0, "f2": 0.5}) + "\n")
    return run
