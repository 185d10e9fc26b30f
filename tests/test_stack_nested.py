"""Stacking judged without a look: what is left out changes nothing, and what memorises gains nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from planet_dist.crossfit import evaluate_rules
from planet_dist.metrics import Bools, Floats, mean_f2, probabilities, sample_f2
from planet_dist.stack import Stack, columns
from planet_dist.stack_choice import Chooser, Material
from planet_dist.stack_fits import COMBINERS, Combiner, fit_ridge, row_losses
from planet_dist.stack_nested import BEST_RECIPE, COMBINATION, DECIDED, ITS_RULE, MEAN, judge
from planet_dist.thresholds import decide, fit_single
from shards.errors import RunError

BY_NAME = {combiner.name: combiner for combiner in COMBINERS}
LABELS = ("a", "b", "c", "d")


def material(answers_RNC: Floats, true_NC: Bools, folds: int = 4, speaks_RC: Bools | None = None) -> Material:
    recipes, count, labels = answers_RNC.shape
    return Material(
        LABELS[:labels],
        tuple(f"recipe-{r}" for r in range(recipes)),
        np.arange(count),
        answers_RNC,
        true_NC,
        np.random.default_rng(0).permutation(count) % folds,
        np.ones((recipes, labels), bool) if speaks_RC is None else speaks_RC,
    )


def made(count: int, seed: int = 0, strength: float = 1.2) -> tuple[Floats, Bools]:
    """Two recipes that see the labels through noise of their own, and know what to make of it: they're calibrated.

    Every chip bears a label: where it's none of the others, the first.
    """
    rng = np.random.default_rng(seed)
    shares_C = np.array([0.6, 0.3, 0.2, 0.1])
    true_NC = rng.random((count, 4)) < shares_C
    true_NC[:, 0] |= ~true_NC.any(axis=1)
    seen_RNC = strength * (2.0 * true_NC - 1) + rng.normal(size=(2, count, 4))
    return probabilities(2 * strength * seen_RNC + np.log(shares_C / (1 - shares_C))), true_NC


def f2_of(steps: object, name: str) -> float:
    return next(step.f2 for step in steps if step.name == name)  # type: ignore[attr-defined]


def test_what_decides_a_fold_does_not_depend_on_its_truth() -> None:
    answers_RNC, true_NC = made(160)
    whole = material(answers_RNC, true_NC)
    before = judge(whole)
    for fold in range(4):
        rows_N = whole.fold_of_N == fold
        turned_NC = np.where(rows_N[:, None], ~true_NC, true_NC)
        after = judge(replace(whole, true_NC=turned_NC))
        assert (after.probabilities_NC[rows_N] == before.probabilities_NC[rows_N]).all()
        assert (after.decided_NC[rows_N] == before.decided_NC[rows_N]).all()
        assert after.left_out[fold].combiner == before.left_out[fold].combiner
        assert not (after.probabilities_NC == before.probabilities_NC).all(), "other folds do learn from it"


def test_the_headline_is_that_of_plain_loops() -> None:
    answers_RNC, true_NC = made(200, strength=0.6)
    whole = material(answers_RNC, true_NC)
    ridge = BY_NAME["ridge"]
    nested = judge(whole, combiners=[ridge], seed=3)
    decided_NC = np.zeros_like(true_NC)
    everyone = np.ones((2, 4), bool)
    inputs_ND = columns(answers_RNC, "probabilities")
    for fold in range(4):
        others = [other for other in range(4) if other != fold]
        rest_N = whole.fold_of_N != fold
        losses = np.zeros((len(ridge.penalties), 4))
        held_out: dict[int, list[Floats]] = {}
        for other in others:
            fitted_N, judged_N = rest_N & (whole.fold_of_N != other), whole.fold_of_N == other
            held_out[other] = [
                stack.probabilities(answers_RNC[:, judged_N])
                for stack in fit_ridge(inputs_ND[fitted_N], true_NC[fitted_N], everyone)
            ]
            for p, given_NC in enumerate(held_out[other]):
                losses[p] += row_losses("probabilities", given_NC, true_NC[judged_N]).sum(axis=0)
        best = losses.argmin(axis=0)
        combined_NC = np.zeros(true_NC.shape)
        for other in others:
            for c in range(4):
                combined_NC[whole.fold_of_N == other, c] = held_out[other][best[c]][:, c]
        fits = fit_ridge(inputs_ND[rest_N], true_NC[rest_N], everyone)
        for c in range(4):
            combined_NC[~rest_N, c] = fits[best[c]].probabilities(answers_RNC[:, ~rest_N])[:, c]
        rules = evaluate_rules(combined_NC[rest_N], true_NC[rest_N], LABELS, ids_N=np.flatnonzero(rest_N), seed=3)
        decided_NC[~rest_N] = rules.chosen.decide(combined_NC[~rest_N])
        np.testing.assert_allclose(nested.probabilities_NC[~rest_N], combined_NC[~rest_N], atol=1e-12)
    assert (nested.decided_NC == decided_NC).all()
    assert nested.headline.f2 == pytest.approx(mean_f2(decided_NC, true_NC))


def test_each_step_is_held_against_the_one_that_it_replaces() -> None:
    answers_RNC, true_NC = made(200)
    answers_RNC[1] = np.clip(answers_RNC[1] + 0.3, 0, 1)  # so that the first recipe is the better one
    nested = judge(material(answers_RNC, true_NC), combiners=COMBINERS[:1])
    assert [(step.name, step.before) for step in nested.steps] == [
        (BEST_RECIPE, ""),
        (ITS_RULE, BEST_RECIPE),
        (MEAN, BEST_RECIPE),
        (COMBINATION, MEAN),
        (DECIDED, COMBINATION),
    ]
    assert nested.steps[0].f2 == pytest.approx(mean_f2(answers_RNC[0] > 0.2, true_NC))
    assert {one.recipe for one in nested.left_out} == {"recipe-0"}
    assert nested.steps[2].f2 == pytest.approx(mean_f2(answers_RNC.mean(axis=0) > 0.2, true_NC)) == nested.steps[3].f2
    for step in nested.steps[1:]:
        assert step.gain == pytest.approx(step.f2 - f2_of(nested.steps, step.before))
        assert step.gain_low <= step.gain <= step.gain_high
    for one in nested.left_out:
        rows_N = material(answers_RNC, true_NC).fold_of_N == one.fold
        assert one.f2 == pytest.approx(sample_f2(nested.decided_NC[rows_N], true_NC[rows_N]).mean())


@dataclass(frozen=True)
class Memory(Stack):
    """Knows the rows that it was fitted to by heart, and guesses at others."""

    known: dict[bytes, Bools]

    def of_columns(self, columns_ND: Floats) -> Floats:
        guess_C = np.full(4, 0.5)
        return np.stack([self.known.get(row_D.tobytes(), guess_C) for row_D in columns_ND]).astype(np.float64)


def by_heart(columns_ND: Floats, true_NC: Bools, speaks_RC: Bools) -> list[Stack]:
    known = {row_D.tobytes(): true_C for row_D, true_C in zip(columns_ND, true_NC, strict=True)}
    return [Memory("probabilities", np.zeros((8, 4)), np.zeros(4), known)]


def test_a_combiner_that_memorises_rows_gains_nothing() -> None:
    answers_RNC, true_NC = made(160)
    memoriser = Combiner("memoriser", "probabilities", lambda recipes, labels: 0, (None,), by_heart)
    nested = judge(material(answers_RNC, true_NC), combiners=[memoriser])
    (score,) = nested.choice.scores
    assert score.same_rows_f2 == 1.0
    assert score.cross_fitted_f2 < f2_of(nested.steps, MEAN)
    assert (nested.probabilities_NC == 0.5).all()
    among = judge(material(answers_RNC, true_NC), combiners=[memoriser, COMBINERS[0]])
    assert among.choice.combined.combiner.name == "mean-probabilities"
    assert {one.combiner for one in among.left_out} == {"mean-probabilities"}


def test_a_recipe_of_noise_neither_helps_nor_harms() -> None:
    good_RNC, true_NC = made(1500)
    noise_1NC = np.random.default_rng(1).random((1, 1500, 4))
    with_noise = judge(material(np.concatenate([good_RNC, noise_1NC]), true_NC))
    without = judge(material(good_RNC, true_NC))
    assert abs(with_noise.headline.f2 - without.headline.f2) < 0.005
    for name in ("weighted", "ridge", "logistic"):
        combined = Chooser(material(np.concatenate([good_RNC, noise_1NC]), true_NC)).combined(BY_NAME[name])
        weights_RC = combined.stack.weights_DC.reshape(3, 4, 4)[:, np.arange(4), np.arange(4)]
        assert (np.abs(weights_RC[2]) < 0.25 * weights_RC[:2].min(axis=0)).all(), name


def test_stacking_finds_what_one_label_tells_about_another() -> None:
    """The last label is answered at random, and is there wherever the first is not and the second is."""
    answers_RNC, true_NC = made(1500, strength=1.6)
    true_NC[:, 3] = ~true_NC[:, 0] & true_NC[:, 1]
    answers_RNC[:, :, 3] = np.random.default_rng(2).random((2, 1500))
    nested = judge(material(answers_RNC, true_NC))
    assert nested.choice.combined.combiner.name == "logistic"
    step = next(step for step in nested.steps if step.name == COMBINATION)
    assert step.gain_low > 0.02
    scores = {score.rule: score for score in nested.choice.scores}
    assert scores["logistic"].behind_high == 0.0 and scores["mean-logits"].behind_low > 0.02


def test_ways_to_combine_are_compared_by_one_threshold_fitted_without_the_fold() -> None:
    answers_RNC, true_NC = made(120)
    whole = material(answers_RNC, true_NC)
    (score,) = Chooser(whole, COMBINERS[:1]).choose().scores
    mean_NC, decided_NC = answers_RNC.mean(axis=0), np.zeros_like(true_NC)
    for fold in range(4):
        rows_N = whole.fold_of_N == fold
        decided_NC[rows_N] = decide(mean_NC[rows_N], fit_single(mean_NC[~rows_N], true_NC[~rows_N]))
    assert score.cross_fitted_f2 == pytest.approx(mean_f2(decided_NC, true_NC))
    assert score.same_rows_f2 == mean_f2(decide(mean_NC, fit_single(mean_NC, true_NC)), true_NC)


def test_of_ways_that_do_as_well_the_simplest_is_chosen() -> None:
    answers_RNC, _ = made(400)
    same_RNC = np.stack([answers_RNC[0], answers_RNC[0]])
    true_NC = np.random.default_rng(1).random(answers_RNC[0].shape) < answers_RNC[0]  # no label tells of another
    assert judge(material(same_RNC, true_NC)).choice.combined.combiner.name in ("mean-probabilities", "mean-logits")


def test_specialists_help_with_their_labels_and_are_no_best_recipe() -> None:
    answers_RNC, true_NC = made(300)
    speaks_RC = np.array([[True] * 4, [True, False, False, False]])
    nested = judge(material(answers_RNC, true_NC, speaks_RC=speaks_RC))
    assert {one.recipe for one in nested.left_out} == {"recipe-0"}
    assert nested.recipes[0] is not None and nested.recipes[1] is None
    specialists = judge(
        material(answers_RNC, true_NC, speaks_RC=np.array([[True, True, False, False], [False, False, True, True]]))
    )
    assert [step.name for step in specialists.steps] == [MEAN, COMBINATION, DECIDED]
    assert specialists.steps[0].before == ""


def test_two_folds_are_refused() -> None:
    answers_RNC, true_NC = made(40)
    with pytest.raises(RunError, match=r"2 fold\(s\): .*; train 3 folds or more"):
        judge(material(answers_RNC, true_NC, folds=2))
