"""Inference over many ranks: every id comes exactly once, and its logits do not depend on the ranks.

Letters in array names: N chips, B of one batch, C labels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn
from webdataset.pipeline import DataPipeline

from planet_dist.augment import Preprocess, views
from planet_dist.plan import evaluation_batches
from planet_dist.stream import Batch, DecodedBatches, FixedSteps, OnDevice
from shards.errors import TrainingError

Ids = NDArray[np.int64]
Independent = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Logits:
    """The logits of chips: ids int64 (N,) ascending, logits float32 (N, C)."""

    ids_N: Ids
    logits_NC: NDArray[np.float32]


@torch.no_grad()
def mean_logits(model: nn.Module, independent: Independent, images_BCHW: torch.Tensor, turns: int) -> torch.Tensor:
    """The mean of the independent logits over `turns` views of each chip, float32 (B, C).

    Args:
        model: in evaluation mode.
        independent: as for infer.
        images_BCHW: the network's input.
    """
    # Added one by one: torch's mean over a dimension sums in another order where its vectors do not fill, and a chip's
    # last bits would depend on its place in the batch.
    total_BC = sum(independent(model(view_BCHW)) for view_BCHW in views(images_BCHW, turns))
    assert isinstance(total_BC, torch.Tensor)
    return total_BC / turns


@torch.no_grad()
def infer(
    model: nn.Module,
    independent: Independent,
    preprocess: Preprocess,
    batches: Iterable[Batch],
    turns: int,
    on_batch: Callable[[int], object] = lambda number: None,
) -> Logits:
    """A rank's own logits, padding included; the mean over `turns` views of each chip.

    Args:
        independent: turns the model's logits into those whose sigmoid is each label's probability; the loss that
            it was trained with knows how.
        on_batch: told the number of every batch that is begun, from 0.
    """
    model.eval()
    ids: list[Ids] = []
    logits: list[torch.Tensor] = []
    for batch in batches:
        on_batch(batch.step)
        logits.append(mean_logits(model, independent, preprocess.evaluate(batch.images_BHWC), turns))
        ids.append(batch.ids_B)
    return Logits(np.concatenate(ids), torch.cat(logits).cpu().numpy())


def evaluate(
    model: nn.Module,
    independent: Independent,
    preprocess: Preprocess,
    decoded: DecodedBatches,
    ids_N: Ids,
    *,
    batch_size: int,
    turns: int,
    accelerator: Accelerator,
    on_batch: Callable[[int], object] = lambda number: None,
) -> Logits:
    """The logits of `ids_N` on every rank, in ascending order of ids.

    Args:
        on_batch: as for infer; every rank has as many.

    Raises:
        TrainingError: an id is missing, came twice, or was not asked for.
    """
    mine = evaluation_batches(ids_N, batch_size, accelerator.process_index, accelerator.num_processes)
    pipeline = DataPipeline(FixedSteps(mine), decoded, OnDevice(accelerator.device, decoded.caches.device))
    part = infer(model, independent, preprocess, pipeline, turns, on_batch)
    device = accelerator.device
    all_ids_N = accelerator.gather(torch.from_numpy(part.ids_N).to(device)).cpu().numpy()
    all_logits_NC = accelerator.gather(torch.from_numpy(part.logits_NC).to(device)).cpu().numpy()
    return audit(Logits(all_ids_N, all_logits_NC), ids_N)


def audit(gathered: Logits, expected_N: Ids) -> Logits:
    """Drops the padding, sorts by id, and holds the ids against those that were asked for.

    Raises:
        TrainingError: they differ; figures over another set of chips would look like figures.
    """
    kept = gathered.ids_N >= 0
    order = np.argsort(gathered.ids_N[kept], kind="stable")
    ids_N, logits_NC = gathered.ids_N[kept][order], gathered.logits_NC[kept][order]
    if not np.array_equal(ids_N, np.sort(expected_N)):
        found, counts = np.unique(ids_N, return_counts=True)
        missing = np.setdiff1d(expected_N, found)[:5].tolist()
        doubled = found[counts > 1][:5].tolist()
        foreign = np.setdiff1d(found, expected_N)[:5].tolist()
        raise TrainingError(
            f"evaluation gathered {len(ids_N)} of {len(expected_N)} chips: missing {missing}, doubled {doubled}, "
            f"foreign {foreign} (first five of each); each chip must come exactly once"
        )
    return Logits(ids_N, logits_NC)
