"""Two finished runs against each other: where their configurations differ, and whether their results do.

Both are judged on the same chips: those that validate in either. Both runs' rules (of the kind that each run chose) are
fitted anew on those chips without each chip's own fold, so that neither profits from a fit that saw it. Resampling
draws chips, and takes both runs' answers to a drawn chip together: what makes a chip hard for both then cancels.

Suffixes: N chips, C labels, B bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from planet_dist.crossfit import cross_fitted, fold_numbers
from planet_dist.decision_rules import rule_of
from planet_dist.finished import FinishedRun
from planet_dist.metrics import Array, Bools, Floats, bootstrap_means, f2_of_counts, interval, sample_f2
from planet_dist.predictions import Predictions
from planet_dist.runfolder import differences
from planet_dist.runlogs import RunLogs
from shards.errors import RunError

LEAST_CHIPS = 20  # on fewer, an interval would say nothing
_FOLDS = 5
_LABELS_STREAM = 3  # beside the seed; metrics.py and crossfit.py draw from others
_OUTCOMES = 8  # of a chip and a label: truth, first decision, second decision


@dataclass(frozen=True)
class Difference:
    """Two scores, and the second's lead over the first with a paired interval (95%)."""

    first: float
    second: float
    low: float
    high: float

    @property
    def lead(self) -> float:
        """second - first."""
        return self.second - self.first

    @property
    def significant(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """Two runs compared.

    Attributes:
        names: the runs'.
        settings: dotted key, the first's value and the second's, wherever they differ.
        chips: that both were judged on; of_first, of_second: that validate in either.
        rules: that each run chose.
        f2: sample-averaged.
        labels: F2 of each label that some chip bears, by name.
        figures: name, first's and second's figure, of what has no interval.
    """

    names: tuple[str, str]
    settings: tuple[tuple[str, Any, Any], ...]
    chips: int
    of_first: int
    of_second: int
    rules: tuple[str, str]
    f2: Difference
    labels: dict[str, Difference]
    figures: tuple[tuple[str, float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain numbers, lists and strings."""
        labels = {name: {**asdict(one), "significant": one.significant} for name, one in self.labels.items()}
        f2 = {**asdict(self.f2), "significant": self.f2.significant}
        return {**asdict(self), "f2": f2, "labels": labels}


def sample_difference(
    first_NC: Bools, second_NC: Bools, true_NC: Bools, seed: int, resamples: int = 2000
) -> Difference:
    """The lead in sample-averaged F2, over chips drawn with replacement.

    Args:
        first_NC, second_NC: decisions, bool (N, C).
        true_NC: bool (N, C).
        seed: not negative.
    """
    scores_N2 = np.stack([sample_f2(first_NC, true_NC), sample_f2(second_NC, true_NC)], axis=1)
    means_B2 = bootstrap_means(scores_N2, seed, resamples)
    first, second = scores_N2.mean(axis=0).tolist()
    return Difference(first, second, *interval(means_B2[:, 1] - means_B2[:, 0]))


def label_difference(first_N: Bools, second_N: Bools, true_N: Bools, seed: int, resamples: int = 2000) -> Difference:
    """The lead in one label's F2, over chips drawn with replacement.

    A chip's part in it is one of eight outcomes, so that drawing N chips is one multinomial draw of their counts.

    Args:
        first_N, second_N: decisions, bool (N,).
        true_N: bool (N,).
        seed: as sample_difference.
    """
    outcome_N = 4 * true_N.astype(np.int64) + 2 * first_N + second_N
    counts_K = np.bincount(outcome_N, minlength=_OUTCOMES)
    rng = np.random.default_rng([seed, _LABELS_STREAM])
    drawn_BK = rng.multinomial(len(true_N), counts_K / len(true_N), size=resamples)
    leads_B = _second_f2(drawn_BK) - _first_f2(drawn_BK)
    return Difference(float(_first_f2(counts_K)), float(_second_f2(counts_K)), *interval(leads_B))


def _first_f2(counts_BK: Array) -> Floats:
    hits = counts_BK[..., 6] + counts_BK[..., 7]
    return f2_of_counts(hits, counts_BK[..., 4:].sum(axis=-1), hits + counts_BK[..., 2] + counts_BK[..., 3])


def _second_f2(counts_BK: Array) -> Floats:
    hits = counts_BK[..., 5] + counts_BK[..., 7]
    return f2_of_counts(hits, counts_BK[..., 4:].sum(axis=-1), hits + counts_BK[..., 1] + counts_BK[..., 3])


def common_chips(first: Predictions, second: Predictions, names: tuple[str, str]) -> tuple[Predictions, Predictions]:
    """Both runs' answers to the chips that validate in either, in one order.

    Raises:
        RunError: other labels, too few chips in common, or other truths for one of them.
    """
    if first.labels != second.labels:
        raise RunError(f"{names[0]} and {names[1]} know other labels; give runs of one dataset")
    ids, place_first, place_second = np.intersect1d(first.ids_N, second.ids_N, return_indices=True)
    if len(ids) < LEAST_CHIPS:
        raise RunError(
            f"{names[0]} validates on {len(first.ids_N):,} chips and {names[1]} on {len(second.ids_N):,}, {len(ids):,} "
            f"of them in common; {LEAST_CHIPS} are needed. Give runs of one dataset and one data.split"
        )
    found = tuple(
        Predictions(one.labels, ids, one.probabilities_NC[place], one.targets_NC[place])
        for one, place in ((first, place_first), (second, place_second))
    )
    differing = np.flatnonzero((found[0].targets_NC != found[1].targets_NC).any(axis=1))
    if differing.size:
        raise RunError(
            f"{names[0]} and {names[1]} have other labels for {len(differing):,} chip(s), such as id "
            f"{ids[differing[0]]}; give runs of one dataset"
        )
    return found[0], found[1]


def compare(first: FinishedRun, second: FinishedRun, logs: tuple[RunLogs, RunLogs], seed: int = 0) -> Comparison:
    """Compares two finished runs.

    Args:
        logs: of the two.
        seed: of folds and resamples.

    Raises:
        RunError: they cannot be compared; the text says why.
    """
    names = (str(first.folder.root), str(second.folder.root))
    digests = tuple(run.dataset_digest() for run in (first, second))
    if digests[0] != digests[1]:
        raise RunError(
            f"{names[0]} was trained on a dataset with digest {digests[0][:12]}, and {names[1]} on one with "
            f"{digests[1][:12]}; their chips' ids do not mean the same. Give runs of one dataset"
        )
    if any("specialist_of" in run.scores for run in (first, second)):
        raise RunError("a specialist answers for few labels, and its F2 compares with nobody's; give other runs")
    ours, theirs = common_chips(first.predictions, second.predictions, names)
    fitted = (first.thresholds, second.thresholds)
    fold_of_N = fold_numbers(len(ours.ids_N), _FOLDS, seed)
    decided = [
        cross_fitted(rule_of(decision), one.probabilities_NC, one.targets_NC, fold_of_N, one.labels)
        for decision, one in zip(fitted, (ours, theirs), strict=True)
    ]
    true_NC = ours.targets_NC
    labels = {
        label: label_difference(decided[0][:, c], decided[1][:, c], true_NC[:, c], seed)
        for c, label in enumerate(ours.labels)
        if true_NC[:, c].any()
    }
    configs = [run.config.model_dump(mode="json", exclude={"description"}) for run in (first, second)]
    return Comparison(
        names,
        tuple(differences(configs[0], configs[1])),
        len(ours.ids_N),
        len(first.predictions.ids_N),
        len(second.predictions.ids_N),
        (fitted[0].rule, fitted[1].rule),
        sample_difference(decided[0], decided[1], true_NC, seed),
        labels,
        _figures(first, second, logs),
    )


def _figures(
    first: FinishedRun, second: FinishedRun, logs: tuple[RunLogs, RunLogs]
) -> tuple[tuple[str, float, float], ...]:
    runs = (first, second)
    seconds = [sum(record.get("seconds", 0.0) for record in log.timings) for log in logs]
    rows: list[tuple[str, Sequence[float | None]]] = [
        ("F2 on its own validation chips, cross-fitted", [run.scores["f2"] for run in runs]),
        ("accuracy", [run.scores["accuracy"] for run in runs]),
        ("loss", [run.scores["loss"] for run in runs]),
        ("epochs", [float(len(log.epochs)) for log in logs]),
        ("images a second, median", [log.images_per_second() for log in logs]),
        ("minutes in logged steps", [second / 60 for second in seconds]),
    ]
    return tuple((name, a, b) for name, (a, b) in rows if a is not None and b is not None)


def print_comparison(found: Comparison, console: Console | None = None) -> None:
    """Prints settings, figures and labels, to standard output unless a console is given."""
    console = console or Console()
    console.print(Text(f"A  {found.names[0]}\nB  {found.names[1]}\n"))
    settings = _table("Configuration", ("key", "A", "B"))
    for key, first, second in found.settings:
        settings.add_row(Text(key), Text(_shown(first)), Text(_shown(second)))
    console.print(settings if found.settings else "Configuration: the same")
    console.print()
    figures = _table("Results", ("figure", "A", "B"))
    for name, *pair in found.figures:
        figures.add_row(name, *(f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}" for value in pair))
    console.print(figures)
    console.print()
    labels = _table("F2 of each label (* the interval leaves 0 out)", ("label", "A", "B", "B - A", "95% interval", ""))
    for label, one in sorted(found.labels.items(), key=lambda pair: -abs(pair[1].lead)):
        labels.add_row(Text(label), *_cells(one), style="bold" if one.significant else None)
    console.print(labels)
    console.print()
    console.print(Text(verdict(found)))


def verdict(found: Comparison) -> str:
    """The comparison in a sentence or two."""
    one = found.f2
    whole = found.chips == found.of_first == found.of_second
    chips = f"{found.chips:,} validation chips"
    if not whole:
        chips = f"the {found.chips:,} validation chips that both have (of {found.of_first:,} and {found.of_second:,})"
    by_chance = 0.05 * len(found.labels)
    said = "more than noise" if one.significant else "may be noise"
    return (
        f"On {chips}, sample-averaged F2, cross-fitted, is {one.first:.4f} for A ({found.rules[0]}) and "
        f"{one.second:.4f} for B ({found.rules[1]}): B - A = {one.lead:+.4f} (95%: {one.low:+.4f} to "
        f"{one.high:+.4f}), {said}.\n"
        f"Of {len(found.labels)} labels, about {by_chance:.0f} would be marked by chance alone. The intervals hold the "
        "trained weights fixed: another seed moves F2 too."
    )


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place == 0 else "right", overflow="fold")
    return table


def _cells(one: Difference) -> list[str]:
    mark = "*" if one.significant else ""
    numbers = [f"{one.first:.3f}", f"{one.second:.3f}", f"{one.lead:+.3f}"]
    return [*numbers, f"{one.low:+.3f} to {one.high:+.3f}", mark]


def _shown(value: Any) -> str:
    return "(none)" if value is None else str(value)
