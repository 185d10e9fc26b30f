"""The exact threshold sweep beside two grids, in one run, on made probabilities.

    python benchmarks/thresholds.py [--samples 40000] [--repeats 7]

All three search one threshold a label for the greatest sample-averaged F2, label after label:

    exact              planet_dist.thresholds.fit_exact: every cut, to convergence
    NumPy grid         100 steps a label, one pass from 0.2, all steps of a label scored at once
    scikit-learn grid  100 steps a label, one pass from 0.2, each by fbeta_score(average="samples")

The scikit-learn pass is run once, whole; the other two are repeated in turn, and their medians given.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import sklearn
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.metrics import fbeta_score

from planet_dist.metrics import mean_f2, probabilities
from planet_dist.thresholds import fit_exact

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

STEPS = np.arange(100) / 100
START = 0.2
# of Planet's 40,479 labelled chips, in the vocabulary's order
COUNTS = (12315, 339, 862, 332, 98, 28431, 2089, 100, 4477, 3660, 2697, 7261, 37513, 8071, 340, 209, 7411)


def make(samples: int, seed: int) -> tuple[Floats, Bools]:
    """Calibrated probabilities (N, 17) and their truth, with Planet's label frequencies."""
    rng = np.random.default_rng(seed)
    frequency_C = np.array(COUNTS) / 40_479
    true_NC = rng.random((samples, len(COUNTS))) < frequency_C
    # a label with normal scores around +1.2 and -1.2, deviation 1, has this logit given its score
    score_NC = rng.normal(np.where(true_NC, 1.2, -1.2), 1.0)
    return probabilities(2.4 * score_NC + np.log(frequency_C / (1 - frequency_C))), true_NC


def sklearn_grid(probabilities_NC: Floats, true_NC: Bools) -> Floats:
    """One pass of 100 steps a label, each step scored by scikit-learn."""
    values_C = np.full(true_NC.shape[1], START)
    decided_NC = probabilities_NC > values_C
    for label in range(true_NC.shape[1]):
        scores = []
        for step in STEPS:
            decided_NC[:, label] = probabilities_NC[:, label] > step
            scores.append(fbeta_score(true_NC, decided_NC, beta=2, average="samples", zero_division=0))
        values_C[label] = STEPS[int(np.argmax(scores))]
        decided_NC[:, label] = probabilities_NC[:, label] > values_C[label]
    return values_C


def numpy_grid(probabilities_NC: Floats, true_NC: Bools) -> Floats:
    """One pass of 100 steps a label, all steps of a label at once."""
    values_C = np.full(true_NC.shape[1], START)
    decided_NC = probabilities_NC > values_C
    total_N = true_NC.sum(axis=1)
    hits_N, count_N = (decided_NC & true_NC).sum(axis=1), decided_NC.sum(axis=1)
    for label in range(true_NC.shape[1]):
        hits_N = hits_N - (decided_NC[:, label] & true_NC[:, label])
        count_N = count_N - decided_NC[:, label]
        trial_SN = probabilities_NC[:, label] > STEPS[:, None]
        hits_SN = hits_N + (trial_SN & true_NC[:, label])
        scores_S = (5.0 * hits_SN / np.maximum(4 * total_N + count_N + trial_SN, 1)).mean(axis=1)
        values_C[label] = STEPS[int(scores_S.argmax())]
        decided_NC[:, label] = probabilities_NC[:, label] > values_C[label]
        hits_N = hits_N + (decided_NC[:, label] & true_NC[:, label])
        count_N = count_N + decided_NC[:, label]
    return values_C


def timed(fit: Callable[[Floats, Bools], Floats], given: tuple[Floats, Bools]) -> tuple[float, Floats]:
    """Seconds that a fit took, and its thresholds (C,)."""
    start = time.perf_counter()
    values_C = fit(*given)
    return time.perf_counter() - start, values_C


def main() -> None:
    """Runs all three and prints one table."""
    parser = argparse.ArgumentParser(description="Exact threshold sweep beside grids")
    parser.add_argument("--samples", type=int, default=40_000)
    parser.add_argument("--repeats", type=int, default=7, help="of exact and the NumPy grid, in turn")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    given = make(options.samples, options.seed)
    quick: dict[str, Callable[[Floats, Bools], Floats]] = {"exact": fit_exact, "NumPy grid": numpy_grid}
    runs: dict[str, list[tuple[float, Floats]]] = {name: [] for name in quick}
    for _ in range(options.repeats):
        for name, fit in quick.items():
            runs[name].append(timed(fit, given))
    runs["scikit-learn grid"] = [timed(sklearn_grid, given)]
    exact_seconds = float(np.median([seconds for seconds, _ in runs["exact"]]))

    table = Table(
        title=f"{len(COUNTS)} labels x {options.samples:,} samples",
        caption=f"Python {platform.python_version()}, NumPy {np.__version__}, "
        f"scikit-learn {sklearn.__version__}, {platform.machine()}",
    )
    table.add_column("search", no_wrap=True)
    for heading in ("runs", "median s", "x exact", "F2, own rows"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, results in runs.items():
        seconds = float(np.median([one for one, _ in results]))
        f2 = mean_f2(given[0] > results[-1][1], given[1])
        ratio = seconds / exact_seconds
        table.add_row(name, str(len(results)), f"{seconds:.4f}", f"{ratio:,.1f}", f"{f2:.6f}")
    Console().print(table)


if __name__ == "__main__":
    main()
