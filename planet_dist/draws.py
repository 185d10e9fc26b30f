"""Random numbers of each training chip, as a pure function of (seed, epoch, chip id).

SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) numbers its outputs: the n-th is a fixed mixing of key + n *
GOLDEN, and can be had without those before it. Here (seed, epoch) gives the key, and each chip id owns
STREAMS consecutive numbers. So a chip's draws depend neither on its batch nor on its rank, and nothing has to
be saved to resume.

Shapes: B chips, N numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planet_dist.config import AugmentConfig

# Numbers owned by each chip.
STREAMS = 8
_MIRROR, _TURNS, _ANGLE, _ZOOM, _SHIFT_X, _SHIFT_Y, _MIX, _PLACE = range(8)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Draws(NamedTuple):
    """What happens to each chip of a batch.

    In this order: mirror left to right, quarter turns, then turn, zoom and shift; counterclockwise as seen.

    Attributes:
        mirror_B: bool.
        turns_B: int64, quarter turns 0 to 3.
        angle_B: float64, radians.
        zoom_B: float64, above 1 enlarges what is seen.
        shift_B2: float64, to the right and down, as fractions of the width and the height.
    """

    mirror_B: NDArray[np.bool_]
    turns_B: NDArray[np.int64]
    angle_B: NDArray[np.float64]
    zoom_B: NDArray[np.float64]
    shift_B2: NDArray[np.float64]


def draw(config: AugmentConfig, seed: int, epoch: int, ids_B: NDArray[np.int64]) -> Draws:
    """Draws the changes of each chip.

    What `config` leaves out changes no chip (False, 0, a zoom of 1), and moves none of the other draws.

    Args:
        config: how far each change may go.
        seed, epoch: not negative, of any size.
        ids_B: int64 chip ids; -1 (padding) draws like any other.
    """
    uniform_BN = uniform(seed, epoch, ids_B)
    centred_BN = 2 * uniform_BN - 1
    mirror_B = uniform_BN[:, _MIRROR] < 0.5
    turns_B = (4 * uniform_BN[:, _TURNS]).astype(np.int64)
    return Draws(
        mirror_B & config.flip,
        turns_B * config.quarter_turns,
        centred_BN[:, _ANGLE] * math.radians(config.rotate_degrees),
        1 + centred_BN[:, _ZOOM] * config.scale,
        centred_BN[:, [_SHIFT_X, _SHIFT_Y]] * config.shift,
    )


class Mixing(NamedTuple):
    """What each chip of a batch takes of its partner; at most one of the two is above nothing.

    Attributes:
        blend_B: float64, the partner's weight everywhere.
        box_B4: float64, left, top, right and bottom of the rectangle that is the partner's, as fractions of the
            width and the height; without area where nothing is.
    """

    blend_B: NDArray[np.float64]
    box_B4: NDArray[np.float64]


def draw_mixing(config: AugmentConfig, seed: int, epoch: int, ids_B: NDArray[np.int64]) -> Mixing:
    """Draws what each chip takes of its partner: nothing, a blend or a box.

    The share that it takes is uniform from 0 to 1. A box has the chip's proportions and lies within it, anywhere as
    likely. Arguments as for `draw`.
    """
    uniform_BN = uniform(seed, epoch, ids_B)
    chance_B, place_B = uniform_BN[:, _MIX], uniform_BN[:, _PLACE]
    boxed_B = chance_B < config.cutmix
    blended_B = ~boxed_B & (chance_B < config.cutmix + config.mixup)
    # Within the chances of what was drawn the same number is uniform once more.
    side_B = np.sqrt(np.where(boxed_B, chance_B / (config.cutmix or 1.0), 0.0))
    blend_B = np.where(blended_B, (chance_B - config.cutmix) / (config.mixup or 1.0), 0.0)
    # The upper and the lower bits of one number are two.
    across_B, down_B = np.floor(place_B * 2**26) / 2**26, (place_B * 2**26) % 1
    left_B, top_B = across_B * (1 - side_B), down_B * (1 - side_B)
    box_B4 = np.stack([left_B, top_B, left_B + side_B, top_B + side_B], axis=1)
    return Mixing(blend_B, box_B4)


def uniform(seed: int, epoch: int, ids_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """The STREAMS numbers of each chip, float64 (B, STREAMS) in [0, 1), all multiples of 2**-53."""
    key = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
    first_B1 = ids_B.astype(np.uint64)[:, None] * np.uint64(STREAMS)
    words_BN = splitmix64(key, first_B1 + np.arange(STREAMS, dtype=np.uint64)[None, :])
    return (words_BN >> np.uint64(11)).astype(np.float64) * 2.0**-53


def splitmix64(key: int, positions: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The outputs at `positions`, from 0, of the SplitMix64 generator that starts at `key`."""
    words: NDArray[np.uint64] = (positions + np.uint64(1)) * _GOLDEN + np.uint64(key)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
