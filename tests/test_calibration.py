"""planet_dist.calibration: against scikit-learn and SciPy, label by label."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from planet_dist.calibration import METHODS, Logistic, Method, calibration_from_json, fit_calibration, reliability
from planet_dist.metrics import Bools, Floats, probabilities
from shards.errors import RunError


def made(count: int, seed: int = 0) -> tuple[Floats, Bools]:
    """Probabilities that say too much, of labels that are common, rare and turned round."""
    rng = np.random.default_rng(seed)
    true_NC = rng.random((count, 4)) < [0.6, 0.1, 0.01, 0.4]
    scores_NC = rng.normal(np.where(true_NC, 1.0, -1.0), 1.2) * [3.0, 2.0, 1.0, -1.0]
    return probabilities(scores_NC + np.array([0.5, -1.0, -2.0, 0.0])), true_NC


def soft_targets(true_N: Bools) -> Floats:
    positives = true_N.sum()
    return np.where(true_N, (positives + 1) / (positives + 2), 1 / (len(true_N) - positives + 2))


def logits(p: Floats) -> Floats:
    return np.log(p) - np.log1p(-p)


def test_platts_values_are_those_of_a_logistic_regression_on_soft_targets() -> None:
    p_NC, true_NC = made(2000)
    found = fit_calibration("platt", p_NC, true_NC)
    assert isinstance(found, Logistic)
    for c in range(3):
        target_N = soft_targets(true_NC[:, c])
        scores = np.tile(logits(p_NC[:, c]), 2)[:, None]
        truth, weight = np.repeat([1, 0], len(target_N)), np.concatenate([target_N, 1 - target_N])
        fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=5000).fit(scores, truth, sample_weight=weight)
        assert found.slopes[c] == pytest.approx(fitted.coef_[0, 0], rel=1e-4)
        assert found.offsets[c] == pytest.approx(fitted.intercept_[0], rel=1e-4)


def test_temperatures_are_the_best_of_all() -> None:
    p_NC, true_NC = made(2000, seed=1)
    found = fit_calibration("temperature", p_NC, true_NC)
    assert isinstance(found, Logistic) and set(found.offsets) == {0.0}
    for c in range(3):
        scores_N, target_N = logits(p_NC[:, c]), soft_targets(true_NC[:, c])

        def loss(slope: float, scores_N: Floats = scores_N, target_N: Floats = target_N) -> float:
            return float(np.mean(np.logaddexp(0, slope * scores_N) - target_N * slope * scores_N))

        best = minimize_scalar(loss, bounds=(0, 10), method="bounded", options={"xatol": 1e-9}).x
        assert found.slopes[c] == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("grid", [None, 20])
def test_isotonic_lines_are_scikit_learns(grid: int | None) -> None:
    p_NC, true_NC = made(3000, seed=2)
    p_NC = p_NC if grid is None else np.round(p_NC * grid) / grid  # many chips of one probability
    asked_NC = np.random.default_rng(0).random((500, 4))
    found_NC = fit_calibration("isotonic", p_NC, true_NC).apply(asked_NC)
    for c in range(4):
        fitted = IsotonicRegression(out_of_bounds="clip").fit(p_NC[:, c], true_NC[:, c])
        np.testing.assert_allclose(found_NC[:, c], fitted.predict(asked_NC[:, c]), atol=1e-12)


def test_a_label_that_says_the_opposite_gets_its_frequency_and_is_not_turned_round() -> None:
    p_NC, true_NC = made(2000, seed=3)
    said_N = fit_calibration("platt", p_NC, true_NC).apply(p_NC)[:, 3]
    assert said_N == pytest.approx(np.full(2000, soft_targets(true_NC[:, 3]).mean()))
    assert set(fit_calibration("temperature", p_NC, true_NC).apply(p_NC)[:, 3]) == {0.5}


TIED = st.sampled_from([0.0, 1e-9, 0.1, 0.25, 0.5, 0.9, 1.0])


@given(
    st.integers(1, 12).flatmap(
        lambda rows: st.tuples(arrays(np.float64, (rows, 2), elements=TIED), arrays(np.bool_, (rows, 2)))
    ),
    st.sampled_from(METHODS),
)
@settings(deadline=None)
def test_order_is_kept_and_equals_stay_equal_whatever_the_rows(chips: tuple[Floats, Bools], method: Method) -> None:
    asked_NC = np.sort(np.concatenate([chips[0], np.random.default_rng(0).random((30, 2)), chips[0]]), axis=0)
    said_NC = fit_calibration(method, *chips).apply(asked_NC)
    assert ((said_NC >= 0) & (said_NC <= 1)).all()
    assert (np.diff(said_NC, axis=0) >= 0).all()
    assert (np.diff(said_NC, axis=0)[np.diff(asked_NC, axis=0) == 0] == 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("truth", [False, True])
def test_a_label_of_one_truth_gets_finite_values_on_the_right_side(method: Method, truth: bool) -> None:
    rng = np.random.default_rng(4)
    p_N1 = rng.random((500, 1))
    said = fit_calibration(method, p_N1, np.full((500, 1), truth)).apply(p_N1)
    assert np.isfinite(said).all()
    if method in ("platt", "isotonic"):
        assert np.all(said > 0.99) if truth else np.all(said < 0.01)


def test_labels_that_are_told_apart_without_a_mistake_stay_finite() -> None:
    true_N1 = np.arange(400)[:, None] % 2 == 0
    p_N1 = np.where(true_N1, 1.0, 0.0)
    for method in METHODS:
        said_N1 = fit_calibration(method, p_N1, true_N1).apply(p_N1)
        assert np.isfinite(said_N1).all() and (said_N1[true_N1].min() > 0.99) and (said_N1[~true_N1].max() < 0.01)


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_probabilities_that_say_too_much_are_nearer_to_frequencies_on_new_chips(method: Method) -> None:
    fitted = fit_calibration(method, *made(4000, seed=5))
    p_NC, true_NC = made(4000, seed=6)
    said_N = fitted.apply(p_NC)[:, 0]
    assert reliability(said_N, true_NC[:, 0]).error < 0.5 * reliability(p_NC[:, 0], true_NC[:, 0]).error


@pytest.mark.parametrize("method", METHODS)
def test_a_calibration_says_the_same_when_read_back(method: Method) -> None:
    p_NC, true_NC = made(300, seed=7)
    fitted = fit_calibration(method, p_NC, true_NC)
    read = calibration_from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False)), "file")
    assert read == fitted
    assert read.apply(p_NC).tobytes() == fitted.apply(p_NC).tobytes()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "calibration None; it must be one of none, temperature, platt, isotonic"),
        ({"method": "magic"}, "calibration 'magic'"),
        ({"method": "platt", "slopes": [1.0]}, "'offsets'"),
        ({"method": "platt", "slopes": [1.0], "offsets": [0.0, 1.0]}, "1 slopes and 2 offsets"),
        ({"method": "platt", "slopes": [-1.0], "offsets": [0.0]}, "turned round"),
        ({"method": "platt", "slopes": [float("inf")], "offsets": [0.0]}, "turned round"),
        ({"method": "platt", "slopes": [1.0], "offsets": [float("nan")]}, "finite"),
        ({"method": "temperature", "slopes": ["1"], "offsets": [0.0]}, "lists of numbers"),
        ({"method": "isotonic", "points": [[0.1, 0.2]], "values": [[0.3, 0.2]]}, "never fall"),
        ({"method": "isotonic", "points": [[0.2, 0.2]], "values": [[0.1, 0.2]]}, "must rise"),
        ({"method": "isotonic", "points": [[0.1]], "values": [[1.5]]}, r"within \[0, 1\]"),
        ({"method": "isotonic", "points": [[]], "values": [[]]}, "must rise"),
        ({"method": "isotonic", "points": [[0.1]], "values": []}, "points of 1 labels and values of 0"),
        ({"method": "isotonic", "points": 3, "values": []}, "file: isotonic"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_that_names_it(table: Any, message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        calibration_from_json(table, "file")
    assert str(caught.value).startswith("file: ")


def test_reliability_is_counted_in_bins_of_equally_many_chips() -> None:
    rng = np.random.default_rng(8)
    p_N = rng.random(1000)
    true_N = rng.random(1000) < p_N**2
    found = reliability(p_N, true_N, bins=4)
    order_N = np.argsort(p_N)
    for b, rows in enumerate(np.split(order_N, 4)):
        assert found.count_B[b] == 250
        assert found.mean_B[b] == pytest.approx(p_N[rows].mean())
        assert found.true_B[b] == pytest.approx(true_N[rows].mean())
    assert found.error == pytest.approx(np.abs(found.mean_B - found.true_B).mean())
    assert 0.1 < found.error < 0.25  # the mean of p - p^2 is a sixth


def test_chips_of_equal_probability_are_never_parted_into_two_bins() -> None:
    p_N = np.repeat([0.1, 0.2, 0.9], [70, 20, 10])
    true_N = np.arange(100) % 2 == 0
    found = reliability(p_N, true_N, bins=10)
    assert found.count_B.tolist() == [70, 20, 10]
    assert found.error == pytest.approx(0.7 * 0.4 + 0.2 * 0.3 + 0.1 * 0.4)
    shuffled = np.random.default_rng(0).permutation(100)
    assert reliability(p_N[shuffled], true_N[shuffled], bins=10).error == pytest.approx(found.error)
