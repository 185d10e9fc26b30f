"""Checkpoints: folders that are complete or absent, and that hold nothing which executes when it is read.

    checkpoints/step-00000204/
        model.safetensors       weights and buffers
        ema.safetensors         their moving average, where the phase keeps one
        optimizer.safetensors   the optimizer's tensors, as INDEX.NAME
        state.json              position, scaler, digests, configuration; written last
    checkpoints/best            a link to one of them

Random numbers need no place in it: every draw is a function of (seed, position).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shards.errors import RunError
from shards.schema import sync_folder

VERSION = 1
_NAME = re.compile(r"step-\d{8}")

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, order=True)
class Position:
    """Where a run stands: `step` steps of `epoch` of `phase` are done. An epoch's end is step 0 of the next."""

    phase: int = 0
    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Best:
    """The best validation so far.

    Attributes:
        score: larger is better.
        checkpoint: the folder's name.
    """

    score: float
    checkpoint: str


@dataclass(frozen=True)
class State:
    """What is not a tensor.

    Attributes:
        total_steps: optimizer steps since the run began.
        metrics_bytes: length of metrics.jsonl at this position; what stands beyond was undone by a restart.
        run: what a checkpoint may only be resumed with: configuration, dataset digest, precision.
        tracker_id: the run's id at the tracker.
        versions: of the libraries that wrote this.
    """

    position: Position
    total_steps: int
    metrics_bytes: int
    best: Best | None
    scaler: dict[str, Any] | None
    run: dict[str, Any]
    tracker_id: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back. `optimizer` is as from optimizer_tensors()."""

    folder: Path
    state: State
    model: Tensors
    ema: Tensors | None
    optimizer: Tensors


def save_checkpoint(
    checkpoints: Path,
    state: State,
    model: Tensors,
    ema: Tensors | None,
    optimizer: Tensors,
) -> Path:
    """Writes a checkpoint aside, flushes it to disk, and renames it into place.

    Raises:
        RunError: the disk is full or cannot be written; what was there before is untouched.
    """
    final = checkpoints / f"step-{state.total_steps:08d}"
    aside = checkpoints / f".{final.name}.tmp"
    try:
        checkpoints.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        _save_tensors(aside / "model.safetensors", model)
        if ema is not None:
            _save_tensors(aside / "ema.safetensors", ema)
        _save_tensors(aside / "optimizer.safetensors", optimizer)
        (aside / "state.json").write_text(json.dumps({"version": VERSION, **asdict(state)}, indent=1))
        for path in aside.iterdir():
            _sync_file(path)
        sync_folder(aside)
        if final.exists():  # of a run that was resumed from before it
            shutil.rmtree(final)
        aside.rename(final)
        sync_folder(checkpoints)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise RunError(
            f"{final}: cannot be written ({error}); free some space and start again with --resume auto: "
            "the checkpoints before it are whole"
        ) from error
    return final


def mark_best(checkpoints: Path, name: str) -> None:
    """Points checkpoints/best at a checkpoint, in one step."""
    link = checkpoints / ".best.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    link.rename(checkpoints / "best")


def prune(checkpoints: Path, keep: int, best: Best | None) -> None:
    """Removes all but the newest `keep` checkpoints and the best one."""
    names = _names(checkpoints)
    for name in names[: max(len(names) - keep, 0)]:
        if best is None or name != best.checkpoint:
            shutil.rmtree(checkpoints / name)


def newest(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint; leftovers of a save that was cut off are not complete."""
    names = _names(checkpoints)
    return checkpoints / names[-1] if names else None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        RunError: it's missing, damaged or of another version.
    """
    try:
        table = json.loads((folder / "state.json").read_text())
        if table.pop("version", None) != VERSION:
            raise RunError(f"{folder}: a checkpoint of another version; this program reads version {VERSION}")
        table["position"] = Position(**table["position"])
        table["best"] = Best(**table["best"]) if table["best"] else None
        ema = folder / "ema.safetensors"
        return Checkpoint(
            folder,
            State(**table),
            load_tensors(folder / "model.safetensors"),
            load_tensors(ema) if ema.exists() else None,
            load_tensors(folder / "optimizer.safetensors"),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(
            f"{folder}: not a whole checkpoint ({error}); remove the folder to resume from the one before it"
        ) from error


def load_tensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        RunError: it's missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path}: cannot be read ({error}); remove its folder to use the checkpoint before it"
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """An optimizer's state as a flat dictionary; its hyper-parameters are the configuration's."""
    return {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Puts the state from optimizer_tensors() into a new optimizer of the same parameters.

    Moments get the memory layout of their weights: fused optimizers walk through both by address, and would pair
    the moments of a file (contiguous) with other weights of a channels_last network.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, Tensors] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        is_moment = value.shape == parameter.shape
        laid_out = torch.empty_like(parameter, dtype=value.dtype).copy_(value) if is_moment else value
        state.setdefault(int(index), {})[name] = laid_out
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _names(checkpoints: Path) -> list[str]:
    if not checkpoints.is_dir():
        return []
    return sorted(path.name for path in checkpoints.iterdir() if _NAME.fullmatch(path.name))


def _save_tensors(path: Path, tensors: Tensors) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
