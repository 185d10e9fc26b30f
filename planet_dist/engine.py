"""A run from its first step to its bundle: phases, epochs, validation, checkpoints.

The run's position is three integers (phase, epoch, step); everything random is a function of them and the seed.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn
from webdataset.pipeline import DataPipeline

from planet_dist.assembly import assemble
from planet_dist.augment import Preprocess
from planet_dist.checkpoint import (
    Best,
    Checkpoint,
    Position,
    State,
    load_optimizer,
    load_tensors,
    mark_best,
    optimizer_tensors,
    prune,
    save_checkpoint,
)
from planet_dist.config import Config
from planet_dist.crossfit import Evaluation
from planet_dist.data import Data
from planet_dist.epoch_detail import epoch_detail
from planet_dist.evaluate import Independent, Logits, evaluate
from planet_dist.judge import conclude, validate, weighted_labels
from planet_dist.launched import asked_precision
from planet_dist.learner import Learner, NonFiniteError, StepResult
from planet_dist.lineage import NO_LINEAGE, Lineage
from planet_dist.liveness import Watch
from planet_dist.models import count_parameters
from planet_dist.norms import LARGEST_BATCH, measure_norms, spread
from planet_dist.precision import describe_precision
from planet_dist.progress import Progress, Stretch
from planet_dist.provenance import LIBRARIES
from planet_dist.report import warn_of_failure, write_epoch_report, write_final_report
from planet_dist.runfolder import JsonLines, RunFolder, settings
from planet_dist.stopping import Wish, Wishes
from planet_dist.stopwatch import Stopwatch
from planet_dist.stream import DecodedBatches, OnDevice, PlannedSteps, decode_threads, open_caches
from planet_dist.traces import Trace
from planet_dist.tracking import Tracker, tracking_mode
from planet_dist.tracking_names import results
from shards.errors import TrainingError


def run_identity(config: Config, data: Data, accelerator: Accelerator, lineage: Lineage = NO_LINEAGE) -> dict[str, Any]:
    """What a checkpoint may only be resumed with. How the run is watched and on what it runs may change."""
    kept = settings(config)
    del kept["teacher"]  # which, and with what to say, the lineage states
    kept["data"] = {k: v for k, v in kept["data"].items() if k not in ("threads", "prefetch_batches", "cache")}
    identity = {"config": kept, "dataset": data.dataset.digest, "precision": accelerator.mixed_precision}
    return identity | lineage.stated() | ({"groups": data.groups_digest} if data.groups_digest else {})


class Stopped(Exception):
    """Raised on every rank once a run that was asked to end has saved; not an error.

    Attributes:
        reason: what asked.
        total_steps: done and saved.
    """

    def __init__(self, reason: str, total_steps: int) -> None:
        super().__init__(f"stopped by {reason} after step {total_steps}, all saved; go on with --resume auto")
        self.reason, self.total_steps = reason, total_steps


@dataclass(frozen=True)
class _Taken:
    """A step that was taken and not yet read: where it leads, and what is logged with it.

    Attributes:
        images: of the global batch.
    """

    place: Position
    total_steps: int
    images: int


class Trainer:
    """Trains a run and ends with its bundle.

    Args:
        checkpoint: to go on from, or None.
        watch: that hears how far this rank has come.
        lineage: to start from, and to learn from beside the labels.
        profile_steps: that each rank writes a trace of; it changes nothing else.
    """

    def __init__(
        self,
        config: Config,
        data: Data,
        run: RunFolder,
        tracker: Tracker,
        accelerator: Accelerator,
        checkpoint: Checkpoint | None,
        watch: Watch,
        *,
        lineage: Lineage = NO_LINEAGE,
        profile_steps: int = 0,
    ) -> None:
        self.config, self.data, self.run, self.tracker, self.accelerator = config, data, run, tracker, accelerator
        self.checkpoint, self.watch, self.lineage = checkpoint, watch, lineage
        parts = assemble(config, data, accelerator.device, checkpoint.model if checkpoint else lineage.weights)
        self.preprocess, self.model, self.loss = parts.preprocess, parts.model, parts.loss
        self.plans = [data.plan(config, phase) for phase in config.phases]
        state = checkpoint.state if checkpoint else None
        self.total_steps = state.total_steps if state else 0
        self.best = state.best if state else None
        self.main = accelerator.is_main_process
        self.wishes = Wishes(config.runtime.checkpoint_minutes, keeps_time=self.main)
        self.wishes.listen()
        if self.main:
            self.metrics = JsonLines(run.metrics, state.metrics_bytes if state else 0)
            self.timing = JsonLines(run.timing)
        pairs = zip(config.phases, self.plans, strict=True)
        stretches = [Stretch(phase.epochs, plan.steps_per_epoch) for phase, plan in pairs]
        self.progress = Progress(shown=self.main, phases=stretches, mode=config.tracking.terminal)
        self.threads = decode_threads(config.data.threads, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self.stopwatch = Stopwatch(accelerator.device, self.threads, on=self.main, traced=profile_steps > 0)
        self.trace = Trace(run.profile, accelerator.process_index, profile_steps)
        self.taken: deque[_Taken] = deque()
        self.caches = open_caches(config, data.dataset, accelerator.device)
        self.val_decoded = self._decoded(config.evaluate.batch_size, data.targets_NC)

    def train(self) -> Evaluation | None:
        """Trains to the end; rank 0 then fits the decision rules and writes the bundle.

        Returns:
            On rank 0, how the best checkpoint did.
        """
        position = self.checkpoint.state.position if self.checkpoint else Position()
        split = self.data.split
        self.tracker.describe(self.data)
        precision = describe_precision(self.accelerator.mixed_precision, asked_precision())
        self.progress.note(
            f"{len(split.train_ids):,} chips train, {len(split.val_ids):,} validate; "
            f"{self.accelerator.num_processes} process(es) on {self.accelerator.device.type}, "
            f"{precision}, W&B {tracking_mode(self.config.tracking)}"
        )
        try:
            for number in range(position.phase, len(self.config.phases)):
                self._train_phase(number, position if number == position.phase else Position(number))
        finally:
            self.progress.close()
            self.trace.close()
        weights = self._load_best()
        logits = self._judged(self.model, self.config.evaluate.turns)
        if not self.main:
            return None
        self.run.hold()
        mark_best(self.run.checkpoints, weights.parent.name)  # a kill may have come between a save and its mark
        evaluation = conclude(self.config, self.data, self.run, logits, weights, self.lineage)
        self.tracker.conclude(results(evaluation.to_json()), self.run.bundle)
        warn_of_failure(lambda: write_final_report(self.run, self.data.dataset), self.progress.warn)
        return evaluation

    @cached_property
    def _training_targets(self) -> NDArray[np.generic]:
        """The targets (N, C) of all chips by id: their labels, which a teacher makes softer where they train.

        Its answers count as training time, in the first step's.
        """
        teacher = self.lineage.teacher
        if teacher is None:
            return self.data.targets_NC
        ids_N, network = self.data.split.train_ids, teacher.network
        self.progress.note(f"the teacher, {self.config.teacher.run}, first answers {len(ids_N):,} chips")
        answers = self._infer(network.model, teacher.independent, network.preprocess, ids_N, 1, "the teacher")
        return teacher.soften(self.data.targets_NC, answers)

    def _train_phase(self, number: int, position: Position) -> None:
        phase, plan = self.config.phases[number], self.plans[number]
        if position.epoch >= phase.epochs:
            return
        learner = Learner(
            phase,
            self.model,
            self.loss,
            self.preprocess,
            self.accelerator,
            steps_per_epoch=plan.steps_per_epoch,
            seed=self.config.seed,
            watch=self.stopwatch,
        )
        self._restore(learner, position)
        trainable, frozen = count_parameters(self.model)
        self.progress.phase(
            number,
            position.epoch,
            f"{phase.trains} of {self.config.model.name} trains, "
            f"{trainable:,} weights, {frozen:,} frozen; {plan.steps_per_epoch} steps of {phase.batch_size}",
        )
        earlier = sum(earlier.epochs for earlier in self.config.phases[:number])
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        source = PlannedSteps(
            plan,
            range(earlier + position.epoch, earlier + phase.epochs),
            position.step,
            rank=rank,
            num_ranks=num_ranks,
        )
        decoded = self._decoded(plan.largest_rank_batch(num_ranks), self._training_targets, self.stopwatch)
        on_device = OnDevice(self.accelerator.device, self.caches.device, self.stopwatch)
        batches = iter(DataPipeline(source, decoded, on_device))
        while True:
            with self.stopwatch.waiting():
                batch = next(batches, None)
            if batch is None:
                break
            epoch = batch.epoch - earlier
            done = epoch * plan.steps_per_epoch + batch.step
            length = plan.batch_length(batch.step)
            self.watch.beat(f"step {self.total_steps + 1}")
            with self.stopwatch.computing():
                learner.step(batch, done, length, self.wishes.now())
            self.total_steps += 1
            place = Position(number, epoch, batch.step + 1)
            self.taken.append(_Taken(place, self.total_steps, length))
            self.stopwatch.lap(length)
            wish = self._read_results(learner, unread=1)
            self.trace.step()
            at_end = place.step == plan.steps_per_epoch
            every = self.config.runtime.checkpoint_steps
            if at_end or wish.save or wish.stop or (every and self.total_steps % every == 0):
                # Nothing is judged or saved before all that led to it is known to be sound.
                wish |= self._read_results(learner, unread=0)
                with self.stopwatch.paused():
                    if at_end:
                        # While this rank validates, its threads decode the next epoch's first batches.
                        self._end_epoch(learner, Position(number, epoch + 1))
                    else:
                        self._save(learner, place)
            if wish.stop:
                raise Stopped(self.wishes.reason, self.total_steps)
        learner.close()
        self.progress.end_phase()

    def _read_results(self, learner: Learner, unread: int) -> Wish:
        """Logs what steps came to, and says what any rank wished in them."""
        wish = Wish()
        try:
            for result in learner.results(unread):
                self._log_step(self.taken.popleft(), result)
                wish |= result.wish
        except NonFiniteError as error:
            raise TrainingError(f"{error}. Samples: {self.data.dataset.keys(error.ids[:20])}") from error
        return wish

    def _restore(self, learner: Learner, position: Position) -> None:
        checkpoint = self.checkpoint
        if checkpoint is None or checkpoint.state.position != position:
            return
        if position.epoch or position.step:
            load_optimizer(learner.optimizer, checkpoint.optimizer)
            if learner.average is not None and checkpoint.ema is not None:
                learner.average.model.load_state_dict(checkpoint.ema)
            if self.accelerator.scaler is not None and checkpoint.state.scaler:
                self.accelerator.scaler.load_state_dict(checkpoint.state.scaler)
        self.progress.note(
            f"resumed at phase {position.phase + 1}, epoch {position.epoch + 1}, step {position.step} "
            f"from {checkpoint.folder.name}"
        )
        self.checkpoint = None  # its tensors are in use now, and another copy of them is not needed

    def _end_epoch(self, learner: Learner, position: Position) -> None:
        """Validates and saves; `position` is the next epoch's beginning."""
        model, phase = learner.evaluated_model(), self.config.phases[position.phase]
        if phase.norm_chips and position.epoch == phase.epochs:
            decoded = self._decoded(LARGEST_BATCH, self.data.targets_NC)
            ids_N = spread(self.data.split.train_ids, phase.norm_chips)
            with self.accelerator.autocast():
                measure_norms(model, self.preprocess, decoded, ids_N, self.accelerator.device, self.watch)
            learner.share_buffers()
        self.progress.doing(position.epoch - 1, f"validating {len(self.data.split.val_ids):,} chips")
        logits = self._judged(model, turns=1)
        targets_NC = self.data.targets_NC[logits.ids_N]
        speaks_C = weighted_labels(self.config.loss, self.data.labels)
        validation = validate(logits.logits_NC, targets_NC, self.config.evaluate.best_by, speaks_C)
        last = self.config.evaluate.best_by == "last"
        best = self.best is None or last or validation.score > self.best.score
        if best:
            self.best = Best(validation.score, f"step-{self.total_steps:08d}")
        epoch = {"phase": position.phase, "epoch": position.epoch - 1, "step": self.total_steps}
        if self.main:
            self.run.hold()
            vocabulary, keys_of = self.data.dataset.manifest.vocabulary, self.data.dataset.keys
            detail = epoch_detail(logits.logits_NC, targets_NC, logits.ids_N, keys_of, vocabulary, speaks_C)
            self._record({"kind": "epoch", **epoch, **validation.figures, "best": best})
            self._record({"kind": "detail", **epoch, **detail})
            self.progress.epoch(position.epoch - 1, validation.figures, best=best)
        self._save(learner, position)
        if self.main:
            # After the save: a page can cost no step.
            self.run.hold()
            warn_of_failure(
                lambda: write_epoch_report(self.run, self.data.dataset, logits, targets_NC), self.progress.warn
            )

    def _judged(self, model: nn.Module, turns: int) -> Logits:
        """The logits of the validation chips."""
        what = f"validating step {self.total_steps}"
        return self._infer(model, self.loss.independent_logits, self.preprocess, self.data.split.val_ids, turns, what)

    def _infer(
        self,
        model: nn.Module,
        independent: Independent,
        preprocess: Preprocess,
        ids_N: NDArray[np.int64],
        turns: int,
        what: str,
    ) -> Logits:
        with self.accelerator.autocast():
            return evaluate(
                model,
                independent,
                preprocess,
                self.val_decoded,
                ids_N,
                batch_size=self.config.evaluate.batch_size,
                turns=turns,
                accelerator=self.accelerator,
                on_batch=lambda number: self.watch.beat(f"batch {number} of {what}"),
            )

    def _load_best(self) -> Path:
        """Puts the best checkpoint's weights into the model, and says which file they are in."""
        assert self.best is not None, "every phase has an epoch, and every epoch a validation"
        folder = self.run.checkpoints / self.best.checkpoint
        averaged = folder / "ema.safetensors"
        path = averaged if averaged.exists() else folder / "model.safetensors"
        self.model.load_state_dict(load_tensors(path))
        return path

    def _save(self, learner: Learner, position: Position) -> None:
        self.watch.beat(f"the saving of step {self.total_steps}")
        learner.share_buffers()
        if self.main:
            self.run.hold()
            self.tracker.commit()
            scaler = self.accelerator.scaler
            state = State(
                position=position,
                total_steps=self.total_steps,
                metrics_bytes=self.metrics.size(),
                best=self.best,
                scaler=scaler.state_dict() if scaler is not None else None,
                run=run_identity(self.config, self.data, self.accelerator, self.lineage),
                tracker_id=self.tracker.run_id,
                versions={name: version(name) for name in LIBRARIES},
            )
            folder = save_checkpoint(
                self.run.checkpoints,
                state,
                self.model.state_dict(),
                learner.average.model.state_dict() if learner.average else None,
                optimizer_tensors(learner.optimizer),
            )
            if self.best is not None and self.best.checkpoint == folder.name:
                mark_best(self.run.checkpoints, folder.name)
            self.wishes.saved()
            prune(self.run.checkpoints, self.config.runtime.keep_checkpoints, self.best)
        self.watch.beat(f"the end of saving step {self.total_steps}")
        self.accelerator.wait_for_everyone()

    def _log_step(self, taken: _Taken, result: StepResult) -> None:
        if not self.main:
            return
        place, total_steps = taken.place, taken.total_steps
        waited = self.stopwatch.read_lap()
        self.progress.step(place.epoch, place.step, result.loss, taken.images, waited)
        if total_steps % self.config.runtime.log_every_steps == 0:
            self.run.hold()
            where_in_run = {"phase": place.phase, "epoch": place.epoch, "step": total_steps}
            self._record({"kind": "train", **where_in_run, **result.figures()})
            rates = {"kind": "train", **where_in_run, **self.stopwatch.rates(), "time": time.time()}
            self.timing.append(rates)
            self.tracker.time(rates)

    def _record(self, line: dict[str, Any]) -> None:
        self.metrics.append(line)
        self.tracker.record(line)

    def _decoded(
        self, largest_batch: int, targets_NC: NDArray[np.generic], watch: Stopwatch | None = None
    ) -> DecodedBatches:
        return DecodedBatches(
            self.data.dataset,
            targets_NC,
            largest_batch,
            threads=self.threads,
            prefetch_batches=self.config.data.prefetch_batches,
            pinned=self.accelerator.device.type == "cuda",
            caches=self.caches,
            watch=watch,
        )
