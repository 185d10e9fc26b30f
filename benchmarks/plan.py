"""What the plan costs on one rank of a large cluster, and whether its properties hold there.

    python benchmarks/plan.py

Simulates an epoch of 1e9 samples in 1e5 shards for 1,024 ranks of 128 hosts: the time and memory to make a rank's plan,
the time of its next batch, and, by sampling, every property that the tests prove exhaustively at small sizes.
"""

from __future__ import annotations

import resource
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from planet_dist.plan import Plan

SAMPLES, SHARDS, RANKS, HOSTS, BATCH = 10**9, 10**5, 1024, 128, 32768
RANKS_A_HOST = RANKS // HOSTS


def peak_mebibytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make() -> Plan:
    """The plan that every rank makes."""
    starts = np.linspace(0, SAMPLES, SHARDS + 1).astype(np.int64)
    return Plan(range(SAMPLES), starts, BATCH, seed=0, lanes=RANKS)


def cost(rank: int) -> list[tuple[str, str]]:
    """Time and memory on one rank, from nothing to its thousandth batch."""
    before, started = peak_mebibytes(), time.perf_counter()
    plan = make()
    plan.rank_batch(0, 0, rank, RANKS)
    first = time.perf_counter() - started
    times = []
    for step in range(1, 5001):
        started = time.perf_counter()
        plan.rank_batch(0, step, rank, RANKS)
        times.append(time.perf_counter() - started)
    return [
        ("plan and first batch, s", f"{first:.3f}"),
        ("memory, MiB", f"{peak_mebibytes() - before:.0f}"),
        ("next batch, median us", f"{np.median(times) * 1e6:.0f}"),
        ("next batch, 99.9th percentile us", f"{np.quantile(times, 0.999) * 1e6:.0f}"),
    ]


def properties() -> list[tuple[str, str]]:
    """Properties of the order, on samples of it."""
    plan = make()
    steps = np.random.default_rng(0).integers(0, plan.steps_per_epoch, 8)
    for step in steps:
        whole = plan.batch(0, int(step))
        for ranks in (1, 8, RANKS):
            parts = np.concatenate([plan.rank_batch(0, int(step), rank, ranks) for rank in range(ranks)])
            assert np.array_equal(parts, whole), "the ranks' parts are not the global batch"
    host = range(RANKS_A_HOST)
    window = np.concatenate([plan.rank_batch(0, step, rank, RANKS) for step in range(2000) for rank in host])
    assert len(np.unique(window)) == len(window), "a sample came twice"
    lane = np.concatenate([plan.rank_batch(0, step, 5, RANKS) for step in range(plan.steps_per_epoch)])
    other = np.concatenate([plan.rank_batch(1, step, 5, RANKS) for step in range(plan.steps_per_epoch)])
    assert np.array_equal(np.sort(lane), np.sort(other)), "a lane changes from epoch to epoch"
    assert len(np.unique(lane)) == len(lane), "a rank saw a sample twice in an epoch"
    per_shard = SAMPLES // SHARDS
    at_once = [len(np.unique(lane[start : start + 4096] // per_shard)) for start in range(0, len(lane), 65536)]
    gaps = np.abs(np.diff(np.argsort(lane, kind="stable")))
    return [
        ("global batch equal at 1, 8 and 1,024 ranks", f"yes, {len(steps)} steps"),
        ("samples of a rank's epoch, each once, the same in both epochs", f"{len(lane):,}"),
        ("shards that a rank touches in an epoch, of all", f"{len(np.unique(lane // per_shard))} of {SHARDS:,}"),
        ("shards in 4,096 consecutive samples of a rank, mean", f"{np.mean(at_once):.1f}"),
        ("neighbours in the dataset land apart in a rank's order, median samples", f"{np.median(gaps):,.0f}"),
    ]


def main() -> None:
    """Prints one table."""
    table = Table(title=f"Plan: {SAMPLES:.0e} samples, {SHARDS:.0e} shards, {RANKS:,} ranks, NumPy {np.__version__}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for row in [*cost(rank=517), *properties()]:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
