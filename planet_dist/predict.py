"""A bundle's predictions for a folder of images, as a CSV in the competition's form: image_name,tags.

Letters in array names: M members, N chips, B of one batch, C labels, H and W pixels, S the side of a network's input.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from planet_dist.bundle import Bundle
from planet_dist.metrics import Bools, Floats
from shards.assemble import rejected_csv
from shards.errors import DecodeError, PlanetError, Problem, RunError
from shards.pixels import Pixels, decode
from shards.schema import write_whole
from shards.sources import Record, scan_sources
from shards.workers import available_cores


@dataclass(frozen=True)
class Predicted:
    """What came of a folder.

    Attributes:
        keys: N names, in natural order.
        probabilities_NC: float64.
        tags: N lists of labels that the bundle's rule decides.
        rejected: images that could not be read.
    """

    keys: list[str]
    probabilities_NC: NDArray[np.float64]
    tags: list[list[str]]
    rejected: list[Problem]


def predict_folder(
    bundle_folder: Path,
    images: Path,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Predicted:
    """Predicts every image of a folder.

    Args:
        bundle_folder: of a finished run.
        images: files of the bundle's kind, bands and dtype; any size where the bundle resizes.
        progress: is told how many of how many images are done.

    Raises:
        RunError: the bundle cannot be used, or no image of the folder can.
    """
    bundle = Bundle.load(bundle_folder, device=device)
    form = bundle.description.image
    scan = scan_sources(images, None, bundle.description.vocabulary, unlabelled=True)
    rejected = list(scan.problems)
    if scan.records and scan.kind != form.kind:
        raise RunError(
            f"{images}: the images are {scan.kind}, and the model was trained on {form.kind} "
            f"({form.pixels}); give a folder of those"
        )
    keys: list[str] = []
    parts: list[Floats] = []
    tried = 0
    for batch in _decoded(scan.records, bundle, rejected):
        part_MBC = bundle.member_probabilities([pixels for _, pixels in batch])
        finite_B: Bools = np.all(np.isfinite(part_MBC), axis=(0, 2))
        rejected += [_not_finite(record) for (record, _), finite in zip(batch, finite_B, strict=True) if not finite]
        keys += [record.key for (record, _), finite in zip(batch, finite_B, strict=True) if finite]
        parts.append(part_MBC[:, finite_B])
        tried += len(batch)
        progress(tried, len(scan.records))
    if not keys:
        raise RunError(f"{images}: no image can be used\n" + "\n".join(f"  {_line(one)}" for one in rejected[:10]))
    answers = bundle.decide(np.concatenate(parts, axis=1))
    return Predicted(keys, answers.probabilities_NC, answers.tags, rejected)


def _not_finite(record: Record) -> Problem:
    return Problem(
        "a chip has finite pixels, of the training chips' range, and a network's answer to it is finite",
        record.path,
        0,
        "the network's answer is not a finite number",
        "look at the image's pixels for NaN and extreme values",
    )


def _line(problem: Problem) -> str:
    return f"{problem}: {problem.rule}; {problem.remedy}"


def _decoded(
    records: Sequence[Record], bundle: Bundle, rejected: list[Problem]
) -> Iterator[list[tuple[Record, Pixels]]]:
    """Batches of images and their pixels, decoded one batch ahead; what cannot be read goes to `rejected`."""
    with ThreadPoolExecutor(available_cores()) as pool:

        def submit(start: int) -> list[tuple[Record, Future[Pixels]]]:
            part = records[start : start + bundle.batch_size]
            return [(record, pool.submit(_read, record, bundle)) for record in part]

        ahead = submit(0)
        for start in range(0, len(records), bundle.batch_size):
            current, ahead = ahead, submit(start + bundle.batch_size)
            batch = []
            for record, task in current:
                try:
                    batch.append((record, task.result()))
                except DecodeError as error:
                    rejected.append(Problem(error.rule, record.path, 0, error.value, error.remedy))
                except OSError as error:
                    rejected.append(Problem("an image can be read", record.path, 0, str(error), "mend the file"))
            if batch:
                yield batch


def _read(record: Record, bundle: Bundle) -> Pixels:
    image = bundle.description.image
    pixels = decode(Path(record.path).read_bytes(), image.kind)
    if pixels.shape[2] != image.bands or pixels.dtype.name != image.dtype:
        raise DecodeError(
            f"{pixels.shape[2]} bands of {pixels.dtype.name}",
            f"the model was trained on {image.bands} bands of {image.dtype}",
            "convert the image, or use a model that was trained on such",
        )
    return pixels


def write_predictions_csv(path: Path, predicted: Predicted) -> Path | None:
    """Writes image_name,tags whole or not at all.

    Returns:
        The file that lists what was rejected, FILE.rejected.csv, or None where nothing was.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_name", "tags"])
    writer.writerows((key, " ".join(tags)) for key, tags in zip(predicted.keys, predicted.tags, strict=True))
    rejects = path.with_name(f"{path.stem}.rejected.csv")
    try:
        write_whole(path, text.getvalue().encode())
        rejects.unlink(missing_ok=True)
        if not predicted.rejected:
            return None
        write_whole(rejects, rejected_csv(predicted.rejected))
    except OSError as error:
        raise PlanetError(f"{path}: cannot be written ({error}); give another --out") from error
    return rejects
