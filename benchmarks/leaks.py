"""What relatives in training do to the score of validation chips, from finished runs of several splits.

    planet-shard groups DATASET
    (train RUNs with data.split=kfold:5/0 and data.split=kfold-grouped:5/0, or all folds of both)
    python benchmarks/leaks.py --data DATASET RUN [RUN ...]

The first table has a row for each split, the folds of one taken together: mean F2 at a flat 0.2 of validation chips
that have a relative among the chips that trained, and of others with the same label sets that have none (of which each
set weighs as much as among the first). Their difference is what relatives help, and whatever else sets chips with
relatives apart: an edge that can be told from all others. Where a grouped split has none, the row is of chips whose
relatives were kept out with them, and shows the latter alone.

The second compares chips that validate under both splits, each with itself: where relatives trained under the one and
not under the other. Intervals are 95%, by resampling chips of the runs as they are: that other seeds would give other
runs is not in them.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from printed import wide_console
from rich.table import Table

from planet_dist.config import Config, parse_config
from planet_dist.data import open_data
from planet_dist.metrics import interval, sample_f2
from planet_dist.predictions import read_predictions
from shards.errors import PlanetError, RunError
from shards.groups import read_groups
from shards.reader import Dataset

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

CUT = 0.2
RESAMPLINGS = 1000


@dataclass(frozen=True)
class Judged:
    """Validation chips of all runs of one split.

    Attributes:
        ids_N: int64 (N,), ascending.
        f2_N: at the flat cut (N,).
        leaks_N: whether a relative of the chip trained (N,).
        related_N: whether it has a relative at all (N,).
        runs: how many there are.
    """

    ids_N: Ids
    f2_N: Floats
    leaks_N: NDArray[np.bool_]
    related_N: NDArray[np.bool_]
    runs: int


def main() -> None:
    """Reads the runs and prints both tables."""
    parser = argparse.ArgumentParser(description="What relatives in training do to the score")
    parser.add_argument("--data", required=True, help="the runs' dataset, with groups.json")
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs")
    options = parser.parse_args()
    try:
        show(options.data, options.runs)
    except PlanetError as error:
        parser.exit(1, f"error: {error}\n")


def show(location: str, runs: list[Path]) -> None:
    """Prints both tables of finished runs.

    Raises:
        PlanetError: a run or the dataset cannot be read, or two runs of a split validate the same chips.
    """
    dataset = Dataset(location)
    index_N = dataset.index()
    keys = dataset.keys(range(len(dataset)))
    group_N = read_groups(dataset, keys).groups.numbers(keys)
    by_split: defaultdict[str, list[Path]] = defaultdict(list)
    for run in runs:
        by_split[re.sub(r"(:\d+)/\d+$", r"\1", _split(run))].append(run)
    rng = np.random.default_rng(0)
    judged = {split: judge(location, those, group_N) for split, those in by_split.items()}
    console = wide_console()
    table = Table(
        title=f"{len(dataset):,} chips: flat {CUT} F2 of chips with relatives, and of others of the same labels"
    )
    for heading in ("split", "runs", "chips", "F2, all", "with relatives", "F2", "others", "F2", "difference (95%)"):
        table.add_column(heading, justify="left" if heading == "split" else "right", no_wrap=True)
    for split, chips in judged.items():
        chosen_N = chips.leaks_N if chips.leaks_N.any() else chips.related_N
        table.add_row(*row(split, chips, chosen_N, index_N["labels"][chips.ids_N], rng))
    console.print(table)
    pairs = [(one, other) for one in judged for other in judged if one < other]
    for one, other in pairs:
        console.print(paired(one, other, judged[one], judged[other], rng))


def _split(run: Path) -> str:
    return _config(run).data.split


def _config(run: Path) -> Config:
    path = run / "config.toml"
    try:
        return parse_config(tomllib.loads(path.read_text()), str(path))
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; give the folder of a run") from error


def judge(location: str, runs: list[Path], group_N: Ids) -> Judged:
    """The validation chips of the runs of one split, together.

    Args:
        group_N: the group of every chip of the dataset.
    """
    parts = []
    _, place_N, size_U = np.unique(group_N, return_inverse=True, return_counts=True)
    related_N = size_U[place_N] > 1
    for run in runs:
        train_ids = open_data(_config(run), location).split.train_ids
        found = read_predictions(run / "evaluation" / "predictions.npz")
        ids_N = found.ids_N.astype(np.int64)
        leaks_N = np.isin(group_N[ids_N], group_N[train_ids])
        parts.append((ids_N, sample_f2(found.probabilities_NC > CUT, found.targets_NC), leaks_N))
    ids_N, f2_N, leaks_N = (np.concatenate([part[i] for part in parts]) for i in range(3))
    if len(np.unique(ids_N)) < len(ids_N):
        raise RunError(f"{runs[0]} and others of its split validate the same chips; give each fold once")
    order_N = np.argsort(ids_N)
    ids_N = ids_N[order_N]
    return Judged(ids_N, f2_N[order_N], leaks_N[order_N], related_N[ids_N], len(runs))


def row(
    split: str, chips: Judged, chosen_N: NDArray[np.bool_], bits_N: NDArray[np.uint64], rng: np.random.Generator
) -> list[str]:
    """A split's row: chosen chips against others without relatives in training, each label set weighing the same."""
    others_N = ~chips.related_N
    sets, set_N = np.unique(bits_N, return_inverse=True)

    def means(counts_N: Floats) -> tuple[float, float]:
        chosen_S = np.bincount(set_N, counts_N * chosen_N, len(sets))
        others_S = np.bincount(set_N, counts_N * others_N, len(sets))
        both_S = (chosen_S > 0) & (others_S > 0)
        totals = [np.bincount(set_N, counts_N * part_N * chips.f2_N, len(sets)) for part_N in (chosen_N, others_N)]
        weight_S = chosen_S[both_S] / chosen_S[both_S].sum()
        first, second = (
            total_S[both_S] / part_S[both_S] for total_S, part_S in zip(totals, (chosen_S, others_S), strict=True)
        )
        return float(weight_S @ first), float(weight_S @ second)

    found = means(np.ones(len(bits_N)))
    draws = (means(rng.poisson(1, len(bits_N)).astype(float)) for _ in range(RESAMPLINGS))
    low, high = interval(np.array([first - second for first, second in draws]))
    kept = "" if chips.leaks_N.any() else ", kept out with them"
    return [
        split,
        str(chips.runs),
        f"{len(bits_N):,}",
        f"{chips.f2_N.mean():.4f}",
        f"{chosen_N.sum():,}{kept}",
        f"{found[0]:.4f}",
        f"{others_N.sum():,}",
        f"{found[1]:.4f}",
        f"{found[0] - found[1]:+.4f} ({low:+.4f} to {high:+.4f})",
    ]


def paired(one: str, other: str, first: Judged, second: Judged, rng: np.random.Generator) -> Table:
    """Chips that validate under both splits, each with itself: by where their relatives trained."""
    table = Table(title=f"the same chips under both: F2 under {one} less F2 under {other}")
    for heading in ("a relative trained under", "chips", one, other, "difference (95%)"):
        table.add_column(heading, justify="left" if heading == "a relative trained under" else "right", no_wrap=True)
    _, at_one_N, at_other_N = np.intersect1d(first.ids_N, second.ids_N, return_indices=True)
    leaks_one_N, leaks_other_N = first.leaks_N[at_one_N], second.leaks_N[at_other_N]
    f2_one_N, f2_other_N = first.f2_N[at_one_N], second.f2_N[at_other_N]
    for name, chosen_N in (
        (f"{one} alone", leaks_one_N & ~leaks_other_N),
        (f"{other} alone", leaks_other_N & ~leaks_one_N),
        ("both", leaks_one_N & leaks_other_N),
        ("neither", ~leaks_one_N & ~leaks_other_N),
    ):
        count = int(chosen_N.sum())
        if not count:
            table.add_row(name, "0", "-", "-", "-")
            continue
        difference_N = (f2_one_N - f2_other_N)[chosen_N]
        draws = [difference_N[rng.integers(0, count, count)].mean() for _ in range(RESAMPLINGS)]
        low, high = interval(np.array(draws))
        table.add_row(
            name,
            f"{count:,}",
            f"{f2_one_N[chosen_N].mean():.4f}",
            f"{f2_other_N[chosen_N].mean():.4f}",
            f"{difference_N.mean():+.4f} ({low:+.4f} to {high:+.4f})",
        )
    return table


if __name__ == "__main__":
    main()
