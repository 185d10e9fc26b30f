"""Recipes over folds as one model: gathered, judged, bundled, and shown on a page.

    OUT/evaluation/metrics.json       what each step came to, and all that was compared
    OUT/evaluation/labels.csv         each label's F2 with its interval
    OUT/evaluation/predictions.npz    each chip's logits by the combination that was fitted without its fold
    OUT/bundle/                       all networks, the combination and the decision rule
    OUT/report.html                   planet_dist.ensemble_page

Suffixes: R recipes, N samples, C labels.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planet_dist.bundle_description import Description, Member, Stacking
from planet_dist.bundle_files import write_bundle
from planet_dist.crossfit import Evaluation, RuleScore
from planet_dist.decision_rules import rules_for
from planet_dist.metrics import Floats, LabelScores, label_f2_intervals, label_scores, logits, mean_f2
from planet_dist.out_of_fold import FoldRun, Recipe, gather
from planet_dist.predictions import write_predictions
from planet_dist.runfolder import RunFolder
from planet_dist.runlogs import read_logs
from planet_dist.stack_choice import Material
from planet_dist.stack_nested import FLAT, Nested, judge
from shards.errors import RunError
from shards.schema import write_whole


@dataclass(frozen=True)
class MemberScore:
    """A network of a recipe and a fold.

    Attributes:
        recipe, fold: which.
        f2: sample-averaged, of the chips that it held out, decided at 0.2.
        minutes: of training, by its own log: without validating and saving; None where it has no log.
        epochs: that it trained.
        kept_by: evaluate.best_by: by what the epoch was chosen whose weights are kept.
    """

    recipe: str
    fold: int
    f2: float
    minutes: float | None
    epochs: int
    kept_by: str


@dataclass(frozen=True)
class FoldsEvaluation:
    """An ensemble of recipes over folds, judged.

    Attributes:
        material: all out-of-fold answers.
        nested: what stacking is worth, and what is deployed.
        label_scores: of the last step: each chip combined and decided without its fold.
        low_C, high_C: bootstrap intervals (95%) of the labels' F2, float64.
        members: recipe by recipe, fold by fold.
        seed: of the decision rules' folds and the bootstrap.
    """

    material: Material
    nested: Nested
    label_scores: LabelScores
    low_C: Floats
    high_C: Floats
    members: tuple[MemberScore, ...]
    seed: int

    @property
    def minutes(self) -> float | None:
        """Of training all members; None where one has no log."""
        return total_minutes(self.members)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain numbers, lists and strings."""
        nested, scores, choice = self.nested, self.label_scores, self.nested.choice
        return {
            "rows": len(self.material.ids_N),
            "folds": len(self.material.folds),
            "seed": self.seed,
            "rule": "stacked",
            "f2": nested.headline.f2,
            "low": nested.headline.low,
            "high": nested.headline.high,
            "training_minutes": self.minutes,
            "combiner": choice.combined.combiner.name,
            "penalties": list(choice.combined.penalties),
            "decision": choice.evaluation.chosen.rule,
            "steps": [asdict(step) for step in nested.steps],
            "combiners": [asdict(score) for score in choice.scores],
            "decisions": [asdict(score) for score in choice.evaluation.rules],
            "left_out": [asdict(one) for one in nested.left_out],
            "recipes": [
                {
                    "recipe": name,
                    "flat": asdict(flat_score(one)) if one else None,
                    "chosen": asdict(one.chosen_score) if one else None,
                    "training_minutes": total_minutes([m for m in self.members if m.recipe == name]),
                }
                for name, one in zip(self.material.recipes, nested.recipes, strict=True)
            ],
            "members": [asdict(member) for member in self.members],
            "labels": [
                {
                    "label": label,
                    "f2": float(scores.f2_C[c]),
                    "f2_low": float(self.low_C[c]),
                    "f2_high": float(self.high_C[c]),
                    "precision": float(scores.precision_C[c]),
                    "recall": float(scores.recall_C[c]),
                    "support": int(scores.support_C[c]),
                }
                for c, label in enumerate(self.material.labels)
            ],
        }


def total_minutes(members: Sequence[MemberScore]) -> float | None:
    """The minutes of training of members together; None where one has no log."""
    known = [member.minutes for member in members if member.minutes is not None]
    return sum(known) if len(known) == len(members) else None


def flat_score(evaluation: Evaluation) -> RuleScore:
    """The score of 0.2 for every label."""
    return next(score for score in evaluation.rules if score.rule == f"flat-{FLAT}")


def combine_folds(runs: Sequence[Path], data: str | Path, out: Path, *, seed: int = 0) -> FoldsEvaluation:
    """Combines runs of recipes over folds, and writes OUT; what stands there is replaced.

    Args:
        runs: of each recipe one for each fold, in any order.
        data: the dataset that they were trained on.
        seed: of the decision rules' folds and the bootstrap.

    Raises:
        RunError: runs that cannot be combined (out_of_fold.gather), or a folder that cannot be written.
        DatasetError, ConfigError: the dataset cannot be used.
    """
    recipes, material = gather(runs, data)
    rules = rules_for(recipes[0].runs[0].bundle.vocabulary)
    nested = judge(material, rules=rules, seed=seed)
    evaluation = FoldsEvaluation(
        material,
        nested,
        label_scores(nested.decided_NC, material.true_NC),
        *label_f2_intervals(nested.decided_NC, material.true_NC, seed),
        members=tuple(_member_score(recipe.name, run) for recipe in recipes for run in recipe.runs),
        seed=seed,
    )
    folder = RunFolder(out)
    try:
        folder.evaluation.mkdir(parents=True, exist_ok=True)
        logits_NC = logits(nested.probabilities_NC)
        path = folder.evaluation / "predictions.npz"
        write_predictions(path, material.labels, material.ids_N, logits_NC, material.true_NC)
        text = json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False)
        write_whole(folder.evaluation / "metrics.json", f"{text}\n".encode())
        write_whole(folder.evaluation / "labels.csv", labels_csv(evaluation))
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error}); give another --out") from error
    all_runs = [run for recipe in recipes for run in recipe.runs]
    weights = [RunFolder(run.root).bundle / run.bundle.members[0].weights for run in all_runs]
    write_bundle(folder.bundle, _bundle(recipes, evaluation), weights)
    return evaluation


def labels_csv(evaluation: FoldsEvaluation) -> bytes:
    """Each label's F2 with its interval, precision, recall and support, as CSV."""
    rows = evaluation.to_json()["labels"]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: f"{value:.6f}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
    )
    return text.getvalue().encode()


def _member_score(recipe: str, run: FoldRun) -> MemberScore:
    found = run.predictions
    logs = read_logs(run.root)
    seconds = sum(float(record.get("seconds", 0.0)) for record in logs.timings)
    f2 = mean_f2(found.probabilities_NC > FLAT, found.targets_NC)
    minutes = seconds / 60 if logs.timings else None
    return MemberScore(recipe, run.split.fold, f2, minutes, len(logs.epochs), run.config.evaluate.best_by)


def _bundle(recipes: Sequence[Recipe], evaluation: FoldsEvaluation) -> Description:
    material, choice = evaluation.material, evaluation.nested.choice
    combined = choice.combined
    members: list[Member] = []
    places: list[list[int]] = []
    for recipe in recipes:
        places.append(list(range(len(members), len(members) + len(recipe.runs))))
        for run in recipe.runs:
            name, file = f"{recipe.name} fold {run.split.fold}", f"model-{len(members)}.safetensors"
            members.append(run.bundle.members[0].model_copy(update={"name": name, "weights": file}))
    labels = len(material.labels)
    stacking = Stacking(
        combiner=combined.combiner.name,
        recipes=list(material.recipes),
        members=places,
        scale=combined.stack.scale,
        weights=combined.stack.weights_DC.reshape(len(recipes), labels, labels).tolist(),
        bias=combined.stack.bias_C.tolist(),
    )
    first = recipes[0].runs[0].bundle
    return Description(
        labels=first.labels,
        exclusive=first.exclusive,
        alone=first.alone,
        image=first.image,
        members=members,
        rule="stacked",
        thresholds=choice.evaluation.chosen,
        stacking=stacking,
        training_chips=len(material.ids_N),  # each fold's networks saw the others: together they saw all
        training_label_counts=np.count_nonzero(material.true_NC, axis=0).tolist(),
        scores=evaluation.to_json(),
        dataset_digest=first.dataset_digest,
    )
