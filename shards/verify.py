"""Checks every byte of a dataset against its manifest and indexes, and every chip against their claims."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.assemble import images_digest, label_statistics
from shards.errors import DatasetError, Problem
from shards.groups import read_groups
from shards.inspection import ShardFindings, ShardTask, inspect_shard
from shards.moments import counted_pixels, total_moments
from shards.names import printable
from shards.reader import Dataset
from shards.schema import MANIFEST, Manifest
from shards.storage import GROUPS, CacheOptions
from shards.unfinished import REJECTED
from shards.workers import map_in_order, worker_pool

REBUILD = "restore the file from a copy, or build the dataset again"


@dataclass(frozen=True)
class VerifyReport:
    """What a check has found.

    Attributes:
        chips: how many were checked.
        problems: every bad file, shard and sample; none for a sound dataset.
        breaches: how many chips break each rule of the vocabulary.
    """

    chips: int
    problems: list[Problem]
    breaches: Counter[str]


def verify(
    root: str | Path,
    *,
    workers: int = 1,
    strict: bool = False,
    cache: CacheOptions | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> VerifyReport:
    """Checks a dataset: files, digests, tar structure, every image, every label set, all counts.

    Args:
        root: the dataset's folder or URL.
        workers: processes, each of which takes whole shards.
        strict: a label set that breaks a rule of the vocabulary is a problem.
        cache: where the files of a dataset behind a URL are kept.
        progress: called with the chips checked and their number.

    Raises:
        DatasetError: there is no manifest, or it cannot be read.
    """
    dataset = Dataset(root, cache)
    manifest, shown = dataset.manifest, dataset.shown
    problems = [] if dataset.storage.remote else _extra_files(dataset.root, manifest)
    if not dataset.sealed:
        problems.append(_unsealed(shown))
    tasks = [ShardTask(dataset.storage, manifest, number, strict) for number in range(len(manifest.shards))]
    findings: list[ShardFindings] = []
    done = 0
    progress(0, manifest.count)
    with worker_pool(min(workers, max(1, len(tasks)))) as pool:
        for found in map_in_order(pool, inspect_shard, tasks, 2 * workers + 2):
            done += manifest.shards[len(findings)].count
            findings.append(found)
            progress(done, manifest.count)
    problems += [problem for found in findings for problem in found.problems]
    breaches = sum((found.breaches for found in findings), Counter[str]())
    indexes = [found.index for found in findings]
    whole = [index for index in indexes if index is not None]
    if whole and len(whole) == len(indexes):
        index_N = np.concatenate(whole)
        problems += _repeated_names(shown, index_N) + _totals(shown, manifest, index_N, findings)
        problems += _groups(dataset, index_N)
    elif not indexes:
        problems.append(_manifest_problem(shown, "the manifest names no shard"))
    return VerifyReport(done, problems, breaches)


def _extra_files(root: Path, manifest: Manifest) -> list[Problem]:
    known = {f"{shard.name}.{ending}" for shard in manifest.shards for ending in ("tar", "idx")}
    known |= {MANIFEST, REJECTED, GROUPS}
    return [
        Problem(
            "the folder holds what the manifest names and nothing else",
            printable(str(path)),
            0,
            "not in the manifest",
            "move it elsewhere, or delete it",
        )
        for path in sorted(root.iterdir())
        if path.name not in known and (manifest.tars == "packed" or path.suffix in (".tar", ".idx"))
    ]


def _repeated_names(shown: str, index_N: NDArray[np.void]) -> list[Problem]:
    counts = Counter(bytes(key) for key in index_N["key"])
    return [
        Problem(
            "every chip has a name of its own",
            printable(shown),
            0,
            f"{printable(repr(key.decode('utf-8', 'surrogateescape')))} stands {count} times",
            REBUILD,
        )
        for key, count in counts.items()
        if count > 1
    ]


def _totals(
    shown: str, manifest: Manifest, index_N: NDArray[np.void], findings: Sequence[ShardFindings]
) -> list[Problem]:
    labelled, label_counts, cooccurrence = label_statistics(manifest.vocabulary, index_N)
    found = {
        "labelled": labelled,
        "label_counts": label_counts,
        "cooccurrence": cooccurrence,
        "sources.images_sha256": images_digest(index_N),
    }
    claimed = {
        "labelled": manifest.labelled,
        "label_counts": manifest.label_counts,
        "cooccurrence": manifest.cooccurrence,
        "sources.images_sha256": manifest.sources.images_sha256,
    }
    wrong = [name for name in found if found[name] != claimed[name]]
    moments = total_moments((each.moments for each in findings if each.moments), manifest.image.bands)
    if moments.pixels and moments.pixels == manifest.count * counted_pixels(manifest.image.pixels):
        for name, values, claims in (
            ("mean", moments.mean(), manifest.mean),
            ("std", moments.std(), manifest.std),
        ):
            # Floats are added in another order here than in the build's chunks; integers agree in every digit.
            if not all(math.isclose(*pair, rel_tol=1e-7) for pair in zip(values, claims, strict=True)):
                wrong.append(name)
    return [_manifest_problem(shown, f"{name} is not what the chips and their indexes give") for name in wrong]


def _groups(dataset: Dataset, index_N: NDArray[np.void]) -> list[Problem]:
    """What is wrong with the groups beside the dataset, where there are any."""
    try:
        if dataset.storage.groups() is not None:
            read_groups(dataset, [key.decode("utf-8", "replace") for key in index_N["key"].tolist()])
    except DatasetError as error:
        where = f"{dataset.shown.rstrip('/')}/{GROUPS}"
        found, _, remedy = str(error).removeprefix(f"{where}: ").rpartition("; ")
        rule = "the groups of related chips are whole and of this dataset"
        return [Problem(rule, printable(where), 0, printable(found), remedy)]
    return []


def _unsealed(shown: str) -> Problem:
    rule = "a manifest ends in its seal, by which a change of it shows"
    remedy = "build or index the dataset again, where nobody may have changed the manifest in between"
    return Problem(rule, printable(f"{shown}/{MANIFEST}"), 0, "no seal", remedy)


def _manifest_problem(shown: str, value: str) -> Problem:
    rule = "the manifest's figures are those of its chips"
    return Problem(rule, printable(f"{shown}/{MANIFEST}"), 0, value, REBUILD)
