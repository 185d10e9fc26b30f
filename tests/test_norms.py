"""Batch-norm statistics are those of the chips, by batches, and a run ends with those of the weights that it keeps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from planet_dist import norms
from planet_dist.assembly import assemble
from planet_dist.augment import Preprocess
from planet_dist.checkpoint import load_tensors
from planet_dist.config import DataConfig, load_config
from planet_dist.data import open_data
from planet_dist.norms import measure_norms, spread
from planet_dist.stream import DecodedBatches
from shards.reader import Dataset
from tests.conftest import train_small

CPU = torch.device("cpu")
WATCH: Any = SimpleNamespace(beat=lambda where: None)


def measure(model: nn.Module, dataset: Dataset, ids_N: np.ndarray, preprocess: Preprocess) -> None:
    targets_NC = dataset.manifest.vocabulary.matrix(dataset.index()["labels"])
    decoded = DecodedBatches(dataset, targets_NC, norms.LARGEST_BATCH, threads=1, prefetch_batches=2)
    measure_norms(model, preprocess, decoded, ids_N, CPU, WATCH)


def test_statistics_are_the_means_of_even_batches(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "LARGEST_BATCH", 16)
    manifest = dataset.manifest
    preprocess = Preprocess(DataConfig(), manifest.image.pixels, manifest.mean, manifest.std)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=0.03), nn.Dropout()).eval()
    ids_N = spread(np.arange(10, 110), 40)
    assert len(np.unique(ids_N)) == 40 and (ids_N[0], ids_N[-1]) == (10, 109)
    weights = model[0].weight.clone()
    with torch.no_grad():
        measure(model, dataset, ids_N, preprocess)
        seen = [
            model[0](preprocess.evaluate(torch.from_numpy(np.stack([dataset.pixels(int(chip)) for chip in batch]))))
            for batch in (ids_N[:14], ids_N[14:27], ids_N[27:])
        ]
    means_5 = torch.stack([maps.mean((0, 2, 3)) for maps in seen]).mean(0)
    variances_5 = torch.stack([maps.var((0, 2, 3)) for maps in seen]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means_5, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model[1].running_var, variances_5, atol=1e-5, rtol=1e-4)
    assert model[1].momentum == 0.03
    assert torch.equal(model[0].weight, weights)
    assert not any(module.training for module in model.modules())


def test_all_chips_are_taken_where_there_are_no_more() -> None:
    assert spread(np.array([3, 5, 8]), 10).tolist() == [3, 5, 8]


def test_a_run_measures_the_weights_that_it_keeps_at_its_end_on_any_number_of_ranks(
    dataset: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["model.width=8", "data.split=tail:30", "phases.0.epochs=2", "phases.0.batch_size=30"]
    words += ["phases.0.ema_decay=0.9", "phases.0.norm_chips=50", "runtime.keep_checkpoints=9"]
    train_small(dataset, run, *words, ranks=2)
    config = load_config("small-resnet-32", words)
    data = open_data(config, dataset.root)
    parts = assemble(config, data, CPU)
    found = []
    for folder in sorted((run / "checkpoints").glob("step-*")):
        kept = load_tensors(folder / "ema.safetensors")
        parts.model.load_state_dict(kept)
        measure(parts.model.eval(), dataset, spread(data.split.train_ids, 50), parts.preprocess)
        measured = parts.model.state_dict()
        names = [name for name in kept if name.endswith(("running_mean", "running_var"))]
        found.append(all(torch.allclose(kept[name], measured[name], atol=0.02, rtol=0.05) for name in names))
    assert names and found == [False, True]
