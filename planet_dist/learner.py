"""One phase of training: what trains, its optimizer, and the step.

Letters in array names: B samples of a rank's part of a batch, C labels, H and W pixels.
"""

from __future__ import annotations

import math
from collections import deque
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
from planet_dist.muon import Muon
from planet_dist.stopping import Wish
from planet_dist.stopwatch import Stopwatch
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
    """A loss or gradient that is not a number; raised on every rank. No weight has changed since the step before it.

    Attributes:
        ids: of the samples whose loss is not finite; empty where only the gradient isn't.
    """

    def __init__(self, epoch: int, step: int, ids: list[int]) -> None:
        what = f"the loss of {len(ids)} sample(s)" if ids else "the gradient"
        super().__init__(
            f"epoch {epoch}, step {step}: {what} is not finite; no weight has changed since the step before it. "
            "Lower the learning rate, clip the gradient (clip_norm), or leave fp16 for bf16"
        )
        self.ids = ids


@dataclass(frozen=True)
class _Taken:
    """A step whose figures are on their way to the host.

    Attributes:
        figures: float64 (5,) on the host: sum of the losses, number of losses that are not finite, ranks that wish to
            save, ranks that wish to stop, norm of the gradient.
        arrived: the event after which `figures` may be read, where a device writes them.
        bad_B: bool on the device: which losses of this rank's part are not finite.
    """

    epoch: int
    step: int
    ids_B: NDArray[np.int64]
    batch_length: int
    learning_rate: float
    figures: torch.Tensor
    arrived: torch.cuda.Event | None
    bad_B: torch.Tensor


class Learner:
    """Trains a model through one phase.

    The model is wrapped anew for each phase: DDP lays its reductions out when it wraps, and weights that are
    unfrozen later would drift apart from rank to rank. Only the model and the optimizer are prepared by Accelerate.

    No step waits for the device. What a step came to is read when the next one is under way (results()); a step that
    is not sound leaves the weights alone on the device by itself, and so do those after it.

    Args:
        model: unwrapped, on the device, in channels_last.
        seed: of dropout; each step's draws are a function of (seed, epoch, step, rank).
        watch: counts the time of exchange between ranks.

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
        watch: Stopwatch | None = None,
    ) -> None:
        if phase.batch_size < accelerator.num_processes * phase.accumulate:
            raise ConfigError(
                f"batch_size {phase.batch_size} gives no sample to some of {accelerator.num_processes} processes "
                f"x {phase.accumulate} parts; raise batch_size, or use fewer processes"
            )
        self.phase, self.model, self.loss = phase, model, loss
        self.preprocess = preprocess.at(phase.size) if phase.size else preprocess
        self._plain, self._plain_from = self.preprocess.plain(), (phase.epochs - phase.plain_epochs) * steps_per_epoch
        self.accelerator, self.steps_per_epoch, self.seed = accelerator, steps_per_epoch, seed
        set_trainable(model, phase.trains)
        self.average = MovingAverage(model, phase.ema_decay) if phase.ema_decay else None
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.wrapped, self.optimizer = accelerator.prepare(model, make_optimizer(phase, trained))
        self._trained, self._watch = trained, watch or Stopwatch.off()
        self._watch.follow(self.wrapped)
        # 1 from the first step on that was not sound: fused optimizers then change nothing.
        self._halted = torch.zeros((), device=accelerator.device)
        if accelerator.scaler is None:
            optimizer = self.optimizer.optimizer
            optimizer.grad_scale, optimizer.found_inf = None, self._halted
        self._taken: deque[_Taken] = deque()
        if accelerator.num_processes > 2:
            self._settle_order_of_sums()

    def step(self, batch: Batch, done_steps: int, batch_length: int, wish: Wish = _NOTHING) -> None:
        """Takes one optimizer step; results() tells what it came to.

        Args:
            batch: this rank's part.
            done_steps: of this phase, before this one.
            batch_length: samples of the global batch, over all ranks.
            wish: this rank's, which all ranks learn of.

        Raises:
            ConfigError: the batch has fewer samples than there are ranks.
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
        preprocess = self.preprocess if done_steps < self._plain_from else self._plain
        # DDP averages the ranks' gradients: a sum over a rank's samples, times ranks / batch_length, becomes the
        # mean over the global batch, however many samples each rank has.
        weight = ranks / batch_length
        losses = []
        parts = list(_parts(batch, self.phase.accumulate))
        for number, (images_BHWC, ids_B, targets_BC) in enumerate(parts):
            last = number == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                images_BCHW = preprocess.train(images_BHWC, ids_B, batch.epoch)
                images_BCHW, soft_BC = preprocess.mix(images_BCHW, targets_BC, ids_B, batch.epoch)
                logits_BC = self.wrapped(images_BCHW)
                loss_B = self.loss(logits_BC, soft_BC, batch_length)
                objective = loss_B.sum() * weight
                if last:
                    objective = objective + self.model.penalty()
                self.accelerator.backward(objective)
            losses.append(loss_B.detach())
        loss_B = torch.cat(losses)
        bad_B = ~torch.isfinite(loss_B)
        totals = self._totals(loss_B, bad_B, wish)
        self._halt_if(totals[1] > 0)
        norm = self._clipped_norm()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, done_steps, 1 - self._halted)
        figures, arrived = _on_host(torch.cat([totals, norm.double().reshape(1)]))
        taken = _Taken(batch.epoch, batch.step, batch.ids_B, batch_length, rate, figures, arrived, bad_B)
        self._taken.append(taken)

    def results(self, unread: int = 0) -> Iterator[StepResult]:
        """What steps came to, in order, those read before left out; every rank must read alike.

        Args:
            unread: newest steps to leave for later. With 1, the host waits for nothing that the device is not done
                with, while it has a step to work on.

        Raises:
            NonFiniteError: on every rank.
        """
        while len(self._taken) > unread:
            taken = self._taken.popleft()
            if taken.arrived is not None:
                taken.arrived.synchronize()  # waits for the device
            total, bad, save, stop, norm = taken.figures.tolist()
            # With fp16 the scaler finds such a gradient itself, leaves out the step and lowers its scale.
            if bad or not (math.isfinite(norm) or self.accelerator.scaler is not None):
                raise self._not_finite(taken)
            wish = Wish(save=save > 0, stop=stop > 0)
            yield StepResult(total / taken.batch_length, norm, taken.learning_rate, wish)

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
        # Accelerate's own unwrapping would load torch's compiler, and FSDP, to look for their wrappers.
        for name in ("forward", "_original_forward"):
            self.model.__dict__.pop(name, None)
        # Of a model that it prepared itself, without DDP around it, Accelerate would think that it still is under
        # autocast, and the next phase would train in float32.
        self.model._is_accelerate_prepared = False  # type: ignore[assignment]
        self.accelerator.free_memory()

    def _settle_order_of_sums(self) -> None:
        """Lets DDP lay its gradients' buckets anew before the first step, not after it.

        DDP does so once, in the order in which the gradients of its first backward pass came, and in which order the
        ranks' parts of a value are summed depends on where it lies. With three ranks or more, a resumed run would
        take its first step with other sums than one that went on. Two have but one order.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self.wrapped.train()
        logits_BC = self.wrapped(self.preprocess.blank(2))
        self.accelerator.backward(logits_BC.sum() * 0)
        self.wrapped.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)

    def _step_seed(self, batch: Batch) -> int:
        key = [self.seed, batch.epoch, batch.step, self.accelerator.process_index, _DROPOUT_STREAM]
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)

    def _totals(self, loss_B: torch.Tensor, bad_B: torch.Tensor, wish: Wish) -> torch.Tensor:
        """Over all ranks, float64 (4,): sum of the losses, bad ones, wishes to save, wishes to stop."""
        wanted = torch.tensor([wish.save, wish.stop], dtype=torch.float64).to(loss_B.device, non_blocking=True)
        own = torch.cat([torch.stack([loss_B.sum(dtype=torch.float64), bad_B.sum().double()]), wanted])
        with self._watch.exchanging():
            totals: torch.Tensor = self.accelerator.reduce(own, "sum")
        return totals

    def _halt_if(self, unsound: torch.Tensor) -> None:
        self._halted.copy_(torch.maximum(self._halted, unsound.float()))
        if self.accelerator.scaler is not None:
            # The scaler alone tells the optimizer what to leave out, by the gradients that it finds not finite.
            first = self._trained[0]
            assert first.grad is not None
            first.grad.add_(torch.where(self._halted > 0, torch.nan, 0.0))

    def _clipped_norm(self) -> torch.Tensor:
        limit = self.phase.clip_norm or math.inf
        self.accelerator.unscale_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, limit)
        if self.accelerator.scaler is None:
            self._halt_if(~torch.isfinite(norm))
        return norm

    def _not_finite(self, taken: _Taken) -> NonFiniteError:
        """Gathers the samples at fault from all ranks."""
        flagged = torch.from_numpy(taken.ids_B).to(taken.bad_B.device).masked_fill(~taken.bad_B, -1)
        ids = self.accelerator.gather(self.accelerator.pad_across_processes(flagged, pad_index=-1))
        bad_ids = sorted(i for i in ids.tolist() if i >= 0)
        return NonFiniteError(taken.epoch, taken.step, bad_ids)


def _on_host(values: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """A copy on the host, and the event by which it has arrived."""
    if values.device.type != "cuda":
        return values, None
    copied = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copied.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return copied, arrived


def _parts(batch: Batch, accumulate: int) -> Iterator[tuple[torch.Tensor, NDArray[np.int64], torch.Tensor]]:
    count = len(batch.ids_B)
    for part in range(accumulate):
        chosen = slice(part * count // accumulate, (part + 1) * count // accumulate)
        if chosen.start == chosen.stop and part < accumulate - 1:
            continue  # batch-norm cannot train on nothing
        yield batch.images_BHWC[chosen], batch.ids_B[chosen], batch.targets_BC[chosen]


def make_optimizer(phase: PhaseConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The phase's optimizer. AdamW and Muon decay matrices and filters, not biases and norms' scales."""
    rate, decay = phase.learning_rate, phase.weight_decay
    if phase.optimizer == "sgd":
        sgd = torch.optim.SGD(parameters, lr=rate, momentum=phase.momentum, weight_decay=decay, fused=True)
        for parameter in parameters if phase.momentum else []:
            # torch leaves the buffers of a first step that fp16's scaler skips as memory comes; from zero, the first
            # step is the same.
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    if phase.optimizer == "muon":
        return Muon(parameters, rate, decay)
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
