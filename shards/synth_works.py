"""What people put on a made chip: fields, roads, roofs, crops, burnt patches."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from shards.synth_canvas import PIXELS, Canvas, Colour, Plane, Points, inside, winding_path

_FIELDS: tuple[Colour, ...] = (
    (0.42, 0.50, 0.30, 0.66),
    (0.50, 0.53, 0.36, 0.62),
    (0.60, 0.52, 0.40, 0.50),
    (0.56, 0.47, 0.37, 0.46),
    (0.34, 0.45, 0.28, 0.68),
)
_CROPS: tuple[Colour, ...] = ((0.50, 0.40, 0.36, 0.46), (0.46, 0.48, 0.30, 0.60), (0.54, 0.44, 0.38, 0.48))
_EARTH: tuple[Colour, ...] = ((0.72, 0.60, 0.47, 0.46), (0.74, 0.53, 0.42, 0.46), (0.76, 0.68, 0.58, 0.52))
_YARD: tuple[Colour, ...] = ((0.55, 0.48, 0.38, 0.48), (0.50, 0.46, 0.35, 0.52))
_ROOFS: tuple[Colour, ...] = ((0.96, 0.95, 0.92, 0.80), (0.90, 0.62, 0.46, 0.62), (0.80, 0.88, 0.95, 0.72))


def draw_agriculture(canvas: Canvas) -> None:
    """Large clearings: a block of straight-edged fields or an irregular pasture; most of a chip without forest."""
    low, high = (0.22, 0.5) if "primary" in canvas.labels else (0.7, 0.9)
    share = canvas.rng.uniform(low, high)
    if canvas.rng.random() < 0.6:
        _draw_fields(canvas, share)
    else:
        _draw_pasture(canvas, share)


def _draw_fields(canvas: Canvas, share: float) -> None:
    rng = canvas.rng
    turn = rng.uniform(0, np.pi)
    wobble = np.float32(0.006) * canvas.noise(6)
    along = canvas.x_HW * math.cos(turn) + canvas.y_HW * math.sin(turn) + wobble
    across = canvas.y_HW * math.cos(turn) - canvas.x_HW * math.sin(turn) + wobble
    rows = np.floor((across + 2) / rng.uniform(0.12, 0.3) + rng.random()).astype(int) % 32
    columns = np.floor((along + 2) / rng.uniform(0.14, 0.4, 32)[rows] + rng.random(32)[rows]).astype(int) % 32
    field_HW = rows * 32 + columns
    sizes = np.bincount(field_HW.ravel(), minlength=1024)
    focus_x, focus_y = canvas.free_spot(0.25)
    off = (canvas.x_HW - focus_x) ** 2 + (canvas.y_HW - focus_y) ** 2
    far = np.bincount(field_HW.ravel(), off.ravel(), 1024) / np.maximum(sizes, 1)
    order = np.argsort(np.sqrt(far) * rng.uniform(0.75, 1.25, 1024) + 9 * (sizes == 0))
    covered = np.cumsum(sizes[order]) / sizes.sum()
    chosen = order[: int(np.searchsorted(covered, share)) + 1]
    palette = np.zeros((1024, 5), np.float32)
    for number in chosen:
        palette[number] = (*canvas.colour(*_FIELDS, spread=0.06), 1)
    plan_5HW = palette[field_HW].transpose(2, 0, 1)
    mask = canvas.soften(plan_5HW[4], 2.5) * (1 - canvas.water_HW)
    texture = np.float32(0.03) * canvas.noise(90) + np.float32(0.04) * canvas.noise(6, 2)
    if rng.random() < 0.4:
        furrows = np.sin(along * np.float32(2 * np.pi * rng.uniform(25, 45)))
        texture += np.float32(0.05) * furrows
    # Between fields of the plan the softened mask reaches over pixels that have no colour: they keep the forest.
    canvas.bands_KHW += mask * plan_5HW[4] * (plan_5HW[:4] * (1 + texture) - canvas.bands_KHW)
    borders = ((field_HW != np.roll(field_HW, 1, 0)) | (field_HW != np.roll(field_HW, 1, 1))).astype(np.float32)
    border_colour: Colour = (0.24, 0.30, 0.20, 0.5) if rng.random() < 0.6 else (0.66, 0.6, 0.48, 0.5)
    canvas.paint(0.6 * borders * mask, canvas.colour(border_colour))
    canvas.claim(0.5 * mask)


def _draw_pasture(canvas: Canvas, share: float) -> None:
    rng = canvas.rng
    field = canvas.noise(rng.uniform(1.5, 3), 6)
    mask = canvas.patch(field - canvas.taken_HW, share, 0.12)
    mask = mask * (1 - canvas.water_HW)
    texture = np.float32(0.06) * canvas.noise(5, 3) + np.float32(0.04) * canvas.noise(100)
    canvas.paint(mask, canvas.colour(*_FIELDS), texture)
    canvas.paint(0.6 * mask * canvas.patch(canvas.noise(4, 2), 0.35, 0.5), canvas.colour(*_FIELDS))
    trees = canvas.dots(rng.uniform(0, 1, (60, 2)), rng.uniform(0.8, 2.2, 60))
    canvas.paint(0.8 * mask * trees, canvas.colour((0.20, 0.27, 0.19, 0.48)))
    canvas.claim(0.5 * mask)


def draw_roads(canvas: Canvas) -> None:
    """One to three light lines, straight with bends or winding, from edge to edge or branching off."""
    rng = canvas.rng
    heading = rng.uniform(0, 2 * np.pi)
    through = canvas.free_spot(0.12)
    for number in range(int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))):
        straight = rng.random() < 0.55
        swing = rng.uniform(0.02, 0.2) if straight else rng.uniform(0.4, 0.9)
        path = winding_path(rng, through, heading, swing, rng.uniform(0.5, 1.2))
        if number:
            path = path[len(path) // 2 :]
        canvas.roads.append(path)
        on_chip = inside(path, 0.1)
        if len(on_chip):
            through = tuple(on_chip[int(rng.integers(len(on_chip)))].tolist())
        heading += rng.choice([-1, 1]) * rng.uniform(1.0, 2.0)
    widths = [rng.uniform(2.6, 4.2), *rng.uniform(1.6, 3.0, len(canvas.roads) - 1)]
    # A river is bridged, a lake is not crossed.
    dry: Plane = 1 - np.clip(canvas.soften(canvas.water_HW, 40) * 2 - 1, 0, 1) * canvas.water_HW
    verge = canvas.ragged(canvas.soften(canvas.strokes(canvas.roads, [4 * w for w in widths]), 6))
    verge_colour = canvas.colour((0.42, 0.44, 0.31, 0.56))
    canvas.paint(0.55 * verge * (1 - canvas.water_HW), verge_colour, np.float32(0.08) * canvas.noise(80))
    line = canvas.strokes(canvas.roads, widths) * dry
    canvas.paint(0.95 * line, canvas.colour(*_EARTH), np.float32(0.05) * canvas.noise(40))
    canvas.claim(0.7 * line)


def draw_habitation(canvas: Canvas) -> None:
    """Small bright roofs in yards: along the roads, else on the river, else around a free place."""
    rng = canvas.rng
    town = rng.random() < 0.35
    count = int(rng.integers(110, 220)) if town else int(rng.integers(20, 60))
    depth = rng.uniform(4, 26 if town else 10, count) / PIXELS
    axis, turn = _street(canvas, 0.42 if town else 0.3)
    side = np.stack([-np.sin(turn), np.cos(turn)], axis=1)
    if canvas.banks and not canvas.roads:
        # The middle of a river is no street: of many places those are kept that are dry and nearest to it.
        depth = np.sort(rng.uniform(4, 60, 8 * count)) / PIXELS
    pick = rng.integers(len(axis), size=len(depth))
    spots = axis[pick] + side[pick] * (depth * rng.choice([-1, 1], len(depth)))[:, None]
    spots += rng.normal(0, 0.006, spots.shape)
    keep = (canvas.at(canvas.water_HW, spots) < 0.05) & ((spots > 0.01) & (spots < 0.99)).all(axis=1)
    spots, pick = spots[keep][:count], pick[keep][:count]
    if not len(spots):
        spots, pick = np.asarray([canvas.free_spot(0.05)]), np.zeros(1, int)
    yards = canvas.ragged(canvas.soften(canvas.dots(spots, np.full(len(spots), 6.5)), 5), 0.3)
    canvas.paint(0.75 * yards * (1 - canvas.water_HW), canvas.colour(*_YARD), np.float32(0.1) * canvas.noise(80))
    halves = rng.uniform(1.1, 2.6, (len(spots), 2)) / PIXELS
    roofs = [_rectangle(*item) for item in zip(spots, turn[pick], halves, strict=True)]
    kinds = rng.choice(len(_ROOFS), len(roofs), p=[0.6, 0.25, 0.15])
    shadow = canvas.polygons([roof + 1.2 / PIXELS for roof in roofs])
    canvas.paint(0.6 * shadow, (0.12, 0.13, 0.14, 0.2))
    for kind in np.unique(kinds):
        mask = canvas.polygons([roof for roof, own in zip(roofs, kinds, strict=True) if own == kind])
        canvas.paint(mask, canvas.colour(_ROOFS[int(kind)], spread=0.05))
    canvas.claim(yards)


def _street(canvas: Canvas, length: float) -> tuple[Points, NDArray[np.float64]]:
    """Points (P, 2) along which houses stand, with the direction there (P,) in radians."""
    rng = canvas.rng
    for paths in (canvas.roads, canvas.banks):
        dry = [path for path in paths if len(inside(path, 0.08)) > 4]
        if dry:
            path = dry[int(rng.integers(len(dry)))]
            break
    else:
        path = winding_path(rng, canvas.free_spot(0.15), rng.uniform(0, 2 * np.pi), 0.2, 1.0)
    turn = np.arctan2(*np.gradient(path, axis=0).T[::-1])
    within = ((path > 0.08) & (path < 0.92)).all(axis=1)
    path, turn = path[within], turn[within]
    taken = canvas.at(canvas.taken_HW, path) + rng.uniform(0, 0.5, len(path))
    centre = path[int(np.argmin(taken))]
    near = np.abs(path - centre).max(axis=1) < length / 2
    return path[near], turn[near]


def _rectangle(centre: Points, turn: float, halves: Points) -> Points:
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * halves
    cosine, sine = math.cos(turn), math.sin(turn)
    rectangle: Points = centre + corners @ np.array([[cosine, sine], [-sine, cosine]])
    return rectangle


def draw_cultivation(canvas: Canvas) -> None:
    """Small patches of mixed crops, a handful near one another, near the houses or the road where there are any."""
    rng = canvas.rng
    x, y = canvas.free_spot(0.14)
    lines = [inside(path, 0.15) for path in (*canvas.roads, *canvas.banks)]
    near = [line for line in lines if len(line)]
    for _ in range(int(rng.integers(4, 10))):
        patch = np.asarray(canvas.free_spot(0.05)) if rng.random() < 0.15 else rng.normal((x, y), 0.13)
        if near and rng.random() < 0.5:
            line = near[int(rng.integers(len(near)))]
            patch = line[int(rng.integers(len(line)))] + rng.normal(0, 0.06, 2)
        centre = np.clip(patch, 0.06, 0.94)
        halves = rng.uniform(0.025, 0.055, 2)
        quad = _rectangle(centre, rng.uniform(0, np.pi), halves) + rng.normal(0, 0.008, (4, 2))
        mask = canvas.ragged(canvas.soften(canvas.polygons([quad]), 3)) * (1 - canvas.water_HW)
        rows = np.float32(0.16) * canvas.noise(75)
        canvas.paint(0.9 * mask, canvas.colour(*_CROPS, spread=0.1), rows)
        canvas.claim(mask)


def draw_slash_burn(canvas: Canvas) -> None:
    """One to three burnt clearings: nearly black with streaks of ash, inside a rim of light soil."""
    rng = canvas.rng
    for number in range(int(rng.integers(1, 4))):
        half = rng.uniform(0.09, 0.15) * 0.75**number
        x, y = canvas.free_spot(half)
        halves = half * rng.uniform(0.7, 1.2, 2)
        quad = _rectangle(np.array([x, y]), rng.uniform(0, np.pi), halves) + rng.normal(0, half / 6, (4, 2))
        rim = canvas.soften(np.maximum(canvas.polygons([quad]), canvas.strokes([quad[[0, 1, 2, 3, 0]]], 9)), 3)
        burnt = canvas.ragged(canvas.soften(canvas.polygons([quad]), 3))
        canvas.paint(canvas.ragged(rim), canvas.colour((0.60, 0.49, 0.38, 0.46)), np.float32(0.1) * canvas.noise(60))
        canvas.paint(burnt, canvas.colour((0.11, 0.09, 0.09, 0.14)), np.float32(0.2) * canvas.noise(50))
        ash = burnt * canvas.patch(canvas.noise(14, 3), 0.2, 0.6)
        canvas.paint(0.6 * ash, canvas.colour((0.38, 0.34, 0.33, 0.3)))
        canvas.claim(np.maximum(burnt, rim))
