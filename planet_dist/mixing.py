"""Chips mixed with others of their batch, and their labels with them, in training.

    mixup    Zhang et al. 2018: the whole chip becomes (1 - w) x itself + w x its partner
    cutmix   Yun et al. 2019: a rectangle of the chip becomes its partner's

Both have one form, a weight of the partner at each pixel. A label's target becomes the mean of both chips' by the
mean of those weights: for labels that overlap, each label by itself, where the papers mix one class with another.

A chip's partner is the one before it in its rank's part of the batch (before the first, the last), so that nothing is
read twice. What is drawn follows from (seed, epoch, chip id) alone.

Shapes: B chips, C labels or bands, H rows, W columns.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planet_dist.draws import Mixing


def mix(images_BCHW: Tensor, targets_BC: Tensor, weights_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mixes each chip with the one before it.

    Args:
        images_BCHW: float32, channels last.
        targets_BC: 0 and 1, any type.
        weights_BHW: of the partner at each pixel, float32 on the same device; see partner_weights.

    Returns:
        Images like images_BCHW, and float32 targets (B, C) from 0 to 1. A chip of weights 0 stays as it is.
    """
    targets_BC = targets_BC.float()
    mixed_BCHW = torch.lerp(images_BCHW, images_BCHW.roll(1, 0), weights_BHW[:, None])
    return mixed_BCHW, torch.lerp(targets_BC, targets_BC.roll(1, 0), weights_BHW.mean(dim=(1, 2))[:, None])


def partner_weights(mixing: Mixing, height: int, width: int) -> NDArray[np.float32]:
    """The partner's weight at each pixel, float32 (B, height, width): 1 within the box, the blend elsewhere."""
    left_B, top_B, right_B, bottom_B = np.rint(mixing.box_B4 * (width, height, width, height)).astype(np.int64).T
    columns_W, rows_H = np.arange(width), np.arange(height)
    inside_BW = (left_B[:, None] <= columns_W) & (columns_W < right_B[:, None])
    inside_BH = (top_B[:, None] <= rows_H) & (rows_H < bottom_B[:, None])
    inside_BHW = inside_BH[:, :, None] & inside_BW[:, None, :]
    return np.where(inside_BHW, 1.0, mixing.blend_B[:, None, None]).astype(np.float32)
