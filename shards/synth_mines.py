"""What is dug out and cut down on a made chip: both kinds of mines and selective logging."""

from __future__ import annotations

import numpy as np

from shards.synth_canvas import Canvas, Colour, inside, winding_path

_TAILINGS: tuple[Colour, ...] = ((0.84, 0.70, 0.45, 0.55), (0.80, 0.66, 0.50, 0.54), (0.86, 0.76, 0.56, 0.58))
_PONDS: tuple[Colour, ...] = ((0.62, 0.66, 0.46, 0.16), (0.70, 0.57, 0.26, 0.15), (0.50, 0.62, 0.55, 0.13))
_PITS: tuple[Colour, ...] = ((0.60, 0.57, 0.54, 0.42), (0.66, 0.54, 0.46, 0.44), (0.70, 0.66, 0.60, 0.48))


def draw_conventional_mine(canvas: Canvas) -> None:
    """One large open pit: terraces as nested rings, dark faces between them, at times a pool at the bottom."""
    rng = canvas.rng
    radius = rng.uniform(0.2, 0.32)
    x, y = canvas.free_spot(radius)
    far = canvas.distance(x, y, radius, 0.55, rng.uniform(1.0, 1.4))
    mask = np.clip((1 - far) * 14, 0, 1) * (1 - 0.7 * canvas.water_HW)
    spoil = np.clip((1.25 - far + 0.12 * canvas.noise(10, 2)) * 5, 0, 1) * (1 - canvas.water_HW)
    colour = canvas.colour(*_PITS)
    canvas.paint(0.8 * spoil, canvas.colour(colour), np.float32(0.08) * canvas.noise(30, 2))
    steps = int(rng.integers(5, 9))
    level = far * np.float32(steps)
    within = level - np.floor(level)
    # Each terrace is a flat, pale bench that ends in a dark face on the side of the pit.
    face = np.clip(1 - np.abs(within - 0.12) * 8, 0, 1)
    face *= canvas.patch(canvas.noise(6), 0.8, 0.8)
    tone = np.float32(0.3) * (np.floor(level) / steps - 0.5) - np.float32(0.5) * face
    canvas.paint(mask, colour, tone + np.float32(0.05) * canvas.noise(60))
    if rng.random() < 0.6:
        pool = np.clip((rng.uniform(0.22, 0.36) - far) * 20, 0, 1)
        canvas.paint(pool, canvas.colour((0.22, 0.42, 0.42, 0.10), (0.13, 0.16, 0.18, 0.07)))
    canvas.claim(mask)


def draw_artisinal_mine(canvas: Canvas) -> None:
    """Washed-out yellow sand with milky ponds, along the river where there is one."""
    rng = canvas.rng
    if canvas.banks:
        path = canvas.banks[0]
    else:
        path = winding_path(rng, canvas.free_spot(0.25), rng.uniform(0, 2 * np.pi), 0.9, 0.5)
    line = inside(path, 0.06)
    length = int(rng.uniform(0.45, 0.9) * len(line))
    start = int(rng.integers(len(line) - length + 1))
    reach = line[start : start + length]
    count = int(rng.integers(9, 20))
    centres = reach[rng.integers(len(reach), size=count)] + rng.normal(0, 0.035, (count, 2))
    radii = rng.uniform(8, 19, count)
    sand = canvas.soften(canvas.dots(centres, radii), 6)
    sand = canvas.ragged(np.maximum(sand, canvas.strokes([reach], 9)), 0.5, 30)
    canvas.paint(sand, canvas.colour(*_TAILINGS), np.float32(0.08) * canvas.noise(45, 2))
    for part in range(2):
        own = slice(part, None, 2)
        ponds = centres[own] + rng.normal(0, 0.012, centres[own].shape)
        mask = canvas.ragged(canvas.soften(canvas.dots(ponds, 0.5 * radii[own]), 4), 0.4, 40)
        canvas.paint(mask, canvas.colour(*_PONDS, spread=0.1))
    canvas.claim(sand)


def draw_selective_logging(canvas: Canvas) -> None:
    """Thin winding skid tracks that branch under the canopy, with small landings and gaps along them."""
    rng = canvas.rng
    heading = rng.uniform(0, 2 * np.pi)
    bend = rng.uniform(0.25, 0.5)
    trunks = [winding_path(rng, canvas.free_spot(0.2), heading + turn, 0.7, bend) for turn in range(4)]
    trunk = min(trunks, key=lambda path: float(canvas.at(canvas.taken_HW, inside(path)).mean()))
    tracks = [trunk]
    for _ in range(int(rng.integers(4, 9))):
        on_chip = inside(trunk, 0.1)
        joint = on_chip[int(rng.integers(len(on_chip)))]
        turn = rng.uniform(0, 2 * np.pi)
        branch = winding_path(rng, (float(joint[0]), float(joint[1])), turn, 0.8, rng.uniform(0.2, 0.4))
        tracks.append(branch[len(branch) // 2 :][: int(rng.integers(20, 70))])
    under = 1 - canvas.taken_HW
    broken = canvas.patch(canvas.noise(20), 0.75, 0.6)
    lines = canvas.strokes(tracks, [1.8, *rng.uniform(1.0, 1.6, len(tracks) - 1)])
    canvas.paint(0.8 * lines * broken * under, canvas.colour((0.60, 0.47, 0.38, 0.46)))
    spots = inside(np.concatenate(tracks), 0.03)
    count = int(rng.integers(25, 60))
    spots = spots[rng.integers(len(spots), size=count)] + rng.normal(0, 0.015, (count, 2))
    dots = canvas.dots(spots, rng.uniform(0.9, 2.8, count)) * under
    canvas.paint(0.9 * dots, canvas.colour((0.66, 0.53, 0.43, 0.48)))
