"""The second paper's tables and the results in its text, beside what was found."""

from __future__ import annotations

from planet_dist.figures_scores import mean_products
from planet_dist.finished import FinishedRun
from planet_dist.page import Grid, Section
from planet_dist.papers import (
    PAPER2_SIMPLE_F2,
    PAPER2_TABLE2,
    PAPER2_TABLE3,
    PAPER2_TABLE4,
    PAPER2_TABLE5,
    PAPER2_THRESHOLDS,
    PhaseScores,
)
from planet_dist.reproduce_found import Found, FoundRow, fit, last_train_scores
from planet_dist.reproduce_rows import FIRST_PHASE, WITHOUT_TERM

MAIN = ("paper2-inception-v3", "paper2-simple-cnn-140", "paper2-simple-cnn-64", "paper2-simple-cnn-128")
SIMPLE = ("paper2-simple-cnn-64", "paper2-simple-cnn-128", "paper2-simple-cnn-128-l2", "paper2-simple-cnn-140")
PAPER_RULE = "grid-joint"  # section 5.3: values between 0 and 1 for every label, the combination that works best
NONE = "-"


def sections(found: Found, sample: int) -> list[Section]:
    """All of it, in the paper's order; what needs a row that was left out is left out.

    Args:
        sample: most training chips to look at.
    """
    main = found.first(*MAIN)
    result = [] if main is None else [table1(main)]
    result.append(tables_2_and_3(found, sample))
    if "paper2-inception-v3" in found.rows and WITHOUT_TERM in found.rows:
        result.append(table4(found.rows[WITHOUT_TERM].run, found.rows["paper2-inception-v3"].run))
    if main is not None:
        result.append(table5(main))
    return [*result, simple_networks(found)]


def table1(main: FoundRow) -> Section:
    """Table 1: class thresholds."""
    values_C = fit(main.run, PAPER_RULE)
    rows = [
        [label, f"{PAPER2_THRESHOLDS[label]:.2f}" if label in PAPER2_THRESHOLDS else NONE, f"{values_C[c]:.2f}"]
        for c, label in enumerate(main.run.predictions.labels)
    ]
    return Section(
        "Table 1: class thresholds",
        [
            f"Found with {main.planned.row.name}: of 100 steps between 0 and 1, those that together give the best F2 "
            "on the validation chips."
        ],
        grid=Grid(["label", "threshold, paper", "threshold, found"], rows),
    )


def tables_2_and_3(found: Found, sample: int) -> Section:
    """Tables 2 and 3: results after each phase."""
    columns = [
        (PAPER2_TABLE2, found.rows.get(FIRST_PHASE)),
        (PAPER2_TABLE3, found.rows.get("paper2-inception-v3")),
    ]
    scores = [(paper, None if row is None else end_of(row, sample)) for paper, row in columns]
    rows = []
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "f2"):
        cells = []
        for paper, ours in scores:
            cells += [f"{getattr(paper, name):.4f}", NONE if ours is None else _fitting(getattr(ours, name))]
        rows.append([{"f2": "F2"}.get(name, name.replace("_", " ").replace("val ", "validation ")), *cells])
    headings = ["", "dense layers, paper", "found", "joint training, paper", "found"]
    return Section(
        "Tables 2 and 3: results after each phase",
        [
            "Found with the weights at the end of each phase, without the penalties in the losses; the training chips "
            f"are a sample of at most {sample:,}, looked at in evaluation mode. F2 is that with the best single "
            "threshold: which thresholds the paper's tables stand for is not said."
        ],
        grid=Grid(headings, rows),
    )


def end_of(row: FoundRow, sample: int) -> PhaseScores:
    """A run's scores at its end."""
    last, train = row.run.epochs[-1], last_train_scores(row, sample)
    return PhaseScores(train.loss, train.accuracy, last["loss"], last["accuracy"], last["f2"])


def table4(without: FinishedRun, with_term: FinishedRun) -> Section:
    """Table 4: co-occurrence of atmospheric labels."""
    labels = list(with_term.predictions.labels)
    pairs = [other for other in PAPER2_TABLE4 if other in labels and "clear" in labels]
    products = [mean_products(run.predictions.probabilities_NC) for run in (without, with_term)]
    rows = []
    for other in pairs:
        paper = PAPER2_TABLE4[other]
        ours = [float(product[labels.index("clear"), labels.index(other)]) for product in products]
        factors = [f"{before / after:.1f}" if after else NONE for before, after in (paper, ours)]
        rows.append(
            [f"clear, {other}", *(_small(v) for v in paper), factors[0], *(_small(v) for v in ours), factors[1]]
        )
    headings = ["pair", "without, paper", "with", "factor", "without, found", "with", "factor"]
    return Section(
        "Table 4: co-occurrence of weather labels, without and with the loss term",
        [
            "The mean over the validation chips of the product of both probabilities; one and the same network, "
            "trained with the same seed. The factor is by how much the term lowers it."
        ],
        grid=Grid(headings, rows),
    )


def table5(main: FoundRow) -> Section:
    """Table 5: what thresholds gain."""
    fitted = [main.run.rule_f2(name) for name in ("flat-0.5", PAPER_RULE)]
    crossed = [main.run.rule_f2(name, cross_fitted=True) for name in ("flat-0.5", PAPER_RULE)]
    rows = [
        ["initial F2 (0.5 for all labels)", f"{PAPER2_TABLE5[0]:.4f}", f"{fitted[0]:.4f}", f"{crossed[0]:.4f}"],
        ["final F2", f"{PAPER2_TABLE5[1]:.4f}", f"{fitted[1]:.4f}", f"{crossed[1]:.4f}"],
        ["improvement", f"{PAPER2_TABLE5[2]:+.3f}", f"{fitted[1] - fitted[0]:+.4f}", f"{crossed[1] - crossed[0]:+.4f}"],
    ]
    return Section(
        "Table 5: improvement in F2 from optimizing score thresholds",
        [
            f"Found with {main.planned.row.name}. Same chips: fitted and scored on the same, as in the paper. "
            "Cross-fitted: each chip is decided by thresholds fitted without it."
        ],
        grid=Grid(["", "paper", "found, same chips", "found, cross-fitted"], rows),
    )


def simple_networks(found: Found) -> Section:
    """The simple networks (section 5.1.1 and Figure 4)."""
    rows = []
    for name in SIMPLE:
        row = found.rows.get(name)
        paper = f"{PAPER2_SIMPLE_F2[name]:.4f}" if name in PAPER2_SIMPLE_F2 else NONE
        cells = [NONE] * 4
        if row is not None:
            ends = [row.run.train_losses()[-1], row.run.epochs[-1]["loss"]]
            cells = [_fitting(value) for value in (row.run.rule_f2(PAPER_RULE), _crossed(row), *ends)]
        rows.append([name, paper, *cells])
    headings = [
        "network",
        "F2, paper",
        "found, same chips",
        "found, cross-fitted",
        "train loss at the end",
        "validation",
    ]
    return Section(
        "Simple networks (section 5.1.1, Figure 4)",
        ["The paper saw overfitting at 128 pixels, and less of it with L2; the losses show how far apart both are."],
        grid=Grid(headings, rows),
    )


def _crossed(row: FoundRow) -> float:
    return row.run.rule_f2(PAPER_RULE, cross_fitted=True)


def _fitting(value: float) -> str:
    """Four decimals, or as a power where a loss has exploded."""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.2e}"


def _small(value: float) -> str:
    return f"{value:.2e}" if 0 < value < 1e-3 else f"{value:.4f}"
