"""Label sets for made chips, with the frequencies and co-occurrence of the real ones.

The weather is drawn first, then one ground label after another by a logistic model of the weather and of the
labels before it. The log-odds are aggregates over the 40,479 label rows of the competition, rounded.
"""

from __future__ import annotations

import math
from types import MappingProxyType

import numpy as np

# Shares of the four weather labels, of which every chip bears exactly one.
WEATHER = MappingProxyType({"clear": 0.7024, "partly_cloudy": 0.1794, "haze": 0.0666, "cloudy": 0.0516})

# Per label, in the order of drawing: the log-odds of a clear chip without any other label, and what each label
# that is already there adds. "none" stands for a ground on which nothing has been named yet: the person who
# labelled a chip always named something, so that the last common label is nearly certain there.
_GROUND: tuple[tuple[str, float, dict[str, float]], ...] = (
    ("primary", 3.59, {"partly_cloudy": 0.8, "haze": 1.0}),
    ("water", -0.13, {"haze": 0.2, "primary": -1.37}),
    ("agriculture", -1.89, {"haze": -0.4, "primary": 1.1, "water": 0.3, "none": 2.2}),
    (
        "road",
        -2.34,
        {"partly_cloudy": -0.3, "haze": -0.4, "primary": -0.2, "water": 0.5, "agriculture": 2.5, "none": 2.6},
    ),
    (
        "habitation",
        -3.1,
        {
            "partly_cloudy": -0.7,
            "haze": -0.7,
            "primary": -0.6,
            "water": 0.2,
            "agriculture": 1.0,
            "road": 2.3,
            "none": -1.2,
        },
    ),
    (
        "cultivation",
        -4.87,
        {
            "partly_cloudy": -0.3,
            "haze": -0.5,
            "primary": 1.9,
            "agriculture": 2.4,
            "road": -0.9,
            "habitation": 0.6,
            "none": -1.5,
        },
    ),
    (
        "bare_ground",
        -2.37,
        {
            "partly_cloudy": -0.8,
            "haze": -0.5,
            "primary": -1.7,
            "agriculture": -0.9,
            "road": 1.2,
            "habitation": 0.4,
            "cultivation": 0.2,
            "none": 5.6,
        },
    ),
    (
        "conventional_mine",
        -6.38,
        {
            "partly_cloudy": 0.7,
            "haze": -0.7,
            "agriculture": -1.5,
            "road": 1.8,
            "habitation": 1.2,
            "cultivation": -0.9,
            "bare_ground": 0.8,
        },
    ),
    (
        "artisinal_mine",
        -6.65,
        {
            "partly_cloudy": -0.9,
            "haze": -1.7,
            "primary": 0.5,
            "water": 3.3,
            "agriculture": -1.5,
            "road": 0.9,
            "habitation": -0.4,
            "cultivation": -0.4,
            "bare_ground": 1.4,
            "conventional_mine": 0.7,
        },
    ),
    (
        "slash_burn",
        -6.86,
        {
            "partly_cloudy": -0.2,
            "haze": -1.1,
            "primary": 1.1,
            "water": -0.6,
            "agriculture": 0.3,
            "road": -0.8,
            "habitation": 0.6,
            "cultivation": 2.2,
            "bare_ground": 0.9,
        },
    ),
    (
        "selective_logging",
        -6.4,
        {
            "partly_cloudy": -1.0,
            "haze": -1.5,
            "primary": 1.7,
            "water": -0.8,
            "agriculture": -1.9,
            "road": 2.3,
            "habitation": -1.7,
            "cultivation": 0.9,
            "conventional_mine": -0.9,
            "artisinal_mine": 0.3,
        },
    ),
    (
        "blooming",
        -5.13,
        {
            "partly_cloudy": -1.5,
            "haze": -1.7,
            "primary": 1.1,
            "water": -1.2,
            "agriculture": -1.1,
            "road": -1.2,
            "habitation": -0.9,
            "cultivation": 0.5,
            "bare_ground": -0.5,
            "artisinal_mine": -0.7,
            "selective_logging": 0.8,
        },
    ),
    (
        "blow_down",
        -6.26,
        {
            "partly_cloudy": -0.5,
            "haze": -1.6,
            "primary": 0.8,
            "water": -1.5,
            "agriculture": 0.2,
            "road": -1.8,
            "habitation": -0.2,
            "cultivation": -0.4,
            "bare_ground": 0.7,
            "slash_burn": 0.8,
        },
    ),
)

# A stand of trees must be there for these to be seen in.
_IN_FOREST = frozenset({"blooming", "blow_down", "selective_logging", "slash_burn"})


def draw_labels(rng: np.random.Generator) -> tuple[str, ...]:
    """One label set, sorted; exactly one weather label, and nothing beside cloudy.

    Takes the same number of values from `rng` whatever comes out.
    """
    weather_draw, *ground_draws = rng.random(1 + len(_GROUND))
    bounds = np.cumsum(list(WEATHER.values()))
    weather = list(WEATHER)[min(int(np.searchsorted(bounds, weather_draw)), len(WEATHER) - 1)]
    if weather == "cloudy":
        return (weather,)
    present = {weather}
    for (label, base, effects), draw in zip(_GROUND, ground_draws, strict=True):
        if label in _IN_FOREST and "primary" not in present:
            continue
        known = present if len(present) > 1 else present | {"none"}
        log_odds = base + sum(effect for other, effect in effects.items() if other in known)
        if draw < 1 / (1 + math.exp(-log_odds)):
            present.add(label)
    if len(present) == 1:
        present.add("bare_ground")
    return tuple(sorted(present))
