"""Run under accelerate launch by test_recipes.py: two steps of every phase of every recipe, on two ranks.

ranks_recipes.py JPG_DATASET TIF_DATASET OUT.json
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from webdataset.pipeline import DataPipeline

from planet_dist.assembly import assemble
from planet_dist.config import Config, load_config, recipe_paths
from planet_dist.data import Data, open_data
from planet_dist.learner import Learner
from planet_dist.models import count_parameters
from planet_dist.stream import DecodedBatches, OnDevice, PlannedSteps
from tests.ranks_learner import take

STEPS, BATCH = 2, 4
SIDE = 96  # of the images of large networks, so that a CPU has time for all of them


def digest(tensors: list[torch.Tensor]) -> torch.Tensor:
    """A number that stands for the tensors' bytes."""
    sha = hashlib.sha256(b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors))
    return torch.tensor([int.from_bytes(sha.digest()[:7], "big")])


def train(config: Config, data: Data, accelerator: Accelerator) -> list[dict[str, object]]:
    """What each phase came to."""
    parts = assemble(config, data, accelerator.device)
    model = parts.model
    rank, ranks = accelerator.process_index, accelerator.num_processes
    found = []
    for phase in config.phases:
        plan = data.plan(config, phase)
        learner = Learner(
            phase, model, parts.loss, parts.preprocess, accelerator, steps_per_epoch=plan.steps_per_epoch, seed=0
        )
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
        before = [digest(frozen), digest(moving)]
        decoded = DecodedBatches(data.dataset, data.targets_NC, BATCH, threads=1, prefetch_batches=2)
        batches = iter(
            DataPipeline(
                PlannedSteps(plan, range(1), 0, rank=rank, num_ranks=ranks), decoded, OnDevice(accelerator.device)
            )
        )
        losses = [take(learner, next(batches), step, plan.batch_length(step)).loss for step in range(STEPS)]
        batches.close()
        everything = accelerator.gather(digest(list(model.parameters())))
        found.append(
            {
                "optimizer": type(learner.optimizer.optimizer).__name__,
                "counts": count_parameters(model),
                "ranks_equal": len(set(everything.tolist())) == 1,
                "frozen_moved": bool(before[0] != digest(frozen)),
                "trained_moved": bool(before[1] != digest(moving)),
                "losses": losses,
            }
        )
        learner.close()
    return found


def main(jpg: str, tif: str, out: str) -> None:
    """Trains every recipe, and writes what rank 0 found."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])
    found = {}
    for name in recipe_paths():
        plain = load_config(name)
        side = min(plain.data.size, SIDE)
        words = ["model.weights=none", "data.split=tail:20", f"data.size={side}"]
        for number, phase in enumerate(plain.phases):
            words.append(f"phases.{number}.batch_size={BATCH}")
            words += [f"phases.{number}.size={side * phase.size // plain.data.size}"] if phase.size else []
        config = load_config(name, words)
        found[name] = train(config, open_data(config, tif if config.data.kind == "tif" else jpg), accelerator)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        Path(out).write_text(json.dumps(found))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
