"""One phase of training: what trains, its optimizer, and the step.

Letters in array names: B samples of a rank's part of a batch, C labels, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from planet_dist.augment import Preprocess
from planet_dist.config import PhaseConfig
from planet_dist.ema import MovingAverage
from planet_dist.losses import Loss
from planet_dist.models import Network, set_trainable
from planet_dist.stopping import Wish
from planet_dist.stream import Batch
from shards.errors import ConfigError, TrainingError

_NOTHING = Wish()
_DROPOUT_STREAM = 5  # beside the seed, so that no two uses of a seed share their draws


@dataclass(frozen=True)
class StepResult:
    """What a step came to, the same on every rank.

    Attributes:
        loss: mean over the global batch, penalties left out.
        grad_norm: of the whole gradient, before clipping.
        learning_rate: that the step was taken with.
        wish: what any rank wanted after this step.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    wish: Wish

    def figures(self) -> dict[str, float]:
        """What is logged of a step."""
        return {"loss": self.loss, "grad_norm": self.grad_norm, "learning_rate": self.learning_rate}


class NonFiniteError(TrainingError):
    """A loss or gradient that is not a number; raised on every rank, before the weights change.

    Attributes:
        ids: of the samples whose loss is not finite; empty where only the gradient isn't.
    """

    def __init__(self, epoch: int, step: int, ids: list[int]) -> None:
        what = f"the loss of {len(ids)} sample(s)" if ids else "the gradient"
        super().__init__(
            f"epoch {epoch}, step {step}: {what} is not finite; the weights are as before this step. "
            "Lower the learning rate, clip the gradient (clip_norm), or leave fp16 for bf16"
        )
        self.ids = ids


class Learner:
    """Trains a model through one phase.

    The model is wrapped anew for each phase: DDP lays its reductions out when it wraps, and weights that are
    unfrozen later would drift apart from rank to rank. Only the model and the optimizer are prepared by Accelerate.

    Args:
        model: unwrapped, on the device, in channels_last.
        seed: of dropout; each step's draws are a function of (seed, epoch, step, rank).

    Raises:
        ConfigError: the batch cannot be divided among the ranks.
    """

    def __init__(
        self,
        phase: PhaseConfig,
        model: Network,
        loss: Loss,
        preprocess: Preprocess,
        accelerator: Accelerator,
        *,
        steps_per_epoch: int,
        seed: int,
    ) -> None:
        if phase.batch_size < accelerator.num_processes * phase.accumulate:
            raise ConfigError(
                f"batch_size {phase.batch_size} gives no sample to some of {accelerator.num_processes} processes "
                f"x {phase.accumulate} parts; raise batch_size, or use fewer processes"
            )
        self.phase, self.model, self.loss, self.preprocess = phase, model, loss, preprocess
        self.accelerator, self.steps_per_epoch, self.seed = accelerator, steps_per_epoch, seed
        set_trainable(model, phase.trains)
        self.average = MovingAverage(model, phase.ema_decay) if phase.ema_decay else None
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.wrapped, self.optimizer = accelerator.prepare(model, make_optimizer(phase, trained))
        self._trained = trained

    def step(self, batch: Batch, done_steps: int, batch_length: int, wish: Wish = _NOTHING) -> StepResult:
        """Takes one optimizer step.

        Args:
            batch: this rank's part.
            done_steps: of this phase, before this one.
            batch_length: samples of the global batch, over all ranks.
            wish: this rank's, which all ranks learn of.

        Raises:
            ConfigError: the batch has fewer samples than there are ranks.
            NonFiniteError: on every rank; the weights are as they were.
        """
        ranks = self.accelerator.num_processes
        if batch_length < ranks:  # all ranks see it: none waits for another
            raise ConfigError(
                f"epoch {batch.epoch}, step {batch.step} has {batch_length} chip(s) for {ranks} process(es); "
                "raise batch_size or train on more chips, or use fewer processes"
            )
        rate = learning_rate(self.phase, done_steps, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(self._step_seed(batch))
        self.wrapped.train()
        # DDP averages the ranks' gradients: a sum over a rank's samples, times ranks / batch_length, becomes the
        # mean over the global batch, however many samples each rank has.
        weight = ranks / batch_length
        losses = []
        parts = list(_parts(batch, self.phase.accumulate))
        for number, (images_BHWC, ids_B, targets_BC) in enumerate(parts):
            last = number == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                images_BCHW = self.preprocess.train(images_BHWC, ids_B, batch.epoch)
                logits_BC = self.wrapped(images_BCHW)
                loss_B = self.loss(logits_BC, targets_BC, batch_length)
                objective = loss_B.sum() * weight
                if last:
                    objective = objective + self.model.penalty()
                self.accelerator.backward(objective)
            losses.append(loss_B.detach())
        mean_loss, wishes = self._agree(torch.cat(losses), batch, batch_length, wish)
        grad_norm = self._clipped_norm(batch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, done_steps)
        return StepResult(mean_loss, grad_norm, rate, wishes)

    def evaluated_model(self) -> nn.Module:
        """The model to judge and keep: the moving average where there is one.

        Batch-norm statistics are made rank 0's on every rank first; each rank has seen other samples.
        """
        self.share_buffers()
        return self.model if self.average is None else self.average.model

    def share_buffers(self) -> None:
        """Gives every rank the buffers of rank 0, the moving average's too."""
        if self.accelerator.num_processes == 1:
            return
        models = [self.model] if self.average is None else [self.model, self.average.model]
        for buffer in (buffer for model in models for buffer in model.buffers()):
            torch.distributed.broadcast(buffer, src=0)

    def close(self) -> None:
        """Unwraps the model for what comes next."""
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def _step_seed(self, batch: Batch) -> int:
        key = [self.seed, batch.epoch, batch.step, self.accelerator.process_index, _DROPOUT_STREAM]
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)

    def _agree(self, loss_B: torch.Tensor, batch: Batch, batch_length: int, wish: Wish) -> tuple[float, Wish]:
        """The mean loss over the global batch, and what any rank wants."""
        bad_B = ~torch.isfinite(loss_B)
        wanted = torch.tensor([wish.save, wish.stop], dtype=torch.float64, device=loss_B.device)
        totals = torch.cat([torch.stack([loss_B.sum(dtype=torch.float64), bad_B.sum().double()]), wanted])
        # Waits for the device: what the host decides here must be known before the weights change.
        total, bad, save, stop = self.accelerator.reduce(totals, "sum").tolist()
        if bad:
            flagged = torch.from_numpy(batch.ids_B).to(bad_B.device).masked_fill(~bad_B, -1)
            ids = self.accelerator.gather(self.accelerator.pad_across_processes(flagged, pad_index=-1))
            raise NonFiniteError(batch.epoch, batch.step, sorted(i for i in ids.tolist() if i >= 0))
        return float(total) / batch_length, Wish(save=save > 0, stop=stop > 0)

    def _clipped_norm(self, batch: Batch) -> float:
        limit = self.phase.clip_norm or math.inf
        norm = float(self.accelerator.clip_grad_norm_(self._trained, limit))
        # With fp16 the scaler finds such a gradient itself, leaves out the step and lowers its scale.
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise NonFiniteError(batch.epoch, batch.step, [])
        return norm


def _parts(batch: Batch, accumulate: int) -> Iterator[tuple[torch.Tensor, NDArray[np.int64], torch.Tensor]]:
    count = len(batch.ids_B)
    for part in range(accumulate):
        chosen = slice(part * count // accumulate, (part + 1) * count // accumulate)
        if chosen.start == chosen.stop and part < accumulate - 1:
            continue  # batch-norm cannot train on nothing
        yield batch.images_BHWC[chosen], batch.ids_B[chosen], batch.targets_BC[chosen]


def make_optimizer(phase: PhaseConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The phase's optimizer. AdamW decays matrices and filters, not biases and norms' scales."""
    rate, decay = phase.learning_rate, phase.weight_decay
    if phase.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=phase.momentum, weight_decay=decay, fused=True)
    if phase.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, fused=True)


def learning_rate(phase: PhaseConfig, done_steps: int, steps_per_epoch: int) -> float:
    """The learning rate of the step that follows `done_steps` steps of a phase."""
    warmup_steps = round(phase.warmup_epochs * steps_per_epoch)
    total_steps = phase.epochs * steps_per_epoch
    if done_steps < warmup_steps:
        return phase.learning_rate * (done_steps + 1) / warmup_steps
    if phase.schedule == "constant":
        return phase.learning_rate
    progress = (done_steps - warmup_steps) / max(total_steps - warmup_steps, 1)
    return phase.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
