"""Chips predicted in parts, by one process or many, which a killed prediction doesn't compute again.

    .OUT.parts/DIGEST.npz    one part: its chips' probabilities and decisions, and what could not be read

A part is 128 chips that follow each other. Its file is named after all that its content follows from: the bundle, how
it averages, what computes, and each chip's name and identity. So a changed image or bundle finds no part of an
earlier prediction, and the number of processes means nothing. Each part is computed by one thread, in torch's
arithmetic of one thread: its bytes don't depend on how many work beside it.

Letters in array names: M members, N chips, B of one batch, C labels.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from planet_dist.bundle import Bundle
from planet_dist.metrics import Bools, Floats
from planet_dist.predict_inputs import Chip, Unreadable
from shards.errors import PlanetError, Problem
from shards.schema import write_whole

PART_CHIPS = 128
_FORM = 1  # of a part's file, and of what a chip's answer is computed by

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Part:
    """What came of some chips.

    Attributes:
        places_N: int64, places of the chips among all that are predicted, ascending.
        probabilities_NC: float64.
        decisions_NC: bool.
        rejected: chips that could not be used, which the arrays leave out.
    """

    places_N: NDArray[np.int64]
    probabilities_NC: Floats
    decisions_NC: Bools
    rejected: list[Problem]


class Parts:
    """The parts of a prediction, on disk.

    Args:
        folder: where their files are.
        bundle: opened on a device.
        chips: all that are predicted.
    """

    def __init__(self, folder: Path, bundle: Bundle, chips: Sequence[Chip]) -> None:
        self.folder, self._bundle, self._chips = folder, bundle, chips
        self.starts = range(0, len(chips), PART_CHIPS)
        self._lock = threading.Lock()

    def compute(self, index: int, count: int, threads: int, progress: Progress) -> None:
        """Computes and writes the parts of one of `count` processes that are not there yet.

        Args:
            threads: that compute at the same time.
            progress: is told how many of this process's chips are done.

        Raises:
            PlanetError: a part cannot be written.
        """
        mine = self.starts[index::count]
        total = sum(len(self._chips_of(start)) for start in mine)
        done = 0

        def report(chips: int) -> None:
            nonlocal done
            with self._lock:
                done += chips
                progress(done, total)

        # The count is of the calling thread for OpenMP, and of the process for others.
        torch.set_num_threads(1)
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        try:
            for task in [pool.submit(self._provide, start, report) for start in mine]:
                task.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def read(self, start: int) -> Part | None:
        """A part as it was written, or None where it's missing or damaged."""
        try:
            with np.load(io.BytesIO(self._path(start).read_bytes()), allow_pickle=False) as file:
                rejected = [Problem(**one) for one in json.loads(str(file["rejected"]))]
                return Part(file["places"], file["probabilities"], file["decisions"], rejected)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None

    def _provide(self, start: int, report: Callable[[int], None]) -> None:
        before = self.read(start)
        # What could not be read may have been mended without a new time stamp, by chmod for instance.
        if before is not None and not before.rejected:
            report(len(self._chips_of(start)))
            return
        part = self._predict(start, report)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            places=part.places_N,
            probabilities=part.probabilities_NC,
            decisions=part.decisions_NC,
            rejected=np.array(json.dumps([asdict(one) for one in part.rejected])),
        )
        try:
            write_whole(self._path(start), buffer.getvalue())
        except OSError as error:
            raise PlanetError(f"{self.folder}: a part cannot be written ({error}); give another --out") from error

    def _predict(self, start: int, report: Callable[[int], None]) -> Part:
        chips = self._chips_of(start)
        places: list[int] = []
        rejected: list[Problem] = []
        answers: list[Floats] = []
        for first in range(0, len(chips), self._bundle.batch_size):
            batch = chips[first : first + self._bundle.batch_size]
            read = []
            for place, chip in enumerate(batch, start + first):
                try:
                    read.append((place, chip, chip.pixels()))
                except Unreadable as error:
                    rejected.append(error.problem)
            if read:
                part_MBC = self._bundle.member_probabilities([pixels for _, _, pixels in read])
                finite_B: Bools = np.all(np.isfinite(part_MBC), axis=(0, 2))
                rejected += [_not_finite(chip) for (_, chip, _), fine in zip(read, finite_B, strict=True) if not fine]
                places += [place for (place, _, _), fine in zip(read, finite_B, strict=True) if fine]
                answers.append(part_MBC[:, finite_B])
            report(len(batch))
        labels = len(self._bundle.labels)
        if not places:
            return Part(np.empty(0, np.int64), np.empty((0, labels)), np.empty((0, labels), bool), rejected)
        answered = self._bundle.decide(np.concatenate(answers, axis=1))
        return Part(np.array(places), answered.probabilities_NC, answered.decisions_NC, rejected)

    def _chips_of(self, start: int) -> Sequence[Chip]:
        return self._chips[start : start + PART_CHIPS]

    def _path(self, start: int) -> Path:
        bundle = self._bundle
        stated = [
            [_FORM, bundle.digest, [member.turns for member in bundle.members], bundle.device.type, torch.__version__],
            [start, *([chip.key, chip.identity] for chip in self._chips_of(start))],
        ]
        return self.folder / f"{hashlib.sha256(json.dumps(stated).encode()).hexdigest()[:40]}.npz"


def _not_finite(chip: Chip) -> Problem:
    return Problem(
        "a chip has finite pixels, of the training chips' range, and a network's answer to it is finite",
        chip.where,
        0,
        "the network's answer is not a finite number",
        "look at the image's pixels for NaN and extreme values",
    )
