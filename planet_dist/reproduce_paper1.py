"""The first paper's tables and the results in its text, beside what was found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planet_dist.finished import FinishedRun
from planet_dist.metrics import Floats, label_scores
from planet_dist.page import Grid, Section
from planet_dist.papers import (
    PAPER1_LABEL_F2,
    PAPER1_PER_LABEL_GAIN,
    PAPER1_TABLE1,
    PAPER1_TEST_F2,
    PAPER1_UNIFORM_GAIN,
    RARE_SHARE,
)
from planet_dist.reproduce_found import PAPER_RULE, Found, FoundRow, fit
from planet_dist.thresholds import decide

MAIN = ("paper1-resnet50", "paper1-inception-v3", "paper1-vgg16", "paper1-baseline")
NONE = "-"


def sections(found: Found) -> list[Section]:
    """All of it, in the paper's order; what needs a row that was left out is left out."""
    result = [table1(found), kept_by(found)]
    main = found.first(*MAIN)
    if main is not None:
        result += [thresholds(main), rare_labels(found, main)]
    return [*result, test_set()]


def table1(found: Found) -> Section:
    """Table 1: model classification performance."""
    rows = []
    for name, paper in PAPER1_TABLE1.items():
        row = found.rows.get(name)
        cells = [NONE] * 3
        if row is not None:
            cells = [f"{value:.4f}" for value in (row.train.f2, row.fitted_f2, row.cross_fitted_f2)]
        rows.append([paper.model, f"{paper.train_f2:.3f}", cells[0], f"{paper.val_f2:.3f}", cells[1], cells[2]])
    headings = [
        "model",
        "train F2, paper",
        "train F2, found",
        "validation F2, paper",
        "validation F2, found",
        "found, cross-fitted",
    ]
    chips = sorted({row.train.chips for row in found.rows.values()})
    return Section(
        "Table 1: model classification performance",
        [
            "Found as the paper has it: one threshold for each label, the best of 100 steps by the label's own F2 "
            "(section 4.5), fitted on the validation chips that it is scored on; the training chips are decided by the "
            "same thresholds. Cross-fitted: each validation chip is decided by thresholds fitted without it.",
            f"Training chips looked at: {', '.join(f'{count:,}' for count in chips) or NONE}, drawn at random.",
        ],
        grid=Grid(headings, rows),
    )


def kept_by(found: Found) -> Section:
    """What keeping the best weights by accuracy cost, which the paper names as its mistake (section 6)."""
    rows = []
    for name, row in found.rows.items():
        epochs = row.run.epochs
        by_accuracy = max(epochs, key=lambda epoch: epoch["accuracy"])
        by_f2 = max(epochs, key=lambda epoch: epoch["f2"])
        rows.append(
            [
                name + (" (first member)" if row.planned.ensemble else ""),
                str(epochs.index(by_accuracy) + 1),
                f"{by_accuracy['accuracy']:.4f}",
                f"{by_accuracy['f2']:.4f}",
                str(epochs.index(by_f2) + 1),
                f"{by_f2['f2']:.4f}",
                f"{by_f2['f2'] - by_accuracy['f2']:+.4f}",
            ]
        )
    headings = ["row", "epoch kept by accuracy", "its accuracy", "its F2", "epoch F2 would keep", "its F2", "gain"]
    return Section(
        "Weights kept by accuracy, and what F2 would have kept",
        [
            "The runs keep the weights of best accuracy, as the paper did (section 3.3). F2 here is that with the best "
            "single threshold."
        ],
        grid=Grid(headings, rows),
    )


def thresholds(main: FoundRow) -> Section:
    """What thresholds gain (section 4.5, Figure 6)."""
    names = ("flat-0.5", "best-single", PAPER_RULE)
    fitted = [main.run.rule_f2(name) for name in names]
    crossed = [main.run.rule_f2(name, cross_fitted=True) for name in names]
    paper = ["", f"about +{PAPER1_UNIFORM_GAIN:.2f}", f"+{PAPER1_PER_LABEL_GAIN:.3f}"]
    shown = ["0.5 for all labels", "best single threshold", "one for each label"]
    rows = []
    for i, name in enumerate(shown):
        gains = [f"{values[i] - values[i - 1]:+.4f}" if i else "" for values in (fitted, crossed)]
        rows.append([name, paper[i], f"{fitted[i]:.4f}", gains[0], f"{crossed[i]:.4f}", gains[1]])
    headings = ["thresholds", "gain, paper", "F2, same chips", "gain", "F2, cross-fitted", "gain"]
    return Section(
        "Gains from thresholds (section 4.5)",
        [f"Found with {main.planned.row.name}. Each gain is over the line above."],
        grid=Grid(headings, rows),
    )


def rare_labels(found: Found, main: FoundRow) -> Section:
    """The rare labels: what the text says of the best single model, and of the baseline (section 5)."""
    labels = main.run.predictions.labels
    shares_C = _label_shares(main)
    baseline = found.rows.get("paper1-baseline")
    best_C = _label_f2(main.run)
    base_C = None if baseline is None else _label_f2(baseline.run)
    named = [label for label in labels if label in PAPER1_LABEL_F2]
    rare = [label for c, label in enumerate(labels) if shares_C[c] < RARE_SHARE and label not in named]
    rows = []
    for label in [*named, *rare]:
        c = labels.index(label)
        paper = f"{PAPER1_LABEL_F2[label]:.3f}" if label in PAPER1_LABEL_F2 else NONE
        rows.append([label, f"{shares_C[c]:.2%}", paper, _score(best_C, c), _score(base_C, c)])
    text = [
        f"F2 of each label with its own threshold, as in Table 1. Best: {main.planned.row.name}. The paper says of its "
        "baseline that it gets 0.0 F2 for nearly all of the rare features."
    ]
    if base_C is not None:
        borne = [base_C[labels.index(label)] for label in [*named, *rare] if not np.isnan(base_C[labels.index(label)])]
        text.append(
            f"The baseline found here gets 0.0 for {borne.count(0.0)} of the {len(borne)} labels below that a "
            "validation chip bears."
        )
    headings = ["label", "share of chips", "best, paper", "best, found", "baseline, found"]
    return Section("Rare labels (section 5)", text, grid=Grid(headings, rows))


def test_set() -> Section:
    """The competition's score."""
    return Section(
        "The competition's test chips (section 5)",
        [
            f"Paper: {PAPER1_TEST_F2:.3f} with its best model. Not found here: the labels of those chips were never "
            "published. planet-dist predict RUN/bundle --images DIR --out submission.csv makes the file that the "
            "competition would score."
        ],
    )


def _label_f2(run: FinishedRun) -> Floats:
    found = run.predictions
    scores = label_scores(decide(found.probabilities_NC, fit(run, PAPER_RULE)), found.targets_NC)
    f2_C: Floats = np.where(scores.support_C > 0, scores.f2_C, np.nan)
    return f2_C


def _score(f2_C: Floats | None, c: int) -> str:
    return NONE if f2_C is None or np.isnan(f2_C[c]) else f"{f2_C[c]:.3f}"


def _label_shares(row: FoundRow) -> Sequence[float]:
    manifest = row.dataset().manifest
    return [count / max(manifest.labelled, 1) for count in manifest.label_counts]
