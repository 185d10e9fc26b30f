"""RUN/report.html: a run on one page that needs nothing else, written anew after every epoch and at the end.

    planet-dist report RUN --data DATASET     writes a finished run's page again

The page is a view of what the run keeps elsewhere. So a page that cannot be written (a full disk, a chip that cannot be
read) costs a warning and not the training: the page before it stays as it is.

Suffixes: N chips, C labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from planet_dist import report_parts
from planet_dist.chip_choice import worst_mistakes
from planet_dist.combination import others_right
from planet_dist.crossfit import evaluate_rules
from planet_dist.display import displayed, webp_bytes
from planet_dist.evaluate import Logits
from planet_dist.finished import dataset_of, open_run
from planet_dist.judge import own_scores, weighted_labels
from planet_dist.metrics import Bools, probabilities, sample_f2
from planet_dist.page import document
from planet_dist.report_parts import Chip
from planet_dist.runfolder import RunFolder
from planet_dist.runlogs import Record, RunLogs, read_logs
from planet_dist.thresholds import RULES
from shards.errors import PlanetError
from shards.reader import Dataset
from shards.schema import write_whole

MOST_BYTES = 8 * 2**20  # of a page; figures that would take it beyond are left out, by name
_WORST, _THUMBNAIL_PIXELS, _THUMBNAIL_QUALITY = 12, 224, 78
# These cost little; the others are compared at the end, when nobody waits.
EPOCH_RULES = tuple(rule for rule in RULES if rule.name in ("flat-0.5", "flat-0.2", "best-single"))


@dataclass(frozen=True)
class Decided:
    """Validation chips with what was decided of them.

    Attributes:
        ids_N: int64 (N,).
        decided_NC, true_NC: bool (N, C).
    """

    ids_N: NDArray[np.int64]
    decided_NC: Bools
    true_NC: Bools


def write_epoch_report(run: RunFolder, dataset: Dataset, logits: Logits, targets_NC: NDArray[np.uint8]) -> None:
    """The page after an epoch, with that epoch's labels, rules and mistakes.

    Args:
        dataset: of the run.
        logits: of the validation chips.
        targets_NC: their truth, 0 and 1 (N, C).

    Raises:
        PlanetError, OSError: it cannot be written; the page before it stays.
    """
    logs = read_logs(run.root)
    labels = dataset.manifest.labels
    speaks_C = weighted_labels(logs.config.loss, labels)
    p_NC = others_right(probabilities(logits.logits_NC), targets_NC.astype(bool), speaks_C)
    found = evaluate_rules(p_NC, targets_NC, labels, ids_N=logits.ids_N, seed=logs.config.seed, rules=EPOCH_RULES)
    decided = Decided(logits.ids_N, found.chosen.decide(p_NC), targets_NC.astype(bool))
    _write(run, logs, dataset, own_scores(found, speaks_C), decided)


def write_final_report(run: RunFolder, dataset: Dataset) -> Path:
    """The page of a finished run, with the papers' figures unless runtime.figures is off.

    Args:
        dataset: that it was trained on.

    Returns:
        The page.

    Raises:
        PlanetError, OSError: the run isn't finished, or the page cannot be written; the page before it stays.
    """
    finished = open_run(run.root)
    dataset_of(finished, dataset)
    found = finished.predictions
    speaks_C = weighted_labels(finished.config.loss, dataset.manifest.labels)
    p_NC = others_right(found.probabilities_NC, found.targets_NC, speaks_C)
    decided = Decided(found.ids_N.astype(np.int64), finished.thresholds.decide(p_NC), found.targets_NC)
    if finished.config.runtime.figures:
        from planet_dist.report_figures import papers_figures  # no step of training waits for matplotlib to load

        papers = papers_figures(finished, dataset, MOST_BYTES)
    else:
        papers = [], {"all": "runtime.figures is off; planet-dist figures draws them"}
    _write(run, read_logs(run.root), dataset, finished.scores, decided, papers)
    return run.report


def warn_of_failure(write: Callable[[], object], warn: Callable[[str], None]) -> None:
    """Writes a page, or says why not and goes on.

    Args:
        write: the page.
        warn: shows a line.
    """
    try:
        write()
    except Exception as error:  # whatever it is, a view of a run is not worth the run
        kind = "" if isinstance(error, PlanetError | OSError) else f"{type(error).__name__}: "
        warn(f"report.html is not written anew, training goes on: {kind}{error}")


def _write(
    run: RunFolder,
    logs: RunLogs,
    dataset: Dataset,
    scores: Record,
    decided: Decided,
    papers: tuple[list[tuple[str, bytes]], dict[str, str]] | None = None,
) -> None:
    """Writes the page; `papers` are report_figures.papers_figures() of a finished run."""
    speaks = scores.get("specialist_of")
    note = (
        f"A specialist of {', '.join(speaks)}: the figures take all other labels as answered rightly." if speaks else ""
    )
    manifest = dataset.manifest
    training = manifest.labelled if not logs.config.data.limit else min(logs.config.data.limit, manifest.labelled)
    validating = len(decided.ids_N)
    data_rows = [
        ("dataset's digest", dataset.digest),
        ("chips", f"{manifest.count:,} of {manifest.image.height}x{manifest.image.width}, {manifest.image.kind}"),
        ("split", logs.config.data.split),
    ]
    bodies = {
        "curves": ("Curves", report_parts.curves(logs)),
        "labels": ("Labels", report_parts.labels(scores)),
        "rules": ("Decision rules", report_parts.rules(scores)),
        "mistakes": ("Mistakes", report_parts.gallery(_worst(dataset, decided))),
        "figures": ("Figures", report_parts.pictures(*papers) if papers else ""),
        "time": ("Where the time went", report_parts.speed(logs)),
        "configuration": ("Configuration", report_parts.configuration(logs)),
        "environment": ("Environment", report_parts.environment(logs, data_rows)),
    }
    filled = {name: (title, body) for name, (title, body) in bodies.items() if body}
    body = [
        report_parts.heading(logs, finished=papers is not None),
        report_parts.contents({name: title for name, (title, _) in filled.items()}),
        report_parts.summary(logs, scores, (training - validating, validating)),
        report_parts.paragraph(note, "note") if note else "",
        *(report_parts.part(name, title, inside) for name, (title, inside) in filled.items()),
    ]
    write_whole(run.report, document(logs.name, "\n".join(body)).encode())


def _worst(dataset: Dataset, decided: Decided) -> list[Chip]:
    places = worst_mistakes(decided.decided_NC, decided.true_NC, _WORST)
    f2_N = sample_f2(decided.decided_NC[places], decided.true_NC[places])
    labels = np.array(dataset.manifest.labels)
    chips = []
    for place, f2 in zip(places.tolist(), f2_N.tolist(), strict=True):
        chip_id = int(decided.ids_N[place])
        shown = Image.fromarray(displayed(dataset.pixels(chip_id), dataset.manifest.image))
        side = (_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS)
        true_C, said_C = decided.true_NC[place], decided.decided_NC[place]
        chips.append(
            Chip(
                dataset.keys([chip_id])[0],
                webp_bytes(shown.resize(side, Image.Resampling.LANCZOS), _THUMBNAIL_QUALITY),
                labels[true_C & said_C].tolist(),
                labels[true_C & ~said_C].tolist(),
                labels[said_C & ~true_C].tolist(),
                f2,
            )
        )
    return chips
