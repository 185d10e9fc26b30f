"""A bundle's predictions for a folder of images, as a CSV in the competition's form: image_name,tags.

Letters in array names: N chips, B of one batch, C labels, H and W pixels, S the side of the network's input.
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

from planet_dist.augment import Preprocess, views
from planet_dist.bundle import Bundle, load_bundle
from planet_dist.metrics import probabilities
from shards.assemble import rejected_csv
from shards.errors import DecodeError, PlanetError, Problem, RunError
from shards.labels import Vocabulary
from shards.pixels import Pixels, decode
from shards.schema import write_whole
from shards.sources import Record, scan_sources
from shards.workers import available_cores

_BATCH = 64


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
    bundle, weights = load_bundle(bundle_folder)
    model, preprocess = bundle.build(weights, device)
    scan = scan_sources(images, None, Vocabulary(tuple(bundle.labels)), unlabelled=True)
    rejected = list(scan.problems)
    if scan.records and scan.kind != bundle.image.kind:
        raise RunError(
            f"{images}: the images are {scan.kind}, and the model was trained on {bundle.image.kind} "
            f"({bundle.image.pixels}); give a folder of those"
        )
    keys: list[str] = []
    logits: list[NDArray[np.float32]] = []
    for batch in _decoded(scan.records, bundle, rejected):
        inputs_BCHW = _inputs(preprocess, [pixels for _, pixels in batch], device)
        logits.append(_logits(model, inputs_BCHW, bundle.turns)[: len(batch)])
        keys += [key for key, _ in batch]
        progress(len(keys), len(scan.records))
    if not keys:
        raise RunError(f"{images}: no image can be read\n" + "\n".join(f"  {problem}" for problem in rejected[:10]))
    probabilities_NC = probabilities(np.concatenate(logits))
    decided_NC = bundle.thresholds.decide(probabilities_NC)
    tags = [[label for label, yes in zip(bundle.labels, row, strict=True) if yes] for row in decided_NC]
    return Predicted(keys, probabilities_NC, tags, rejected)


def _decoded(records: Sequence[Record], bundle: Bundle, rejected: list[Problem]) -> Iterator[list[tuple[str, Pixels]]]:
    """Batches of names and pixels, decoded one batch ahead; what cannot be read goes to `rejected`."""
    with ThreadPoolExecutor(available_cores()) as pool:

        def submit(start: int) -> list[tuple[Record, Future[Pixels]]]:
            part = records[start : start + _BATCH]
            return [(record, pool.submit(_read, record, bundle)) for record in part]

        ahead = submit(0)
        for start in range(0, len(records), _BATCH):
            current, ahead = ahead, submit(start + _BATCH)
            batch = []
            for record, task in current:
                try:
                    batch.append((record.key, task.result()))
                except DecodeError as error:
                    rejected.append(Problem(error.rule, record.path, 0, error.value, error.remedy))
                except OSError as error:
                    rejected.append(Problem("an image can be read", record.path, 0, str(error), "mend the file"))
            if batch:
                yield batch


def _read(record: Record, bundle: Bundle) -> Pixels:
    pixels = decode(Path(record.path).read_bytes(), bundle.image.kind)
    image = bundle.image
    if pixels.shape[2] != image.bands or pixels.dtype.name != image.dtype:
        raise DecodeError(
            f"{pixels.shape[2]} bands of {pixels.dtype.name}",
            f"the model was trained on {image.bands} bands of {image.dtype}",
            "convert the image, or use a model that was trained on such",
        )
    return pixels


def _inputs(preprocess: Preprocess, chips: list[Pixels], device: torch.device | str) -> torch.Tensor:
    """The network's input, padded to one fixed shape, so that a chip's result doesn't depend on its company."""
    if len({chip.shape for chip in chips}) == 1:
        images_BCHW = preprocess.evaluate(torch.from_numpy(np.stack(chips)).to(device))
    else:
        single = [preprocess.evaluate(torch.from_numpy(chip[None]).to(device)) for chip in chips]
        images_BCHW = torch.cat(single)
    padded_BCHW = images_BCHW.new_zeros((_BATCH, *images_BCHW.shape[1:]))
    padded_BCHW = padded_BCHW.contiguous(memory_format=torch.channels_last)
    padded_BCHW[: len(chips)] = images_BCHW
    return padded_BCHW


@torch.no_grad()
def _logits(model: torch.nn.Module, inputs_BCHW: torch.Tensor, turns: int) -> NDArray[np.float32]:
    per_view = [model(view_BCHW).float() for view_BCHW in views(inputs_BCHW, turns)]
    logits_BC: NDArray[np.float32] = torch.stack(per_view).mean(dim=0).cpu().numpy()
    return logits_BC


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
