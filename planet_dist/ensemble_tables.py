"""The two tables that combining ends with: members and combinations compared, and each label."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from planet_dist.ensemble_scores import EnsembleEvaluation


def contender_table(evaluation: EnsembleEvaluation) -> Table:
    """Each member's and combination's F2 both ways; the combination that was asked for is marked."""
    table = Table(
        title=f"Members and combinations: sample-averaged F2 on {evaluation.rows:,} rows",
        caption=f"cross-fitted: each row decided by a fit without its fold, {evaluation.folds} folds; * in the bundle",
    )
    table.add_column("", overflow="fold")
    for heading in ("same rows", "cross-fitted", "95% interval", "behind best"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in evaluation.contenders:
        mark = "*" if one.name == evaluation.rule else " "
        number = f"#{evaluation.members.index(one.name) + 1} " if one.name in evaluation.members else ""
        table.add_row(
            f"{mark} {number}{one.name}",
            f"{one.same_rows_f2:.4f}",
            f"{one.cross_fitted_f2:.4f}",
            f"{one.low:.4f}-{one.high:.4f}",
            f"{one.behind_low:.4f}-{one.behind_high:.4f}",
            style="bold" if mark == "*" else None,
        )
    return table


def member_table(evaluation: EnsembleEvaluation) -> Table:
    """Each label's scores under the combination, and each member's own F2 beside them."""
    rare_too = "; r: rare" if evaluation.rule == "any-rare" else ""
    table = Table(
        title=f"Labels under {evaluation.rule}, cross-fitted",
        caption=f"#1, #2 ...: each member's own F2, in the order given; -: not trained on this label{rare_too}",
    )
    table.add_column("label", no_wrap=True)
    numbers = [f"#{i}" for i in range(1, len(evaluation.members) + 1)]
    for heading in ("support", "precision", "recall", "F2", *numbers):
        table.add_column(heading, justify="right")
    scores = evaluation.label_scores
    for c, label in enumerate(evaluation.labels):
        rare = " r" if evaluation.rule == "any-rare" and label in evaluation.rare else ""
        own = ("-" if np.isnan(f2) else f"{f2:.3f}" for f2 in evaluation.member_f2_MC[:, c])
        table.add_row(
            f"{label}{rare}",
            f"{scores.support_C[c]:,}",
            f"{scores.precision_C[c]:.3f}",
            f"{scores.recall_C[c]:.3f}",
            f"{scores.f2_C[c]:.3f}",
            *own,
        )
    return table


def print_ensemble(evaluation: EnsembleEvaluation, console: Console | None = None) -> None:
    """Prints both tables, to standard output unless a console is given."""
    console = console or Console()
    console.print(contender_table(evaluation))
    console.print(member_table(evaluation))
