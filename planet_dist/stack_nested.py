"""What stacking is worth: each chip combined and decided by what was fitted and chosen without the chip's fold.

    best recipe at 0.2       the recipe chosen by its F2 at 0.2
    best recipe, own rule    its decision rule chosen and fitted
    mean at 0.2              the mean of the recipes' probabilities
    combined at 0.2          the way to combine chosen and fitted (planet_dist.stack_choice)
    combined, own rule       the decision rule chosen and fitted too: what the bundle does

Each step is judged fold by fold, by what the other folds lead to. The last one's F2 is what to expect of the bundle,
which is chosen and fitted in the same way on all folds, and whose recipes answer new chips by several networks.

Suffixes: R recipes, N samples, C labels, S steps, B bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planet_dist.crossfit import Evaluation, evaluate_rules
from planet_dist.decision import DecisionRule
from planet_dist.metrics import Bools, Floats, bootstrap_means, interval, mean_f2, sample_f2
from planet_dist.stack import recipe_mean
from planet_dist.stack_choice import LEAST_FOLDS, Choice, Chooser, Material
from planet_dist.stack_fits import COMBINERS, Combiner
from planet_dist.thresholds import RULES
from shards.errors import RunError

FLAT = 0.2
BEST_RECIPE, ITS_RULE = "best recipe at 0.2", "best recipe, own rule"
MEAN, COMBINATION, DECIDED = "mean at 0.2", "combined at 0.2", "combined, own rule"
# What each step is held against.
_BEFORE = {ITS_RULE: BEST_RECIPE, MEAN: BEST_RECIPE, COMBINATION: MEAN, DECIDED: COMBINATION}


@dataclass(frozen=True)
class Step:
    """What a step came to.

    Attributes:
        name: one of those above.
        f2: sample-averaged, each chip decided without its fold.
        low, high: bootstrap interval (95%).
        before: the step that it is held against; empty for the first.
        gain: in F2 against that one, with gain_low and gain_high, its paired bootstrap interval (95%).
    """

    name: str
    f2: float
    low: float
    high: float
    before: str
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True)
class LeftOut:
    """What the other folds chose for a fold.

    Attributes:
        fold, chips: which, and how many chips it has.
        recipe: the best; empty where no recipe speaks for all labels.
        combiner, rule: the way to combine and the decision rule.
        f2: sample-averaged F2 of the fold's chips by them.
    """

    fold: int
    chips: int
    recipe: str
    combiner: str
    rule: str
    f2: float


@dataclass(frozen=True)
class Nested:
    """Stacking judged, and what to deploy.

    Attributes:
        steps: in order; what needs a recipe of all labels is left out where there is none.
        left_out: one for each fold.
        choice: on all folds: what to deploy.
        probabilities_NC: float64, by the combination that was chosen and fitted without the chip's fold.
        decided_NC: bool, and by the decision rule that was.
        recipes: for each recipe its own thresholds, cross-fitted; None for those that don't speak for all labels.
    """

    steps: tuple[Step, ...]
    left_out: tuple[LeftOut, ...]
    choice: Choice
    probabilities_NC: Floats
    decided_NC: Bools
    recipes: tuple[Evaluation | None, ...]

    @property
    def headline(self) -> Step:
        """The last step: what to expect of the bundle."""
        return self.steps[-1]


def judge(
    material: Material,
    *,
    combiners: Sequence[Combiner] = COMBINERS,
    rules: Sequence[DecisionRule] = RULES,
    seed: int = 0,
) -> Nested:
    """Judges stacking by leaving out each fold in turn, and chooses what to deploy on all of them.

    Args:
        material: of three folds or more.
        combiners: simplest first; their names differ.
        rules: decision rules, simplest first; their names differ.
        seed: not negative, for the decision rules' folds and the bootstrap.

    Raises:
        RunError: fewer folds.
    """
    folds = sorted(material.folds)
    if len(folds) < LEAST_FOLDS:
        raise RunError(
            f"{len(folds)} fold(s): a way to combine is chosen by leaving out one fold, and judged by leaving out "
            f"another; train {LEAST_FOLDS} folds or more"
        )
    chooser = Chooser(material, combiners, rules, seed)
    singles = np.flatnonzero(material.speaks_RC.all(axis=1)).tolist()
    true_NC = material.true_NC
    mean_NC = recipe_mean(material.answers_RNC, material.speaks_RC)
    decided = {name: np.zeros(true_NC.shape, bool) for name in (BEST_RECIPE, ITS_RULE, MEAN, COMBINATION, DECIDED)}
    decided[MEAN] = mean_NC > FLAT
    probabilities_NC = np.zeros(true_NC.shape)
    left_out = []
    for fold in folds:
        rows_N = material.fold_of_N == fold
        best = ""
        if singles:
            flat_f2 = [mean_f2(material.answers_RNC[r][~rows_N] > FLAT, true_NC[~rows_N]) for r in singles]
            r = singles[int(np.argmax(flat_f2))]
            best, answers_NC = material.recipes[r], material.answers_RNC[r][rows_N]
            decided[BEST_RECIPE][rows_N] = answers_NC > FLAT
            decided[ITS_RULE][rows_N] = chooser.evaluated_recipe(r, frozenset({fold})).chosen.decide(answers_NC)
        choice = chooser.choose(frozenset({fold}))
        probabilities_NC[rows_N] = chooser.of_fold(choice.combined.stack, fold)
        decided[COMBINATION][rows_N] = probabilities_NC[rows_N] > FLAT
        decided[DECIDED][rows_N] = choice.evaluation.chosen.decide(probabilities_NC[rows_N])
        f2 = mean_f2(decided[DECIDED][rows_N], true_NC[rows_N])
        names = (best, choice.combined.combiner.name, choice.evaluation.chosen.rule)
        left_out.append(LeftOut(fold, int(np.count_nonzero(rows_N)), *names, f2))
    if not singles:
        del decided[BEST_RECIPE], decided[ITS_RULE]
    return Nested(
        steps=_steps(decided, true_NC, seed),
        left_out=tuple(left_out),
        choice=chooser.choose(),
        probabilities_NC=probabilities_NC,
        decided_NC=decided[DECIDED],
        recipes=tuple(_alone(material, r, seed) if r in singles else None for r in range(len(material.recipes))),
    )


def _alone(material: Material, recipe: int, seed: int) -> Evaluation:
    # other rules cost ten times as much, and of recipes that are not deployed nobody needs to know
    answers_NC, true_NC = material.answers_RNC[recipe], material.true_NC
    return evaluate_rules(answers_NC, true_NC, material.labels, ids_N=material.ids_N, seed=seed, rules=RULES)


def _steps(decided: dict[str, Bools], true_NC: Bools, seed: int) -> tuple[Step, ...]:
    names = list(decided)
    scores_NS = np.stack([sample_f2(decided_NC, true_NC) for decided_NC in decided.values()], axis=1)
    means_S, means_BS = scores_NS.mean(axis=0), bootstrap_means(scores_NS, seed)
    steps = []
    for s, name in enumerate(names):
        before = _BEFORE.get(name, "")
        before = before if before in decided else ""
        b = names.index(before) if before else s
        gains_B = means_BS[:, s] - means_BS[:, b]
        gain = float(means_S[s] - means_S[b])
        steps.append(Step(name, float(means_S[s]), *interval(means_BS[:, s]), before, gain, *interval(gains_B)))
    return tuple(steps)
