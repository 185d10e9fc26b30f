"""What nature puts on a made chip: forest, grassland, water, bare ground, blooming crowns, felled trees."""

from __future__ import annotations

import math

import numpy as np

from shards.synth_canvas import Canvas, Colour, Plane, Points, inside, winding_path

_FOREST: tuple[Colour, ...] = ((0.19, 0.26, 0.21, 0.43), (0.17, 0.24, 0.22, 0.41), (0.21, 0.26, 0.19, 0.46))
_GRASS: tuple[Colour, ...] = ((0.40, 0.41, 0.28, 0.52), (0.34, 0.39, 0.27, 0.56), (0.44, 0.41, 0.31, 0.47))
_BROWN_WATER: tuple[Colour, ...] = ((0.46, 0.38, 0.27, 0.11), (0.40, 0.36, 0.29, 0.10))
_DARK_WATER: tuple[Colour, ...] = ((0.07, 0.10, 0.13, 0.05), (0.09, 0.13, 0.19, 0.05), (0.12, 0.19, 0.20, 0.07))
_SAND: tuple[Colour, ...] = ((0.72, 0.64, 0.53, 0.60), (0.66, 0.55, 0.44, 0.56))
_BARE: tuple[Colour, ...] = ((0.74, 0.66, 0.58, 0.60), (0.68, 0.56, 0.50, 0.55), (0.80, 0.74, 0.64, 0.66))
_BLOSSOM: tuple[Colour, ...] = ((0.82, 0.74, 0.22, 0.62), (0.84, 0.52, 0.66, 0.64), (0.86, 0.85, 0.78, 0.68))


def draw_forest(canvas: Canvas) -> None:
    """Closed canopy over the whole chip: crowns lit from one side, stands lighter and darker."""
    crowns = canvas.noise(canvas.rng.uniform(70, 110), 2)
    step = max(1, round(canvas.size / 128))
    lit = crowns - np.roll(crowns, (step, step), (0, 1))
    relief = canvas.noise(canvas.rng.uniform(3, 8), 2)
    depth = np.float32(canvas.rng.uniform(0.10, 0.16))
    texture = depth * lit + np.float32(0.05) * relief + np.float32(0.05) * crowns
    canvas.paint(np.ones_like(crowns), canvas.colour(*_FOREST), texture.clip(-0.6, 0.9))


def draw_grassland(canvas: Canvas) -> None:
    """Open land without a label of its own: smooth, with a few tones of green and straw."""
    tone = canvas.noise(4, 3)
    fine = canvas.noise(90)
    texture = np.float32(0.07) * tone + np.float32(0.04) * fine
    canvas.paint(np.ones_like(tone), canvas.colour(*_GRASS), texture.clip(-0.4, 0.4))
    canvas.paint(0.5 * canvas.patch(canvas.noise(5, 2), 0.3, 0.6), canvas.colour(*_GRASS))


def draw_water(canvas: Canvas) -> None:
    """A river, a lake or a shore; most of the chip where nothing else could cover the ground."""
    rng = canvas.rng
    form = rng.choice(["river", "lake", "shore"], p=[0.66, 0.2, 0.14])
    if not canvas.labels & {"primary", "agriculture", "bare_ground"}:
        mask = _shore(canvas, rng.uniform(0.6, 0.92))
    elif "artisinal_mine" in canvas.labels or form == "river":
        mask = _river(canvas)
    elif form == "lake":
        x, y = rng.uniform(0.25, 0.75, 2)
        mask = canvas.blob(x, y, rng.uniform(0.12, 0.26), 0.5, rng.uniform(1, 1.5))
    else:
        mask = _shore(canvas, rng.uniform(0.2, 0.45))
    brown = rng.random() < 0.5
    colour = canvas.colour(*(_BROWN_WATER if brown else _DARK_WATER), spread=0.12)
    if rng.random() < 0.4:
        banks = np.clip(canvas.soften(mask, 14) * 2.2, 0, 1) * canvas.patch(canvas.noise(7), 0.4, 0.4)
        canvas.paint(0.8 * banks, canvas.colour(*_SAND))
    canvas.paint(mask, colour, np.float32(0.025) * canvas.noise(5, 2))
    canvas.water_HW = np.maximum(canvas.water_HW, mask)
    canvas.claim(mask)


def _river(canvas: Canvas) -> Plane:
    rng = canvas.rng
    through = tuple(rng.uniform(0.3, 0.7, 2).tolist())
    width = float(np.exp(rng.uniform(np.log(8), np.log(42))))
    wavelength = rng.uniform(0.3, 0.6) + width / 80
    heading = rng.uniform(0, 2 * np.pi)
    path = winding_path(rng, through, heading, rng.uniform(0.4, 1.3), wavelength)
    canvas.banks.append(path)
    paths, widths = [path], [width]
    if rng.random() < 0.3:
        mouth = inside(path)[int(rng.integers(len(inside(path))))]
        arm = winding_path(rng, tuple(mouth), heading + rng.uniform(1.1, 2.0), 0.8, wavelength * 0.7)
        paths.append(arm[len(arm) // 2 :])
        widths.append(max(3.0, width * 0.4))
    return canvas.ragged(canvas.soften(canvas.strokes(paths, widths), 3), 0.3, 40)


def _shore(canvas: Canvas, share: float) -> Plane:
    turn = canvas.rng.uniform(0, 2 * np.pi)
    slope = canvas.x_HW * math.cos(turn) + canvas.y_HW * math.sin(turn)
    return canvas.patch(slope + np.float32(0.07) * canvas.noise(3, 3), share, 0.012)


def draw_bare_ground(canvas: Canvas) -> None:
    """Pale soil or rock without plants: a few irregular patches, or most of a chip that nothing else covers."""
    rng = canvas.rng
    if not canvas.labels & {"primary", "agriculture", "water"}:
        mask = canvas.patch(canvas.noise(3, 3), rng.uniform(0.65, 0.95), 0.2)
    else:
        mask = np.zeros_like(canvas.taken_HW)
        radius = rng.uniform(0.09, 0.17)
        for _ in range(int(rng.integers(1, 4))):
            x, y = canvas.free_spot(radius)
            mask = np.maximum(mask, canvas.blob(x, y, radius, 0.8, rng.uniform(1, 1.4)))
            radius *= rng.uniform(0.5, 0.8)
    mask = mask * (1 - canvas.water_HW)
    texture = np.float32(0.05) * canvas.noise(8, 3) + np.float32(0.03) * canvas.noise(100)
    canvas.paint(mask, canvas.colour(*_BARE), texture)
    canvas.claim(mask)


def draw_blooming(canvas: Canvas) -> None:
    """Scattered flowering crowns, yellow, pink or white, standing out of the canopy."""
    rng = canvas.rng
    count = int(rng.integers(70, 200))
    crowns = _in_canopy(canvas, rng.uniform(0, 1, (2 * count, 2)))[:count]
    colour = canvas.colour(*_BLOSSOM)
    for share, strength in ((0.4, 0.95), (1.0, 0.65)):
        chosen = crowns[rng.random(len(crowns)) < share]
        mask = canvas.dots(chosen, rng.uniform(1.4, 3.2, len(chosen)))
        canvas.paint(strength * mask, colour, np.float32(0.12) * canvas.noise(100))


def draw_blow_down(canvas: Canvas) -> None:
    """A fan of trees felled by a storm: they lie away from one point, pale stems on thinned canopy."""
    rng = canvas.rng
    length, aperture = rng.uniform(0.5, 0.72), rng.uniform(0.4, 0.7)
    x, y = canvas.free_spot(length / 2)
    heading = rng.uniform(0, 2 * np.pi)
    tip = np.array([x, y]) - 0.5 * length * np.array([np.cos(heading), np.sin(heading)])
    away_x, away_y = canvas.x_HW - tip[0], canvas.y_HW - tip[1]
    turn = np.abs(np.angle(np.exp(1j * (np.arctan2(away_y, away_x) - heading))))
    edge = np.maximum(turn / aperture, np.sqrt(away_x**2 + away_y**2) / length)
    fan: Plane = np.clip((1 - edge.astype(np.float32) + 0.07 * canvas.noise(12, 2)) * 6, 0, 1)
    fan *= 1 - canvas.taken_HW
    canvas.paint(0.75 * fan, canvas.colour((0.37, 0.36, 0.28, 0.42)), np.float32(0.1) * canvas.noise(70, 2))
    count = int(rng.integers(150, 260))
    angle = heading + rng.uniform(-aperture, aperture, count)
    far = length * np.sqrt(rng.uniform(0.02, 0.95, count))
    foot = tip + far[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lie = angle + rng.normal(0, 0.15, count)
    stems = foot[:, None] + np.array([0, 1])[:, None] * (
        rng.uniform(0.025, 0.07, (count, 1, 1)) * np.stack([np.cos(lie), np.sin(lie)], axis=1)[:, None]
    )
    canvas.paint(0.85 * fan * canvas.strokes(list(stems), 1.3), canvas.colour((0.72, 0.65, 0.54, 0.5)))
    canvas.claim(fan)


def _in_canopy(canvas: Canvas, points: Points) -> Points:
    kept: Points = points[canvas.at(canvas.taken_HW, points) < 0.3]
    return kept
