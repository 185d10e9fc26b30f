"""What lies between the ground and the camera of a made chip: light, haze, clouds and their shadows."""

from __future__ import annotations

import numpy as np

from shards.synth_canvas import Canvas, Colour, Plane

_VEIL: tuple[Colour, ...] = ((0.60, 0.65, 0.63, 0.58), (0.66, 0.67, 0.62, 0.60), (0.56, 0.64, 0.67, 0.56))
_COVER: tuple[Colour, ...] = ((0.66, 0.67, 0.63, 0.68), (0.62, 0.61, 0.58, 0.64), (0.70, 0.74, 0.73, 0.72))
_WHITE: tuple[Colour, ...] = ((0.95, 0.95, 0.94, 0.92), (0.92, 0.91, 0.87, 0.90))


def light(canvas: Canvas) -> None:
    """The sun's height and the colour cast of a scene, as the processing of its strip left them."""
    rng = canvas.rng
    gain = np.exp(rng.normal(0, 0.12) + rng.normal(0, [0.05, 0.03, 0.04, 0.05])).astype(np.float32)
    canvas.bands_KHW *= gain[:, None, None]
    thin = rng.uniform(0, 0.12)
    canvas.paint(np.full_like(canvas.water_HW, thin), canvas.colour(*_VEIL))


def draw_haze(canvas: Canvas) -> None:
    """A veil over the whole chip, a little thicker here and there: bright and low in contrast, but not opaque."""
    veil = canvas.rng.uniform(0.42, 0.62) + np.float32(0.05) * canvas.noise(2, 3)
    canvas.paint(veil.clip(0.3, 0.75).astype(np.float32), canvas.colour(*_VEIL, spread=0.04))


def draw_scattered_clouds(canvas: Canvas) -> None:
    """White clouds apart from one another, each with its shadow to the same side."""
    rng = canvas.rng
    share = rng.uniform(0.08, 0.32)
    margin = 0.16
    # Shadows fall from clouds beyond the edge too: the field is that of a larger chip.
    wide = Canvas(round(canvas.size * (1 + 2 * margin)), (), rng)
    field = wide.noise(rng.uniform(2.5, 6), 5)
    edge = round(canvas.size * margin)
    turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.14)
    shift = [round(canvas.size * far * float(part)) for part in (np.cos(turn), np.sin(turn))]
    own = field[edge : edge + canvas.size, edge : edge + canvas.size]
    level = np.float32(np.quantile(own[::4, ::4], 1 - share))
    cast = field[edge + shift[1] :, edge + shift[0] :][: canvas.size, : canvas.size]
    shadow = canvas.soften(np.clip((cast - level) * 2 + 0.3, 0, 1), 5)
    canvas.bands_KHW *= 1 - np.float32(0.55) * shadow
    _paint_cloud(canvas, np.clip((own - level) * 1.5 + 0.35, 0, 1), own - level)


def draw_overcast(canvas: Canvas) -> None:
    """Cloud over everything: an even grey sheet or a heap with bright and dull parts."""
    rng = canvas.rng
    colour = canvas.colour(*_COVER, spread=0.1)
    heap = rng.uniform(0.01, 0.06) if rng.random() < 0.45 else rng.uniform(0.1, 0.2)
    texture = np.float32(heap) * canvas.noise(2, 5)
    everywhere = np.ones_like(canvas.water_HW)
    canvas.paint(everywhere, colour, texture)
    if heap > 0.1:
        field = canvas.noise(rng.uniform(1.5, 3), 5)
        _paint_cloud(canvas, canvas.patch(field, rng.uniform(0.2, 0.7), 0.9), field)


def _paint_cloud(canvas: Canvas, mask: Plane, height: Plane) -> None:
    texture = (np.float32(0.07) * height.clip(-1, 1) - np.float32(0.05)).astype(np.float32)
    canvas.paint(mask, canvas.colour(*_WHITE, spread=0.03), texture)
