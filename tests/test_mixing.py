"""Mixup and cutmix: pixels and labels move by the same share, whatever the batch, and only where they are asked to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from planet_dist.augment import Preprocess
from planet_dist.config import AugmentConfig, DataConfig, LossConfig, parse_config
from planet_dist.draws import Mixing, draw, draw_mixing
from planet_dist.losses import Loss
from planet_dist.mixing import mix, partner_weights
from shards.errors import ConfigError
from shards.pixels import PixelFormat

IDS = np.arange(40_000)


def make_preprocess(augment: AugmentConfig, side: int = 8) -> Preprocess:
    form = PixelFormat(side, side, 3, "uint8")
    return Preprocess(DataConfig(), form, [0.0] * 3, [1.0] * 3, augment=augment, seed=3)


def require_uniform(values: NDArray[np.float64]) -> None:
    """As many of them in each tenth of 0 to 1, to within 5 standard deviations."""
    counts = np.histogram(values, 10, (0, 1))[0]
    assert np.abs(counts - len(values) / 10).max() < 5 * math.sqrt(len(values) / 10)


def test_a_box_is_the_partner_and_a_blend_both() -> None:
    images_BCHW = torch.rand(3, 2, 4, 6)
    targets_BC = torch.tensor([[1, 0], [0, 1], [1, 1]])
    # A box of columns 1 and 2, rows 2 and 3; a blend of a quarter; nothing.
    box_B4 = np.array([[1 / 6, 2 / 4, 3 / 6, 1.0], [0, 0, 0, 0], [0, 0, 0, 0]])
    mixing = Mixing(np.array([0.0, 0.25, 0.0]), box_B4)
    mixed_BCHW, soft_BC = mix(images_BCHW, targets_BC, torch.from_numpy(partner_weights(mixing, 4, 6)))
    boxed_CHW = images_BCHW[0].clone()
    boxed_CHW[:, 2:4, 1:3] = images_BCHW[2][:, 2:4, 1:3]
    assert torch.equal(mixed_BCHW[0], boxed_CHW)
    torch.testing.assert_close(mixed_BCHW[1], 0.75 * images_BCHW[1] + 0.25 * images_BCHW[0])
    assert torch.equal(mixed_BCHW[2], images_BCHW[2])
    torch.testing.assert_close(soft_BC, torch.tensor([[1.0, 4 / 24], [0.25, 0.75], [1.0, 1.0]]))


@pytest.mark.parametrize(("cutmix", "mixup"), [(0.5, 0.3), (1.0, 0.0), (0.0, 1.0), (0.2, 0.0)])
def test_chips_are_mixed_as_often_as_asked_and_by_every_share(cutmix: float, mixup: float) -> None:
    mixing = draw_mixing(AugmentConfig(cutmix=cutmix, mixup=mixup), 1, 2, IDS)
    left_B, top_B, right_B, bottom_B = mixing.box_B4.T
    area_B = (right_B - left_B) * (bottom_B - top_B)
    for share_B, asked in ((area_B, cutmix), (mixing.blend_B, mixup)):
        assert np.mean(share_B > 0) == pytest.approx(asked, abs=0.01)
        if asked:
            require_uniform(share_B[share_B > 0])
    assert not np.any((area_B > 0) & (mixing.blend_B > 0))
    assert mixing.box_B4.min() >= 0
    assert mixing.box_B4.max() <= 1 + 1e-12


def test_boxes_lie_anywhere() -> None:
    left_B, top_B, right_B, bottom_B = draw_mixing(AugmentConfig(cutmix=1), 0, 0, IDS).box_B4.T
    room_B = 1 - (right_B - left_B)
    np.testing.assert_allclose(right_B - left_B, bottom_B - top_B)
    across_B, down_B = left_B[room_B > 0.1] / room_B[room_B > 0.1], top_B[room_B > 0.1] / room_B[room_B > 0.1]
    for place_B in (across_B, down_B):
        require_uniform(place_B)
    assert abs(np.corrcoef(across_B, down_B)[0, 1]) < 0.02


def test_what_a_chip_takes_depends_on_its_id_alone() -> None:
    augment = AugmentConfig(cutmix=0.4, mixup=0.4)
    together = draw_mixing(augment, 5, 2, np.array([7, 3, 40_478]))
    for place, chip in enumerate((7, 3, 40_478)):
        alone = draw_mixing(augment, 5, 2, np.array([chip]))
        np.testing.assert_array_equal(together.blend_B[place], alone.blend_B[0])
        np.testing.assert_array_equal(together.box_B4[place], alone.box_B4[0])
    assert not np.array_equal(draw_mixing(augment, 5, 3, IDS).blend_B, draw_mixing(augment, 5, 2, IDS).blend_B)


def test_mixing_moves_no_other_draw() -> None:
    plain, mixed = (
        draw(AugmentConfig(flip=True, quarter_turns=True, shift=0.1, cutmix=share), 0, 0, IDS) for share in (0, 0.5)
    )
    for one, other in zip(plain, mixed, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_same_batch_comes_back_where_nothing_is_mixed() -> None:
    images_BCHW, targets_BC = torch.rand(4, 3, 8, 8), torch.ones(4, 2, dtype=torch.int64)
    found = make_preprocess(AugmentConfig()).mix(images_BCHW, targets_BC, np.arange(4), 0)
    assert found[0] is images_BCHW
    assert found[1] is targets_BC


def test_preprocessing_mixes_what_its_seed_draws() -> None:
    augment = AugmentConfig(cutmix=0.5, mixup=0.5)
    images_BCHW, targets_BC, ids_B = torch.rand(6, 3, 8, 8), torch.eye(6), np.arange(10, 16)
    found = make_preprocess(augment).mix(images_BCHW, targets_BC, ids_B, 4)
    weights_BHW = torch.from_numpy(partner_weights(draw_mixing(augment, 3, 4, ids_B), 8, 8))
    for one, other in zip(found, mix(images_BCHW, targets_BC, weights_BHW), strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(found[1].sum(1), torch.ones(6))


def test_binary_cross_entropy_of_a_mixed_chip_is_the_mean_of_both() -> None:
    loss = Loss(LossConfig(), [], torch.ones(3), torch.ones(3), None)
    logits_BC = torch.randn(1, 3)
    first_BC, second_BC = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    mixed = loss(logits_BC, 0.7 * first_BC + 0.3 * second_BC, 1)
    torch.testing.assert_close(mixed, 0.7 * loss(logits_BC, first_BC, 1) + 0.3 * loss(logits_BC, second_BC, 1))


def test_more_than_all_chips_cannot_be_mixed() -> None:
    table: dict[str, object] = {"description": "x", "model": {"name": "small-resnet"}}
    table["phases"] = [{"epochs": 1, "batch_size": 2, "learning_rate": 0.1}]
    with pytest.raises(ConfigError, match=r"cutmix 0.6 and mixup 0.5 .*together 1 at most"):
        parse_config(table | {"augment": {"cutmix": 0.6, "mixup": 0.5}}, "recipe")
