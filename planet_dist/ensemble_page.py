"""The page of an ensemble of recipes over folds: what each step gained, and what it is made of.

All text is escaped in report_parts, charts or page.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from planet_dist import report_parts
from planet_dist.charts import Interval, intervals
from planet_dist.ensemble_folds import FoldsEvaluation, flat_score, total_minutes
from planet_dist.page import Grid, document, table
from planet_dist.runfolder import RunFolder
from planet_dist.stack_nested import Step
from shards.errors import RunError
from shards.schema import write_whole


def write_page(evaluation: FoldsEvaluation, out: Path) -> Path:
    """Writes OUT/report.html.

    Raises:
        RunError: it cannot be written.
    """
    path = RunFolder(out).report
    try:
        write_whole(path, page(evaluation, out.resolve().name).encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error}); free some space or give another --out") from error
    return path


def page(evaluation: FoldsEvaluation, name: str) -> str:
    """The page as HTML.

    Args:
        name: of the ensemble.
    """
    bodies = {
        "steps": ("What each step gained", steps(evaluation)),
        "combining": ("Ways to combine", combining(evaluation)),
        "decisions": ("Decision rules", decisions(evaluation)),
        "recipes": ("Recipes", recipes(evaluation)),
        "labels": ("Labels", labels(evaluation)),
        "folds": ("Folds", folds(evaluation)),
        "members": ("Members", members(evaluation)),
    }
    body = [
        heading(evaluation, name),
        report_parts.contents({key: title for key, (title, _) in bodies.items()}),
        summary(evaluation),
        *(report_parts.part(key, title, inside) for key, (title, inside) in bodies.items()),
    ]
    return document(name, "\n".join(body))


def heading(evaluation: FoldsEvaluation, name: str) -> str:
    """Its name, and what it is made of."""
    material = evaluation.material
    many = len(material.recipes)
    line = (
        f"{many} recipe{'s' if many > 1 else ''} on {len(material.folds)} folds: {len(evaluation.members)} networks as "
        f"one model. Written {report_parts.moment(time.time())}."
    )
    return report_parts.title(name, line)


def summary(evaluation: FoldsEvaluation) -> str:
    """The ensemble in six figures."""
    nested, choice = evaluation.nested, evaluation.nested.choice
    last, first = nested.headline, nested.steps[0]
    minutes = evaluation.minutes
    rows = [
        ("F2, nested", f"{last.f2:.4f}", f"95%: {last.low:.4f} to {last.high:.4f}"),
        ("Gain", f"{last.f2 - first.f2:+.4f}", f"over {first.name}"),
        ("Combination", choice.combined.combiner.name, "chosen on all folds"),
        ("Decision rule", choice.evaluation.chosen.rule, "chosen on all folds"),
        ("Chips", f"{len(evaluation.material.ids_N):,}", "each answered by networks that never saw it"),
    ]
    if minutes is not None:
        rows.append(
            ("Training", report_parts.clock(60 * minutes), "of all members, added up; side by side they took less")
        )
    return report_parts.facts(rows)


def steps(evaluation: FoldsEvaluation) -> str:
    """From the best recipe alone to what the bundle does."""
    nested = evaluation.nested
    shown = [Interval(one.name, one.low, one.f2, one.high, one is nested.headline) for one in nested.steps]
    rows = [
        [one.name, f"{one.f2:.4f}", f"{one.low:.4f} to {one.high:.4f}", one.before or "-", *_gain(one)]
        for one in nested.steps
    ]
    words = (
        "Sample-averaged F2. Each chip is answered by networks that were not trained on it; and the recipe, the way to "
        "combine, its penalties and the decision rule are fitted and chosen without the chip's fold. The last step's "
        "F2 is what to expect of the bundle. On new chips each recipe answers by the mean of its networks "
        "rather than by one of them, which these figures do not have. A gain whose interval holds 0 may be noise."
    )
    grid = table(
        Grid(["step", "F2", "95% interval", "against", "gain", "95% interval"], rows, prose=[3], chosen=len(rows) - 1)
    )
    chart = intervals("F2 with 95% intervals", shown)
    return f'{report_parts.paragraph(words)}<div class="charts one">{chart}</div><div class="panel">{grid}</div>'


def _gain(step: Step) -> tuple[str, str]:
    return (f"{step.gain:+.4f}", f"{step.gain_low:+.4f} to {step.gain_high:+.4f}") if step.before else ("-", "-")


def combining(evaluation: FoldsEvaluation) -> str:
    """The ways to combine, compared on all folds."""
    choice = evaluation.nested.choice
    words = (
        "Each by one threshold for all labels, combination and threshold fitted without the chip's fold; penalties are "
        "chosen label by label on the folds that remain. Same chips: fitted and scored on all of them. Chosen is the "
        "simplest whose squared error, without the chip's fold, is not behind the least by two standard errors: that "
        "tells ways to combine apart more surely than F2 does."
    )
    penalties = sorted({penalty for penalty in choice.combined.penalties if penalty is not None}, reverse=True)
    used = f"Penalties chosen: {', '.join(f'{one:g}' for one in penalties)}." if penalties else ""
    scores = [asdict(score) for score in choice.scores]
    shown = report_parts.compared("combined by", scores, choice.combined.combiner.name, words)
    return shown + (report_parts.paragraph(used, "soft") if used else "")


def decisions(evaluation: FoldsEvaluation) -> str:
    """The decision rules, compared on the chosen combination."""
    found = evaluation.nested.choice.evaluation
    words = (
        "On what the chosen combination makes of each chip without its fold. Same chips: rule fitted and scored on all "
        "of them. Cross-fitted: each chip decided by a rule fitted on others. Chosen is the simplest rule whose "
        "distance from the best may be noise."
    )
    return report_parts.compared("rule", [asdict(score) for score in found.rules], found.chosen.rule, words)


def recipes(evaluation: FoldsEvaluation) -> str:
    """Each recipe alone, and what it cost."""
    rows = []
    for name, found in zip(evaluation.material.recipes, evaluation.nested.recipes, strict=True):
        minutes = total_minutes([member for member in evaluation.members if member.recipe == name])
        time_cells = ["-", "-"]
        if minutes is not None:
            time_cells = [f"{minutes:.1f}", "-"]
        if found is None:
            rows.append([name, "-", "-", "a specialist", "-", *time_cells])
            continue
        flat, chosen = flat_score(found), found.chosen_score
        if minutes:
            nothing = next(score for score in found.rules if score.rule == "constant").cross_fitted_f2
            time_cells[1] = f"{1000 * (flat.cross_fitted_f2 - nothing) / minutes:.2f}"
        cells = [f"{flat.cross_fitted_f2:.4f}", f"{flat.low:.4f} to {flat.high:.4f}", chosen.rule]
        rows.append([name, *cells, f"{chosen.cross_fitted_f2:.4f}", *time_cells])
    words = (
        "Each recipe's networks alone, on the chips that they held out. Its thresholds are fitted without a chip's "
        "fold, but the way to fit them is chosen with it. Minutes: of training all its folds, by their own logs, "
        "without validating and saving. F2 a minute: what F2 at 0.2 has above the best constant answer, in thousandths "
        "for a minute."
    )
    headings = ["recipe", "F2 at 0.2", "95% interval", "its thresholds", "F2 by them", "minutes", "F2 a minute"]
    return (
        report_parts.paragraph(words)
        + f'<div class="panel">{table(Grid(headings, rows, sortable=True, prose=[3]))}</div>'
    )


def labels(evaluation: FoldsEvaluation) -> str:
    """Each label's F2 with its interval."""
    scores = evaluation.label_scores
    places = sorted(range(len(evaluation.material.labels)), key=lambda c: -int(scores.support_C[c]))
    ends = zip(evaluation.low_C.tolist(), scores.f2_C.tolist(), evaluation.high_C.tolist(), strict=True)
    shown = [Interval(label, *three) for label, three in zip(evaluation.material.labels, ends, strict=True)]
    rows = [
        [
            shown[c].name,
            f"{scores.f2_C[c]:.3f}",
            f"{evaluation.low_C[c]:.3f} to {evaluation.high_C[c]:.3f}",
            f"{scores.precision_C[c]:.3f}",
            f"{scores.recall_C[c]:.3f}",
            f"{scores.support_C[c]:,}",
        ]
        for c in places
    ]
    words = (
        "Of the last step: each chip combined and decided by what was fitted without its fold. Labels in the order of "
        "how many chips bear them. The same table is in evaluation/labels.csv. Press a heading to sort."
    )
    headings = ["label", "F2", "95% interval", "precision", "recall", "chips"]
    chart = intervals("F2 of each label with 95% intervals", [shown[c] for c in places])
    grid = table(Grid(headings, rows, sortable=True, bars=[1, 3, 4]))
    return f'{report_parts.paragraph(words)}<div class="charts one">{chart}</div><div class="panel">{grid}</div>'


def folds(evaluation: FoldsEvaluation) -> str:
    """What the other folds chose for each."""
    rows = [
        [str(one.fold), f"{one.chips:,}", one.recipe or "-", one.combiner, one.rule, f"{one.f2:.4f}"]
        for one in evaluation.nested.left_out
    ]
    words = "What was chosen for each fold on the others, and the F2 that it comes to there."
    grid = table(Grid(["fold", "chips", "best recipe", "combined by", "decided by", "F2"], rows, prose=[2, 3, 4]))
    return f'{report_parts.paragraph(words)}<div class="panel">{grid}</div>'


def members(evaluation: FoldsEvaluation) -> str:
    """All networks."""
    rows = [
        [
            one.recipe,
            str(one.fold),
            f"{one.f2:.4f}",
            str(one.epochs),
            "-" if one.minutes is None else f"{one.minutes:.1f}",
            one.kept_by,
        ]
        for one in evaluation.members
    ]
    chosen_there = [one for one in evaluation.members if one.kept_by != "last"]
    words = "F2 at 0.2 of the chips that each held out, and what it took to train."
    note = (
        f"{len(chosen_there)} of {len(rows)} networks keep the epoch that did best on the chips which they held out, "
        "by F2, accuracy or loss: that flatters their answers, and all figures here, a little. "
        "evaluate.best_by=last avoids it."
    )
    grid = table(
        Grid(["recipe", "fold", "F2 at 0.2", "epochs", "minutes", "epoch kept by"], rows, sortable=True, prose=[5])
    )
    return (
        report_parts.paragraph(words)
        + (report_parts.paragraph(note, "note") if chosen_there else "")
        + f'<div class="panel">{grid}</div>'
    )
