"""The two tables that evaluation ends with: the rules compared, and each label under the chosen one."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from planet_dist.crossfit import Evaluation
from planet_dist.thresholds import Thresholds


def rule_table(evaluation: Evaluation) -> Table:
    """Each rule's F2 both ways; the chosen rule is marked."""
    table = Table(
        title=f"Decision rules: sample-averaged F2 on {evaluation.rows:,} rows",
        caption="fitted: values taken from the data; cross-fitted: each row decided by a fit without its "
        f"fold, {evaluation.folds} folds; * chosen: the simplest not behind the best by more than noise",
    )
    table.add_column("rule", no_wrap=True)
    for heading in ("fitted", "same rows", "cross-fitted", "95% interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for score in evaluation.rules:
        mark = "*" if score.rule == evaluation.chosen.rule else " "
        table.add_row(
            f"{mark} {score.rule}",
            str(score.fitted),
            f"{score.same_rows_f2:.4f}",
            f"{score.cross_fitted_f2:.4f}",
            f"{score.low:.4f}-{score.high:.4f}",
            style="bold" if mark == "*" else None,
        )
    return table


def label_table(evaluation: Evaluation) -> Table:
    """Each label's cross-fitted scores under the chosen rule, and its threshold where the rule has them."""
    table = Table(
        title=f"Labels under {evaluation.chosen.rule}, cross-fitted",
        caption=f"sample-averaged F2 {evaluation.chosen_score.cross_fitted_f2:.4f}, "
        f"accuracy {evaluation.accuracy:.4f}, cross-entropy {evaluation.loss:.4f}",
    )
    table.add_column("label", no_wrap=True)
    chosen = evaluation.chosen
    values = chosen.values if isinstance(chosen, Thresholds) else None
    for heading in (*(("threshold",) if values else ()), "F2", "precision", "recall", "support"):
        table.add_column(heading, justify="right", no_wrap=True)
    scores = evaluation.label_scores
    for i, label in enumerate(chosen.labels):
        table.add_row(
            label,
            *((f"{values[i]:.3f}",) if values else ()),
            f"{scores.f2_C[i]:.3f}",
            f"{scores.precision_C[i]:.3f}",
            f"{scores.recall_C[i]:.3f}",
            f"{scores.support_C[i]:,}",
        )
    return table


def print_evaluation(evaluation: Evaluation, console: Console | None = None) -> None:
    """Prints both tables, to standard output unless a console is given."""
    console = console or Console()
    console.print(rule_table(evaluation))
    console.print(label_table(evaluation))
