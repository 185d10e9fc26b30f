"""Run under accelerate launch by test_evaluate.py: evaluates one model on every rank, and writes what rank 0 has.

ranks_evaluate.py DATASET OUT.npz
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from accelerate import Accelerator

from planet_dist.augment import Preprocess
from planet_dist.config import DataConfig, ModelConfig
from planet_dist.evaluate import evaluate
from planet_dist.models import build_model
from planet_dist.stream import DecodedBatches
from shards.reader import Dataset


def main(path: str, out: str) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    dataset = Dataset(path)
    manifest = dataset.manifest
    targets_NC = manifest.vocabulary.matrix(dataset.index()["labels"])
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="small-resnet", width=8), len(manifest.labels), 3, 32)
    found = evaluate(
        model.to(memory_format=torch.channels_last),
        lambda logits_BC: logits_BC,
        Preprocess(DataConfig(), manifest.image.pixels, manifest.mean, manifest.std),
        DecodedBatches(dataset, targets_NC, 16, threads=1, prefetch_batches=2),
        np.arange(7, 107),  # neither ranks nor batches divide these 100
        batch_size=16,
        turns=8,
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        np.savez(out, ids=found.ids_N, logits=found.logits_NC, ranks=accelerator.num_processes)
    # A rank that exits with its process group open may abort in the group's own threads.
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
