"""Batch-norm statistics measured anew on training chips, for a network that has come to its end.

While a network trains, its statistics follow from batch to batch, and a moving average of its weights has the average
of theirs: those of other weights, over small batches. Wu and Johnson (2021, "Rethinking 'Batch' in BatchNorm", section
3) measure them on some thousand samples with the weights that are kept, as here.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from webdataset.pipeline import DataPipeline

from planet_dist.augment import Preprocess
from planet_dist.liveness import Watch
from planet_dist.stream import DecodedBatches, FixedSteps, OnDevice

LARGEST_BATCH = 512  # fewer chips of small maps differ too much among batches


def spread(ids_N: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` of the ids at even distances, or all where there are no more."""
    return ids_N[np.linspace(0, len(ids_N) - 1, min(count, len(ids_N))).astype(np.int64)]


@torch.no_grad()
def measure_norms(
    model: nn.Module,
    preprocess: Preprocess,
    decoded: DecodedBatches,
    ids_N: NDArray[np.int64],
    device: torch.device,
    watch: Watch,
) -> None:
    """Gives every batch-norm the mean and variance of its input over chips as evaluation sees them, by batches' means.

    All ranks measure the same, so that their number changes nothing.

    Args:
        model: in evaluation mode, and left so; its weights stay.
        decoded: for batches of LARGEST_BATCH.
        ids_N: of the chips, which are shared evenly among batches.
        device: of the model.
        watch: that hears how far this rank has come.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    steps = np.array_split(ids_N, -(-len(ids_N) // LARGEST_BATCH))
    for batch in DataPipeline(FixedSteps(steps), decoded, OnDevice(device, decoded.caches.device)):
        watch.beat(f"batch {batch.step} of the batch-norm statistics")
        model(preprocess.evaluate(batch.images_BHWC))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
