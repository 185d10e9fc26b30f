"""A bundle's predictions for folders and datasets of chips, by one process or many, written as one file.

    planet-dist predict RUN/bundle --images test-jpg --images test-jpg-additional --sample sample_submission.csv \
        --out submission.csv
    accelerate launch --config_file launch/multi_gpu.yaml -m planet_dist.cli predict RUN/bundle ...

Rank 0 looks at what was given first, and the others wait for it, so that a mistake is said once; then each computes
its parts, and rank 0 puts them together. The bytes are those of one process.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

from planet_dist.bundle import Bundle, Turns
from planet_dist.launched import check_launch, end_with_launcher, find_launch
from planet_dist.predict_files import (
    Predicted,
    check_names,
    check_out,
    read_sample,
    write_predictions,
    write_rejected,
)
from planet_dist.predict_inputs import Chips, open_chips
from planet_dist.predict_parts import Parts, Progress
from shards.errors import Problem, RunError, TrainingError
from shards.location import redact
from shards.workers import available_cores

_GPU_THREADS = 4  # decode beside each other and feed one GPU; more would only take its memory
_SHOWN = 10


@dataclass(frozen=True)
class Ranks:
    """The processes that predict together.

    Attributes:
        index, count: this one of all.
        device: where it computes.
        threads: that compute in it.
        wait: returns once all have called it.
        close: ends their connection.
    """

    index: int
    count: int
    device: torch.device
    threads: int
    wait: Callable[[], None]
    close: Callable[[], None]


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        predicted: in the file's order.
        rejects: the list of what was rejected, where there is one.
    """

    predicted: Predicted
    rejects: Path | None


def alone(device: str | torch.device | None = None, threads: int = 0) -> Ranks:
    """One process that predicts by itself, on a GPU where there is one unless told otherwise."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Ranks(0, 1, where, threads or _threads(where, 1), lambda: None, lambda: None)


def find_ranks() -> Ranks:
    """The processes of this launch, connected; this process alone where it wasn't started by accelerate.

    Raises:
        ConfigError: what the launch file asks for is not what runs.
    """
    launch = find_launch()
    on_cpu = check_launch(launch)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return alone("cpu" if on_cpu else None)
    from accelerate import PartialState

    end_with_launcher()
    # Ranks wait for the slowest one; when one ends early the launcher ends the others.
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=7))

    def wait() -> None:
        try:
            state.wait_for_everyone()
        except RuntimeError as error:
            raise TrainingError("another process ended early; what it printed says why") from error

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = torch.device(str(state.device))
    index, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Ranks(index, count, device, _threads(device, here), wait, state.destroy_process_group)


def _threads(device: torch.device, processes_here: int) -> int:
    share = max(available_cores() // processes_here, 1)
    return share if device.type == "cpu" else min(share, _GPU_THREADS)


def predict_files(
    bundle_folder: Path,
    images: Sequence[str],
    out: Path,
    *,
    ranks: Ranks,
    sample: Path | None = None,
    turns: Turns | None = None,
    progress: Progress = lambda done, total: None,
) -> Written | None:
    """Predicts all chips of folders and datasets, and writes OUT and a list of what was rejected.

    Whatever stops it, the same command goes on: finished parts are kept beside OUT until OUT is written.

    Args:
        bundle_folder: of a finished run.
        images: folders of images, and folders or URLs of datasets.
        out: FILE.csv or FILE.parquet.
        sample: a sample submission, whose names and order OUT must have.
        turns: views averaged for each chip; None leaves it to the bundle.
        progress: is told how many of this process's chips are done.

    Returns:
        What was written; None on other ranks than the first.

    Raises:
        PlanetError: something given cannot be used, no chip can, or OUT would lack a name or bear an unknown one (then
            it isn't written).
    """
    folder = out.with_name(f".{out.name}.parts")
    if ranks.index == 0:
        check_out(out)
    else:
        ranks.wait()
    bundle = Bundle.load(bundle_folder, device=ranks.device, turns=turns)
    chips = open_chips(images, bundle.description.image, bundle.description.vocabulary)
    names = None if sample is None else read_sample(sample)
    if ranks.index == 0:
        _check_before(chips, images, names, sample, out)
        folder.mkdir(exist_ok=True)
        ranks.wait()
    parts = Parts(folder, bundle, chips.chips)
    parts.compute(ranks.index, ranks.count, ranks.threads, progress)
    ranks.wait()
    if ranks.index:
        return None
    predicted = _together(parts, chips, bundle.labels)
    rejects = write_rejected(out, predicted.rejected)
    if names is not None and sample is not None:
        check_names(predicted.keys, names, sample)
        predicted = predicted.ordered(names)
    if not predicted.keys:
        raise _none_usable(images, predicted.rejected)
    write_predictions(out, predicted)
    shutil.rmtree(folder, ignore_errors=True)
    return Written(predicted, rejects)


def _check_before(
    chips: Chips, images: Sequence[str], names: Sequence[str] | None, sample: Path | None, out: Path
) -> None:
    """What can be said before anything is computed."""
    if not chips.chips:
        raise _none_usable(images, chips.problems)
    if names is not None and sample is not None:
        try:
            check_names([chip.key for chip in chips.chips], names, sample)
        except RunError:
            write_rejected(out, chips.problems)
            raise


def _together(parts: Parts, chips: Chips, labels: tuple[str, ...]) -> Predicted:
    found = [parts.read(start) for start in parts.starts]
    whole = [part for part in found if part is not None]
    if len(whole) < len(found):
        raise RunError(
            f"{parts.folder}: {len(found) - len(whole)} of {len(found)} parts are missing: the images changed while "
            "they were predicted, or the processes don't share this folder; run the same command again"
        )
    places_N = np.concatenate([part.places_N for part in whole])
    return Predicted(
        [chips.chips[place].key for place in places_N.tolist()],
        labels,
        np.concatenate([part.probabilities_NC for part in whole]),
        np.concatenate([part.decisions_NC for part in whole]),
        [*chips.problems, *(problem for part in whole for problem in part.rejected)],
    )


def _none_usable(images: Sequence[str], problems: Sequence[Problem]) -> RunError:
    lines = "".join(f"\n  {one}: {one.rule}; {one.remedy}" for one in problems[:_SHOWN])
    return RunError(f"{', '.join(redact(one, one) for one in images)}: no image can be used{lines}")
