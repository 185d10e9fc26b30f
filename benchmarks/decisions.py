"""Every decision rule: what it costs on 17 labels x 40,000 made rows, and what it's worth on them and on real ones.

    python benchmarks/decisions.py
    python benchmarks/decisions.py --probabilities FILE.csv      LABEL_pred and LABEL_true columns, Planet's labels
    python benchmarks/decisions.py --variants                    each calibration by itself, and lawful sets
    python benchmarks/decisions.py --markdown                    a table to be pasted

Made rows bear label sets as frequent as Planet's real ones, under Planet's label rules, with probabilities that are
calibrated label by label. F2 is sample-averaged and cross-fitted in 5 folds, on the same folds for every rule; beside
it stands how far that is from a flat 0.2, in 1e-4, with a paired bootstrap interval (95%). Times are those of one fit
on all rows, inner cross-validation and all, and of deciding them: medians of repeats, rule after rule in turn.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from printed import Printer

from planet_dist.calibration import METHODS, Calibration, Method, fit_calibration
from planet_dist.crossfit import cross_fitted, fold_numbers
from planet_dist.decision_rules import rules_for
from planet_dist.expected_f2 import Units, most_expected, units_of
from planet_dist.metrics import Bools, Floats, bootstrap_means, interval, probabilities, sample_f2
from planet_dist.predictions import read_predictions
from shards.labels import PLANET
from shards.synth_labels import draw_labels

FOLDS = 5
FREE, RULED = units_of(PLANET.labels), units_of(PLANET.labels, PLANET.exclusive, PLANET.alone)


@dataclass(frozen=True)
class Variant:
    """Expected F2 with a calibration that is given, under either joint, over all sets or lawful ones."""

    name: str
    method: Method
    joint: Units
    sets: Units

    def decision(self, probabilities_NC: Floats, true_NC: Bools, labels: Sequence[str]) -> VariantDecision:
        """Fits the calibration."""
        assert tuple(labels) == PLANET.labels
        return VariantDecision(fit_calibration(self.method, probabilities_NC, true_NC), self.joint, self.sets)


@dataclass(frozen=True)
class VariantDecision:
    """What a variant has fitted."""

    calibration: Calibration
    joint: Units
    sets: Units

    def decide(self, probabilities_NC: Floats) -> Bools:
        """Decisions (N, C)."""
        return most_expected(self.calibration.apply(probabilities_NC), self.joint, self.sets)


def variants() -> list[Variant]:
    """Every calibration under both joints, and lawful sets under both."""
    joints = {"independent": FREE, "label rules": RULED}
    found = [Variant(f"{name}, {method}", method, joint, FREE) for name, joint in joints.items() for method in METHODS]
    return found + [Variant(f"{name}, none, lawful sets", "none", joint, RULED) for name, joint in joints.items()]


def make(rows: int, seed: int) -> tuple[Floats, Bools]:
    """Probabilities (N, 17) and their truth, in Planet's labels."""
    rng = np.random.default_rng(seed)
    sets = [draw_labels(rng) for _ in range(rows)]
    true_NC = np.array([[label in names for label in PLANET.labels] for names in sets])
    frequency_C = true_NC.mean(axis=0).clip(1 / rows, 1 - 1 / rows)
    # a label with normal scores around +1.2 and -1.2, deviation 1, has this logit given its score
    score_NC = rng.normal(np.where(true_NC, 1.2, -1.2), 1.0)
    return probabilities(2.4 * score_NC + np.log(frequency_C / (1 - frequency_C))), true_NC


def read(path: Path) -> tuple[Floats, Bools]:
    """A file's probabilities and truth, columns in the order of Planet's labels, rows in that of their ids."""
    given = read_predictions(path)
    if set(given.labels) != set(PLANET.labels):
        raise SystemExit(f"{path}: its labels are {', '.join(given.labels)}; this measures Planet's")
    columns = [given.labels.index(label) for label in PLANET.labels]
    order_N = np.argsort(given.ids_N)
    return given.probabilities_NC[order_N][:, columns], given.targets_NC[order_N][:, columns]


def seconds(rules: Sequence[Any], rows: tuple[Floats, Bools], repeats: int) -> list[tuple[float, float]]:
    """Median seconds of fitting and of deciding, rule by rule."""
    taken: list[list[tuple[float, float]]] = [[] for _ in rules]
    for _ in range(repeats):
        for rule, times in zip(rules, taken, strict=True):
            start = time.perf_counter()
            decision = rule.decision(*rows, PLANET.labels)
            fitted = time.perf_counter()
            decision.decide(rows[0])
            times.append((fitted - start, time.perf_counter() - fitted))
    return [(float(np.median([a for a, _ in times])), float(np.median([b for _, b in times]))) for times in taken]


def scores(rules: Sequence[Any], rows: tuple[Floats, Bools]) -> list[tuple[str, str]]:
    """Cross-fitted F2 of each rule, and its distance from a flat 0.2 with an interval."""
    fold_of_N = fold_numbers(len(rows[0]), FOLDS, seed=0)
    f2_NR = np.stack(
        [sample_f2(cross_fitted(rule, *rows, fold_of_N, PLANET.labels), rows[1]) for rule in rules], axis=1
    )
    flat = [rule.name for rule in rules].index("flat-0.2")
    means_BR = bootstrap_means(f2_NR, seed=0)
    found = []
    for r in range(len(rules)):
        low, high = interval(means_BR[:, r] - means_BR[:, flat])
        lead = float(f2_NR[:, r].mean() - f2_NR[:, flat].mean())
        found.append((f"{f2_NR[:, r].mean():.4f}", f"{1e4 * lead:+.1f} ({1e4 * low:+.1f} to {1e4 * high:+.1f})"))
    return found


def main() -> None:
    """Measures all rules and prints one table."""
    parser = argparse.ArgumentParser(description="Decision rules: cost and worth")
    parser.add_argument("--rows", type=int, default=40_000, help="of the made probabilities")
    parser.add_argument("--repeats", type=int, default=3, help="of each fit that is timed")
    parser.add_argument("--probabilities", type=Path, metavar="CSV", help="a model's, with their truth")
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    rules: list[Any] = [*rules_for(PLANET), *(variants() if options.variants else [])]
    made = make(options.rows, seed=0)
    columns = ["rule", "fit, s", "decide, s", f"F2, {options.rows:,} made", "from flat 0.2, 1e-4"]
    rows = [
        [rule.name, f"{fit:.3f}", f"{decide:.3f}", *score]
        for rule, (fit, decide), score in zip(
            rules, seconds(rules, made, options.repeats), scores(rules, made), strict=True
        )
    ]
    if options.probabilities:
        real = read(options.probabilities)
        columns += [f"F2, {len(real[0]):,} real", "from flat 0.2, 1e-4"]
        rows = [[*row, *score] for row, score in zip(rows, scores(rules, real), strict=True)]
    software = f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}"
    Printer(options.markdown).table(
        f"Decision rules, 17 labels, cross-fitted in {FOLDS} folds ({software})", columns, rows
    )


if __name__ == "__main__":
    main()
