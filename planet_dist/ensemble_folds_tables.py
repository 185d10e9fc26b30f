"""What combining recipes over folds ends with on a terminal: each step, and each label."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from planet_dist.ensemble_folds import FoldsEvaluation


def step_table(evaluation: FoldsEvaluation) -> Table:
    """F2 of each step with its interval, and what it gained."""
    nested = evaluation.nested
    chosen = nested.choice
    minutes = (
        "" if evaluation.minutes is None else f"; {evaluation.minutes:.1f} minutes of training, all members added up"
    )
    table = Table(
        title=f"Steps: sample-averaged F2 on {len(evaluation.material.ids_N):,} chips",
        caption=f"each chip combined and decided without its fold, of {len(evaluation.material.folds)}; in the bundle: "
        f"{chosen.combined.combiner.name} and {chosen.evaluation.chosen.rule}{minutes}",
    )
    table.add_column("", overflow="fold")
    for heading in ("F2", "95% interval", "gain", "95% interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in nested.steps:
        gain = (f"{one.gain:+.4f}", f"{one.gain_low:+.4f}, {one.gain_high:+.4f}") if one.before else ("", "")
        style = "bold" if one is nested.headline else None
        table.add_row(one.name, f"{one.f2:.4f}", f"{one.low:.4f}-{one.high:.4f}", *gain, style=style)
    return table


def label_table(evaluation: FoldsEvaluation) -> Table:
    """F2 of each label with its interval."""
    scores = evaluation.label_scores
    table = Table(title="Labels, each chip combined and decided without its fold")
    table.add_column("label", no_wrap=True)
    for heading in ("chips", "precision", "recall", "F2", "95% interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for c, label in enumerate(evaluation.material.labels):
        table.add_row(
            label,
            f"{scores.support_C[c]:,}",
            f"{scores.precision_C[c]:.3f}",
            f"{scores.recall_C[c]:.3f}",
            f"{scores.f2_C[c]:.3f}",
            f"{evaluation.low_C[c]:.3f}-{evaluation.high_C[c]:.3f}",
        )
    return table


def print_folds(evaluation: FoldsEvaluation, console: Console | None = None) -> None:
    """Prints both tables, to standard output unless a console is given."""
    console = console or Console()
    console.print(step_table(evaluation))
    console.print(label_table(evaluation))
