"""Losses against plain numpy, finite differences, and themselves in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from planet_dist.config import LossConfig
from planet_dist.losses import Loss, build_loss, competing_groups, independent_logits
from shards.errors import ConfigError
from shards.labels import PLANET, ExclusiveGroup, Vocabulary

Array = NDArray[np.float64]

LABELS = Vocabulary(
    ("clear", "road", "cloudy", "haze", "water", "mine"),
    (ExclusiveGroup("weather", ("clear", "cloudy", "haze"), required=True),),
)
WEATHER = [0, 2, 3]
REST = [1, 4, 5]
TARGETS_BC = np.array(
    [[1, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0], [0, 1, 0, 1, 0, 1], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]], dtype=np.int64
)
COUNTS_C = np.array([700, 300, 200, 100, 250, 2])
COUNT = 1000
RECIPES: dict[str, dict[str, Any]] = {
    "bce": {},
    "bce smoothed": {"label_smoothing": 0.1},
    "bce weighted": {"label_weights": {"road": 3.0, "mine": 0.0}, "positive_weight": "balanced"},
    "bce weather": {"cooccurrence": "weather", "alpha": 0.01},
    "bce data": {"cooccurrence": "data", "alpha": 0.01},
    "focal": {"name": "focal", "focal_gamma": 1.5},
    "asymmetric": {"name": "asymmetric"},
    "asymmetric without margin": {"name": "asymmetric", "asymmetric_margin": 0.0, "asymmetric_gammas": (0.5, 2.0)},
    "soft-f2": {"name": "soft-f2", "label_weights": {"road": 2.0}},
    "softmax": {"name": "softmax", "label_smoothing": 0.1},
    "group-softmax": {"name": "group-softmax", "label_weights": {"haze": 2.0, "water": 0.5}},
    "group-softmax weather": {"name": "group-softmax", "cooccurrence": "weather", "alpha": 0.01},
}


def _cooccurrence() -> NDArray[np.int64]:
    matrix = np.full((6, 6), 50)
    for i, j in ((0, 2), (0, 3), (2, 3), (5, 4), (5, 2)):
        matrix[i, j] = matrix[j, i] = 0
    np.fill_diagonal(matrix, COUNTS_C)
    return matrix


def _build(**settings: Any) -> Loss:
    return build_loss(LossConfig(**settings), 6, LABELS, COUNTS_C, _cooccurrence(), COUNT)


def _logits(seed: int = 0, chips: int = 5) -> Array:
    return np.random.default_rng(seed).normal(0, 2, (chips, 6))


def _value(loss: Loss, logits_BC: Array, batch_size: int = 5, targets_BC: NDArray[np.int64] = TARGETS_BC) -> Array:
    result: Array = loss(torch.tensor(logits_BC), torch.tensor(targets_BC), batch_size).numpy()
    return result


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def _bce(x: Array, t: Array) -> Array:
    p = _sigmoid(x)
    return np.asarray(-t * np.log(p) - (1 - t) * np.log(1 - p))


def test_bce_is_the_mean_over_labels_of_binary_cross_entropy() -> None:
    x = _logits()
    np.testing.assert_allclose(_value(_build(), x), _bce(x, TARGETS_BC).mean(1), rtol=1e-12)


def test_smoothing_moves_targets_towards_one_half() -> None:
    x = _logits()
    expected = _bce(x, TARGETS_BC * 0.9 + 0.05).mean(1)
    np.testing.assert_allclose(_value(_build(label_smoothing=0.1), x), expected, rtol=1e-12)


def test_label_weights_scale_a_label_and_balanced_ones_its_presence() -> None:
    x, p = _logits(), _sigmoid(_logits())
    positive = (COUNT - COUNTS_C) / COUNTS_C
    terms = -TARGETS_BC * positive * np.log(p) - (1 - TARGETS_BC) * np.log(1 - p)
    expected = (terms * [1, 3, 1, 1, 1, 0]).mean(1)
    loss = _build(**RECIPES["bce weighted"])
    np.testing.assert_allclose(_value(loss, x), expected, rtol=1e-6)  # the weights are float32


def test_a_label_without_training_chips_has_finite_balanced_weights() -> None:
    loss = build_loss(LossConfig(positive_weight="balanced"), 6, LABELS, np.zeros(6), np.zeros((6, 6)), 0)
    assert np.isfinite(_value(loss, _logits())).all()


def test_focal_scales_each_term_by_how_wrong_it_is() -> None:
    x, p = _logits(), _sigmoid(_logits())
    terms = -TARGETS_BC * (1 - p) ** 1.5 * np.log(p) - (1 - TARGETS_BC) * p**1.5 * np.log(1 - p)
    np.testing.assert_allclose(_value(_build(name="focal", focal_gamma=1.5), x), terms.mean(1), rtol=1e-12)


def test_focal_without_gamma_is_bce() -> None:
    x = _logits()
    np.testing.assert_array_equal(_value(_build(name="focal", focal_gamma=0.0), x), _value(_build(), x))


def test_asymmetric_shifts_and_focuses_absent_labels() -> None:
    x, p = _logits(), _sigmoid(_logits())
    q = np.maximum(p - 0.05, 0)
    terms = -TARGETS_BC * (1 - p) * np.log(p) - (1 - TARGETS_BC) * q**4 * np.log(1 - q)
    np.testing.assert_allclose(_value(_build(name="asymmetric"), x), terms.mean(1), rtol=1e-9, atol=1e-12)


def test_soft_f2_of_certain_logits_is_one_minus_the_f2_of_the_decisions() -> None:
    decided = np.array([[1, 0, 1, 0, 1, 0]] * 5)
    tp = (decided & TARGETS_BC).sum(1)
    f2 = 5 * tp / (4 * TARGETS_BC.sum(1) + decided.sum(1))
    np.testing.assert_allclose(_value(_build(name="soft-f2"), decided * 80.0 - 40.0), 1 - f2, atol=1e-12)


def test_soft_f2_of_a_chip_without_labels_is_one_and_pulls_nowhere() -> None:
    logits = torch.full((1, 6), -200.0, requires_grad=True)
    value = _build(name="soft-f2")(logits, torch.zeros(1, 6), 1)
    value.sum().backward()
    assert value.item() == 1.0 and logits.grad is not None and not logits.grad.any()


def test_softmax_shares_a_chip_among_its_labels() -> None:
    x = _logits()
    shares = TARGETS_BC / TARGETS_BC.sum(1, keepdims=True)
    expected = -(shares * np.log(_softmax(x))).sum(1)
    np.testing.assert_allclose(_value(_build(name="softmax"), x), expected, rtol=1e-12)


def test_group_softmax_makes_weather_compete_and_leaves_the_rest_to_bce() -> None:
    x = _logits()
    weather = -(TARGETS_BC[:, WEATHER] * np.log(_softmax(x[:, WEATHER]))).sum(1)  # 0 for the last chip, which has none
    expected = (weather + _bce(x[:, REST], TARGETS_BC[:, REST]).sum(1)) / 6
    np.testing.assert_allclose(_value(_build(name="group-softmax"), x), expected, rtol=1e-12)


def test_independent_logits_give_the_softmax_probabilities_through_a_sigmoid() -> None:
    x = _logits()
    grouped = _sigmoid(_build(name="group-softmax").independent_logits(torch.tensor(x)).numpy())
    np.testing.assert_allclose(grouped[:, WEATHER], _softmax(x[:, WEATHER]), rtol=1e-12)
    np.testing.assert_allclose(grouped[:, REST], _sigmoid(x[:, REST]), rtol=1e-12)
    everything = _sigmoid(_build(name="softmax").independent_logits(torch.tensor(x)).numpy())
    np.testing.assert_allclose(everything, _softmax(x), rtol=1e-12)
    np.testing.assert_array_equal(_build(name="focal").independent_logits(torch.tensor(x)).numpy(), x)


def test_a_bundle_can_undo_the_competition_without_the_training_statistics() -> None:
    logits = torch.tensor(_logits())
    for name in ("bce", "softmax", "group-softmax"):
        groups = competing_groups(LossConfig(name=name), LABELS)
        expected = _build(name=name).independent_logits(logits)
        torch.testing.assert_close(independent_logits(logits, groups), expected, rtol=0, atol=0)


def _papers_term(p_BC: Array, matrix_CC: Array) -> float:
    return float((p_BC.T @ p_BC * matrix_CC).sum())


def test_weather_cooccurrence_adds_the_papers_term_over_the_whole_batch() -> None:
    x = _logits()
    matrix = np.zeros((6, 6))
    matrix[np.ix_(WEATHER, WEATHER)] = 1 - np.eye(3)
    expected = _bce(x, TARGETS_BC).mean() + 1e-4 * _papers_term(_sigmoid(x), matrix)
    value = _value(_build(cooccurrence="weather"), x).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    assert value > _bce(x, TARGETS_BC).mean()


def test_weather_of_planet_is_its_four_atmospheric_labels() -> None:
    loss = build_loss(LossConfig(cooccurrence="weather", alpha=1.0), 17, PLANET, np.ones(17), np.ones((17, 17)), 17)
    assert loss.cooccurrence_CC is not None
    found = {PLANET.labels[i] for i in loss.cooccurrence_CC.sum(1).nonzero()[:, 0].tolist()}
    assert found == {"clear", "partly_cloudy", "haze", "cloudy"}
    assert loss.cooccurrence_CC.sum() == 12


def test_data_cooccurrence_weighs_pairs_that_meet_less_than_chance_would() -> None:
    loss = _build(cooccurrence="data", alpha=1.0)
    assert loss.cooccurrence_CC is not None
    matrix = loss.cooccurrence_CC.numpy()
    expected = np.zeros((6, 6))
    for i in range(6):
        for j in range(6):
            if i != j:
                chance = COUNTS_C[i] * COUNTS_C[j] / COUNT
                expected[i, j] = max(0.0, 1 - (_cooccurrence()[i, j] + 1) / (chance + 1))
    np.testing.assert_allclose(matrix, expected, rtol=1e-6)
    assert matrix[0, 2] > 0.99  # clear and cloudy never meet, and often would
    assert matrix[5, 4] < 0.5  # nor do mine and water, but a mine is rare
    assert matrix[3, 4] == 0  # these two meet more than by chance
    value = _value(loss, _logits()).mean() - _bce(_logits(), TARGETS_BC).mean()
    np.testing.assert_allclose(value, _papers_term(_sigmoid(_logits()), expected), rtol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_gradient_equals_finite_differences(recipe: str) -> None:
    loss = _build(**RECIPES[recipe])
    targets = torch.tensor(TARGETS_BC)
    logits = torch.tensor(_logits(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, 5).mean(), (logits,), eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("cuts", [(1,), (2, 4), (1, 2, 3, 4)])
def test_parts_of_a_batch_sum_to_the_value_and_gradient_of_the_whole(recipe: str, cuts: tuple[int, ...]) -> None:
    loss = _build(**RECIPES[recipe])
    x, targets = torch.tensor(_logits(2)), torch.tensor(TARGETS_BC)
    whole = x.clone().requires_grad_()
    total = loss(whole, targets, 5).mean()
    total.backward()
    parts = x.clone().requires_grad_()
    value = 0.0
    for rows in torch.tensor_split(torch.arange(5), list(cuts)):
        part = loss(parts[rows], targets[rows], 5).sum() / 5
        part.backward()
        value += part.item()
    assert whole.grad is not None and parts.grad is not None
    assert value == pytest.approx(total.item(), rel=1e-12)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("recipe", RECIPES)
def test_loss_and_gradient_are_finite_where_logits_saturate(recipe: str) -> None:
    logits = torch.tensor([[300.0, -300.0] * 3, [-300.0, 300.0] * 3], requires_grad=True)
    value = _build(**RECIPES[recipe])(logits, torch.tensor(TARGETS_BC[:2]), 2)
    value.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(value).all() and torch.isfinite(logits.grad).all()


def test_loss_is_float32_and_unrounded_under_bf16_autocast() -> None:
    logits = torch.tensor(_logits(), dtype=torch.bfloat16)
    loss = _build(cooccurrence="weather")
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(logits, torch.tensor(TARGETS_BC), 5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(logits.float(), torch.tensor(TARGETS_BC), 5), rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{"cooccurrence": "weather"}, {"name": "group-softmax"}])
def test_a_vocabulary_without_exclusive_labels_cannot_be_asked_for_weather(settings: dict[str, Any]) -> None:
    free = Vocabulary(("road", "water"))
    with pytest.raises(ConfigError, match="names none"):
        build_loss(LossConfig(**settings), 2, free, [1, 1], [[1, 0], [0, 1]], 2)


def test_groups_that_share_a_label_cannot_compete() -> None:
    shared = Vocabulary(("a", "b", "c"), (ExclusiveGroup("x", ("a", "b")), ExclusiveGroup("y", ("b", "c"))))
    with pytest.raises(ConfigError, match="no label may be in two"):
        build_loss(LossConfig(name="group-softmax"), 3, shared, [1] * 3, np.eye(3), 3)


def test_weights_for_an_unknown_label_are_refused_with_the_labels_there_are() -> None:
    with pytest.raises(ConfigError, match=r"roads.*clear, road"):
        _build(label_weights={"roads": 2.0})


def test_balanced_weights_are_refused_where_presence_has_no_term_of_its_own() -> None:
    with pytest.raises(ConfigError, match="softmax has no separate terms"):
        _build(name="softmax", positive_weight="balanced")
