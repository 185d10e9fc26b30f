"""Ways to combine out-of-fold answers, fitted, compared and chosen on some folds, without a look at the others.

Everything here is a function of the rows of the folds that it is given. What is left out stays out: penalties, the way
to combine and the decision rule are fitted and chosen among the folds that remain, by leaving each of them out in turn.
planet_dist.stack_nested leaves out one fold after the other, and so judges the whole.

Folds are those that the networks were trained without, so that chips that a split keeps together (neighbours, near
duplicates) stay together here too.

Suffixes: R recipes, N samples, C labels, P penalties, W ways to combine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planet_dist.crossfit import Evaluation, RuleScore, cross_fitted, evaluate_rules
from planet_dist.decision import DecisionRule
from planet_dist.decision_rules import simplest_of_least_error
from planet_dist.metrics import Bools, Floats, mean_f2, standings
from planet_dist.stack import Scale, Stack, columns
from planet_dist.stack_fits import COMBINERS, Combiner, row_losses
from planet_dist.thresholds import BEST_SINGLE, RULES, decide

LEAST_FOLDS = 3  # of two, nothing remains to choose on once both are left out

Folds = frozenset[int]


@dataclass(frozen=True)
class Material:
    """Recipes' answers on chips that their networks were not trained on.

    Attributes:
        labels: C names.
        recipes: R names.
        ids_N: int64, unique, ascending.
        answers_RNC: float64 probabilities.
        true_NC: bool.
        fold_of_N: int64, the fold that the networks of a chip's answers were trained without.
        speaks_RC: bool, the labels that each recipe was trained on.
    """

    labels: tuple[str, ...]
    recipes: tuple[str, ...]
    ids_N: NDArray[np.int64]
    answers_RNC: Floats
    true_NC: Bools
    fold_of_N: NDArray[np.int64]
    speaks_RC: Bools

    @property
    def folds(self) -> Folds:
        """All folds."""
        return frozenset(np.unique(self.fold_of_N).tolist())

    def rows(self, folds: Folds) -> Bools:
        """The rows of some folds, bool (N,)."""
        return np.isin(self.fold_of_N, sorted(folds))


@dataclass(frozen=True)
class Combined:
    """A way to combine, fitted to some folds.

    Attributes:
        combiner: which.
        stack: fitted to all of them.
        penalties: chosen label by label (C).
        held_out_NC: float64 probabilities of the rows of those folds, each by a fit without the row's fold; NaN for
            other rows.
    """

    combiner: Combiner
    stack: Stack
    penalties: tuple[float | None, ...]
    held_out_NC: Floats


@dataclass(frozen=True)
class Choice:
    """What is chosen on some folds.

    Attributes:
        scores: of each way to combine, in the order given; `rule` is its name. They decide by one threshold for all
            labels, cross-fitted like the combination.
        combined: the simplest way whose squared error is not behind the least by more than noise.
        evaluation: of decision rules, on `combined.held_out_NC`; it has the chosen rule.
    """

    scores: tuple[RuleScore, ...]
    combined: Combined
    evaluation: Evaluation


@dataclass
class Chooser:
    """Fits and chooses; a fit is kept, for those who leave out other folds may need it again.

    Attributes:
        material: what is fitted to.
        combiners: simplest first.
        rules: decision rules, simplest first.
        seed: not negative, for the decision rules' folds and the bootstrap.
    """

    material: Material
    combiners: Sequence[Combiner] = COMBINERS
    rules: Sequence[DecisionRule] = RULES
    seed: int = 0
    _paths: dict[tuple[str, Folds], list[Stack]] = field(default_factory=dict)
    _columns: dict[Scale, Floats] = field(default_factory=dict)

    def choose(self, without: Folds = frozenset()) -> Choice:
        """Chooses on the folds that are not left out.

        Args:
            without: folds; two at least remain.
        """
        combined = [self.combined(combiner, without) for combiner in self.combiners]
        scores = self._scores(combined, without)
        rows_N = self.material.rows(self.material.folds - without)
        held_out = [one.held_out_NC[rows_N] for one in combined]
        chosen = combined[simplest_of_least_error(held_out, self.material.true_NC[rows_N])]
        return Choice(scores, chosen, self._evaluated(chosen.held_out_NC, without))

    def combined(self, combiner: Combiner, without: Folds = frozenset()) -> Combined:
        """A way to combine fitted to the folds that are not left out, with its penalties chosen on them."""
        material = self.material
        remaining = sorted(material.folds - without)
        losses_PC = np.zeros((len(combiner.penalties), len(material.labels)))
        for fold in remaining:
            true_NC = material.true_NC[self._rows(fold)]
            for p, stack in enumerate(self._path(combiner, without | {fold})):
                losses_PC[p] += row_losses(combiner.scale, self.of_fold(stack, fold), true_NC).sum(axis=0)
        chosen_C = np.argmin(losses_PC, axis=0)  # the first, and so the greatest penalty, of equals
        held_out_NC = np.full(material.true_NC.shape, np.nan)
        for fold in remaining:
            stack = _of_each_label(self._path(combiner, without | {fold}), chosen_C)
            held_out_NC[self._rows(fold)] = self.of_fold(stack, fold)
        penalties = tuple(combiner.penalties[p] for p in chosen_C.tolist())
        return Combined(combiner, _of_each_label(self._path(combiner, without), chosen_C), penalties, held_out_NC)

    def of_fold(self, stack: Stack, fold: int) -> Floats:
        """What a stack makes of a fold's rows, float64."""
        if stack.scale not in self._columns:
            self._columns[stack.scale] = columns(self.material.answers_RNC, stack.scale)
        return stack.of_columns(self._columns[stack.scale][self._rows(fold)])

    def evaluated_recipe(self, recipe: int, without: Folds) -> Evaluation:
        """The decision rules compared on a recipe's own answers, on the folds that are not left out."""
        return self._evaluated(self.material.answers_RNC[recipe], without)

    def _evaluated(self, probabilities_NC: Floats, without: Folds) -> Evaluation:
        material, rows_N = self.material, self.material.rows(self.material.folds - without)
        return evaluate_rules(
            probabilities_NC[rows_N],
            material.true_NC[rows_N],
            material.labels,
            ids_N=material.ids_N[rows_N],
            seed=self.seed,
            rules=self.rules,
        )

    def _path(self, combiner: Combiner, without: Folds) -> list[Stack]:
        key = (combiner.name, without)
        if key not in self._paths:
            material = self.material
            rows_N = material.rows(material.folds - without)
            columns_ND = columns(material.answers_RNC[:, rows_N], combiner.scale)
            self._paths[key] = combiner.fit(columns_ND, material.true_NC[rows_N], material.speaks_RC)
        return self._paths[key]

    def _rows(self, fold: int) -> Bools:
        rows_N: Bools = self.material.fold_of_N == fold
        return rows_N

    def _scores(self, combined: Sequence[Combined], without: Folds) -> tuple[RuleScore, ...]:
        material = self.material
        rows_N = material.rows(material.folds - without)
        true_NC, fold_of_N = material.true_NC[rows_N], material.fold_of_N[rows_N]
        decided = [
            cross_fitted(BEST_SINGLE, one.held_out_NC[rows_N], true_NC, fold_of_N, material.labels) for one in combined
        ]
        recipes, labels = material.speaks_RC.shape
        scores = []
        for one, standing in zip(combined, standings(decided, true_NC, self.seed), strict=True):
            same_NC = one.stack.probabilities(material.answers_RNC[:, rows_N])
            scores.append(
                RuleScore(
                    one.combiner.name,
                    one.combiner.fitted(recipes, labels),
                    mean_f2(decide(same_NC, BEST_SINGLE.fit(same_NC, true_NC)), true_NC),
                    *standing,
                )
            )
        return tuple(scores)


def _of_each_label(path: Sequence[Stack], chosen_C: NDArray[np.intp]) -> Stack:
    """The stack that has each label's column from the fit that was chosen for it."""
    if len(path) == 1:
        return path[0]
    every_C = np.arange(len(chosen_C))
    return Stack(
        path[0].scale,
        np.stack([stack.weights_DC for stack in path])[chosen_C, :, every_C].T.copy(),
        np.stack([stack.bias_C for stack in path])[chosen_C, every_C],
    )
