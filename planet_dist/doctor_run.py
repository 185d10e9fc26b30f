"""What a run would come to on this machine: its speed, what holds it up, its memory, its room and its length."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import psutil
import torch
from accelerate import Accelerator

from planet_dist import doctor_machine
from planet_dist.assembly import Parts, assemble
from planet_dist.config import Config, DataConfig
from planet_dist.data import Data
from planet_dist.device_cache import MOST_OF_FREE
from planet_dist.doctor_findings import Finding, Report
from planet_dist.doctor_machine import gibibytes
from planet_dist.doctor_speed import PhaseSpeed, evaluate_speed, loader_speed, phase_speed, run_seconds
from planet_dist.lineage import open_lineage
from planet_dist.models import count_parameters
from planet_dist.stream import PlannedSteps, Step, decode_threads
from shards.pixels import PixelFormat
from shards.reader import Dataset

_LOADER_BATCH = 128  # where no recipe says
_WITHOUT_END = 10**9  # steps, for a measurement that stops by the clock


def loader_alone(dataset: Dataset, accelerator: Accelerator) -> Report:
    """What the loader gives where no recipe says what for; collective."""
    order = np.random.default_rng(accelerator.process_index)
    steps = (Step(0, number, order.integers(0, len(dataset), _LOADER_BATCH)) for number in range(_WITHOUT_END))
    targets_NC = dataset.manifest.vocabulary.matrix(dataset.index()["labels"])
    rate = loader_speed(dataset, targets_NC, steps, _LOADER_BATCH, DataConfig(), accelerator)
    text = "none was given, so that neither the network nor the run's room, memory and length were looked at"
    findings = [_loader(rate, DataConfig(), accelerator), Finding("ok", "recipe", text)]
    return Report(findings, {"loader_images_per_second": rate})


def _loader(rate: float, config: DataConfig, accelerator: Accelerator) -> Finding:
    threads = decode_threads(config.threads, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return Finding(
        "ok",
        "loader",
        f"{rate:,.0f} images/s while nothing computes: {accelerator.num_processes} process(es) with {threads} "
        "decoding thread(s) each",
    )


def whole_run(config: Config, data: Data, out: Path, accelerator: Accelerator) -> Report:
    """Speed, memory, room and length of a run, by some of its own steps; collective.

    Args:
        out: where it would be.

    Raises:
        ConfigError: the recipe fits neither the chips nor the ranks.
        RunError: a run that it would come from cannot be had (planet_dist.lineage).
        TrainingError: a loss or gradient that is not finite.
    """
    findings = [_recipe(config, data)]
    parts = assemble(config, data, accelerator.device, open_lineage(config, data, accelerator.device).weights)
    findings += _room(config, data.dataset, out, parts)
    plan = data.plan(config, config.phases[0])
    ranks = accelerator.num_processes
    source = PlannedSteps(plan, range(_WITHOUT_END), 0, rank=accelerator.process_index, num_ranks=ranks)
    loader = loader_speed(
        data.dataset, data.targets_NC, source(), plan.largest_rank_batch(ranks), config.data, accelerator
    )
    findings.append(_loader(loader, config.data, accelerator))
    speeds = [phase_speed(config, number, data, parts, accelerator) for number in range(len(config.phases))]
    validation = evaluate_speed(config, data, parts, speeds[-1], accelerator)
    findings += [_model(config, number, speed) for number, speed in enumerate(speeds)]
    longest = max(
        range(len(speeds)), key=lambda number: config.phases[number].epochs / speeds[number].images_per_second
    )
    findings.append(_bottleneck(loader, speeds[longest], accelerator))
    findings.append(_memory(max(speed.peak_bytes for speed in speeds), speeds, accelerator))
    seconds = run_seconds(config, data, [speed.images_per_second for speed in speeds], validation)
    findings.append(_length(config, data, speeds, seconds))
    figures = {
        "loader_images_per_second": loader,
        "model_images_per_second": speeds[longest].model_images_per_second,
        "images_per_second": speeds[longest].images_per_second,
        "wait_share": speeds[longest].wait_share,
        "validation_images_per_second": validation,
        "peak_memory_bytes": max(speed.peak_bytes for speed in speeds),
        "run_seconds": seconds,
    }
    return Report(findings, figures)


def _room(config: Config, dataset: Dataset, out: Path, parts: Parts) -> list[Finding]:
    weights = 4 * sum(count_parameters(parts.model))
    copies = max(1 + bool(phase.ema_decay) + (1 if phase.optimizer == "sgd" else 2) for phase in config.phases)
    findings = [doctor_machine.run_disk(config, out, copies * weights)]
    if dataset.storage.remote:
        size = sum(shard.bytes for shard in dataset.manifest.shards)
        limit = round(config.runtime.cache_gib * 2**30)
        folder = Path(config.runtime.cache_dir)
        remedy = "set runtime.cache_dir to a larger disk of the host, or lower runtime.cache_gib"
        findings.append(
            doctor_machine.disk(folder, min(size, limit), "fetched shards", "shards of the dataset", remedy)
        )
    if config.data.cache != "none":
        findings.append(chip_cache(config, len(dataset), dataset.manifest.image.pixels))
    return findings


def chip_cache(config: Config, chips: int, form: PixelFormat) -> Finding:
    """Whether the decoded chips have room where data.cache keeps them ("host" or "device").

    Args:
        chips: of the dataset.
        form: of each.
    """
    size = chips * form.height * form.width * form.bands * np.dtype(form.dtype).itemsize
    if config.data.cache == "host":
        folder, limit = Path(config.runtime.cache_dir), config.runtime.cache_gib * 2**30
        remedy = "set runtime.cache_dir to a folder with room, or data.cache=none"
        if size > limit:
            text = f"decoded chips take {gibibytes(size)}, and runtime.cache_gib allows {gibibytes(limit)}"
            return Finding("error", "chip cache", text, "raise runtime.cache_gib, or set data.cache=none")
        return doctor_machine.disk(folder, size, "chip cache", "decoded chips", remedy)
    on_gpu = torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if on_gpu else doctor_machine.memory_left_bytes()
    text = (
        f"decoded chips take {gibibytes(size)} of the {gibibytes(free)} free on each {'GPU' if on_gpu else 'process'}"
    )
    if size > MOST_OF_FREE * free:
        return Finding("error", "chip cache", f"{text}: more than half", "set data.cache=host, or none")
    return Finding("ok", "chip cache", text)


def _model(config: Config, number: int, speed: PhaseSpeed) -> Finding:
    phase = config.phases[number]
    which = f"phase {number + 1}, " if len(config.phases) > 1 else ""
    size = (
        f"batches of {phase.batch_size}"
        if speed.whole
        else f"extrapolated from {speed.rank_chips} chips a process, for a whole batch of {phase.batch_size} takes long"
    )
    return Finding(
        "ok",
        "model",
        f"{which}{phase.trains} of {config.model.name}: {speed.model_images_per_second:,.0f} images/s on a batch in "
        f"memory, {speed.images_per_second:,.0f} with the stream, waiting {speed.wait_share:.0%} for data; {size}",
    )


def _bottleneck(loader: float, speed: PhaseSpeed, accelerator: Accelerator) -> Finding:
    ratio = loader / speed.model_images_per_second
    if ratio < 1:
        text = f"the loader: it gives {ratio:.2f} of the images that the network could take"
        remedy = "more cores (--cpus-per-node), data.threads, or fewer processes on a host"
        return Finding("warning", "bottleneck", text, remedy)
    shared = " (both share the same cores)" if accelerator.device.type == "cpu" else ""
    return Finding("ok", "bottleneck", f"computing: the loader by itself is {ratio:.1f} times as fast{shared}")


def _memory(peak_bytes: int, speeds: Sequence[PhaseSpeed], accelerator: Accelerator) -> Finding:
    how = "measured" if all(speed.whole for speed in speeds) else "extrapolated"
    remedy = "lower batch_size, raise accumulate, or use fewer processes on a host"
    if accelerator.device.type == "cuda":
        limit = torch.cuda.get_device_properties(accelerator.device).total_memory
        need, text = peak_bytes, f"{gibibytes(peak_bytes)} of the GPU's {gibibytes(limit)} ({how})"
    else:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        need, limit = (
            local * peak_bytes,
            doctor_machine.memory_left_bytes() + local * psutil.Process().memory_info().rss,
        )
        text = (
            f"{gibibytes(peak_bytes)} a process ({how}), {local} process(es) on this host; {gibibytes(limit)} for them"
        )
    if need > limit:
        return Finding("error", "memory", text, remedy)
    return Finding("warning" if need > 0.9 * limit else "ok", "memory", text, remedy if need > 0.9 * limit else "")


def _recipe(config: Config, data: Data) -> Finding:
    train, validate = len(data.split.train_ids), len(data.split.val_ids)
    return Finding("ok", "recipe", f"{config.description}: {train:,} chips train, {validate:,} validate")


def _length(config: Config, data: Data, speeds: Sequence[PhaseSpeed], seconds: float) -> Finding:
    epochs = sum(phase.epochs for phase in config.phases)
    steps = sum(phase.epochs * data.plan(config, phase).steps_per_epoch for phase in config.phases)
    about = "" if all(speed.whole for speed in speeds) else ", roughly, for smaller batches were measured"
    return Finding(
        "ok",
        "length",
        f"{timedelta(seconds=round(seconds))} h for {epochs} epoch(s), {steps:,} steps, validation included, "
        f"starting and saving not{about}",
    )
