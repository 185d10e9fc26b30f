"""Learners on made batches; under accelerate launch, by test_learner.py, steps whose ranks have unlike parts.

ranks_learner.py OUT_FOLDER
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from numpy.typing import NDArray

from planet_dist.augment import Preprocess
from planet_dist.config import AugmentConfig, DataConfig, LossConfig, ModelConfig, PhaseConfig
from planet_dist.learner import Learner, NonFiniteError, StepResult
from planet_dist.losses import build_loss
from planet_dist.models import build_model
from planet_dist.stream import Batch
from shards.labels import Vocabulary
from shards.pixels import PixelFormat

SIDE, LABELS, CHIPS = 16, 4, 7
RANKS_TAKE = (slice(0, 5), slice(5, CHIPS))  # neither alike nor a multiple of anything
BAD_ID = 606  # of a chip whose pixels NotANumber spoils


class NotANumber(Preprocess):
    """Gives the chip BAD_ID a pixel that is not a number."""

    def train(self, images_BHWC: torch.Tensor, ids_B: NDArray[np.int64], epoch: int) -> torch.Tensor:
        images_BCHW = super().train(images_BHWC, ids_B, epoch)
        images_BCHW[torch.from_numpy(ids_B == BAD_ID), 0, 3, 5] = torch.nan
        return images_BCHW


def make_batch(epoch: int = 0, step: int = 0, count: int = CHIPS, first_id: int = 100) -> Batch:
    """Chips of noise that are the same for the same place, with every label on some of them."""
    rng = np.random.default_rng([epoch, step])
    images_BHWC = torch.from_numpy(rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8))
    targets_BC = torch.from_numpy((rng.random((count, LABELS)) < 0.4).astype(np.float32))
    return Batch(epoch, step, np.arange(first_id, first_id + count), images_BHWC, targets_BC)


def part_of(batch: Batch, chosen: slice) -> Batch:
    return replace(
        batch,
        ids_B=batch.ids_B[chosen],
        images_BHWC=batch.images_BHWC[chosen],
        targets_BC=batch.targets_BC[chosen],
    )


def make_learner(
    accelerator: Accelerator,
    model: str = "paper2-cnn",
    *,
    dropout: float = 0.0,
    preprocess: type[Preprocess] = Preprocess,
    augment: AugmentConfig | None = None,
    seed: int = 3,
    **phase: Any,
) -> Learner:
    """A learner whose network always starts from the same weights, with an L2 penalty where it takes one."""
    settings = {"epochs": 4, "batch_size": CHIPS, "optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.0}
    form = PixelFormat(SIDE, SIDE, 3, "uint8")
    torch.manual_seed(0)
    network = build_model(ModelConfig(name=model, width=8, dropout=dropout, l2=0.01), LABELS, 3, SIDE)
    vocabulary = Vocabulary(tuple(f"label_{i}" for i in range(LABELS)))
    return Learner(
        PhaseConfig.model_validate(settings | phase),
        network.to(memory_format=torch.channels_last),
        build_loss(LossConfig(), LABELS, vocabulary, np.ones(LABELS), np.eye(LABELS), CHIPS),
        preprocess(DataConfig(), form, [120.0] * 3, [70.0] * 3, augment=augment or AugmentConfig(flip=True), seed=seed),
        accelerator,
        steps_per_epoch=10,
        seed=seed,
    )


def take(learner: Learner, batch: Batch, done_steps: int, batch_length: int) -> StepResult:
    """One step, and what it came to."""
    learner.step(batch, done_steps, batch_length)
    [result] = learner.results()
    return result


def weights(learner: Learner) -> dict[str, NDArray[Any]]:
    return {name: tensor.detach().clone().numpy() for name, tensor in learner.model.state_dict().items()}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(
        cpu=True,
        mixed_precision="no",
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    mine = RANKS_TAKE[accelerator.process_index]
    found: dict[str, Any] = {"ranks": accelerator.num_processes}
    for accumulate in (1, 2):
        learner = make_learner(accelerator, accumulate=accumulate)
        results = [take(learner, part_of(make_batch(0, step), mine), step, CHIPS) for step in range(3)]
        found |= {f"{accumulate}:{name}": tensor for name, tensor in weights(learner).items()}
        found[f"{accumulate}:losses"] = [result.loss for result in results]
        found[f"{accumulate}:norms"] = [result.grad_norm for result in results]
        learner.close()
    learner = make_learner(accelerator, preprocess=NotANumber)
    before = weights(learner)
    try:
        take(learner, part_of(make_batch(first_id=BAD_ID - CHIPS + 1), mine), 0, CHIPS)
    except NonFiniteError as error:
        found["bad_ids"] = error.ids
    found["changed"] = [name for name, tensor in weights(learner).items() if not np.array_equal(tensor, before[name])]
    learner.close()
    learner = make_learner(accelerator, "small-resnet", ema_decay=0.9)
    learner.step(part_of(make_batch(), mine), 0, CHIPS)
    found["own_mean"] = learner.model.get_buffer("backbone.stem1.1.running_mean").numpy().copy()
    assert learner.average is not None
    learner.evaluated_model()
    found["shared_mean"] = learner.model.get_buffer("backbone.stem1.1.running_mean").numpy()
    found["shared_ema_mean"] = learner.average.model.get_buffer("backbone.stem1.1.running_mean").numpy()
    np.savez(out / f"rank{accelerator.process_index}.npz", **found)
    # A rank that exits with its process group open may abort in the group's own threads.
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
