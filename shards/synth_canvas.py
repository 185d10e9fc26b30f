"""A canvas for made chips: noise, masks of lines and patches, and paint in four bands.

Lengths are fractions of the chip's side and widths are pixels of a 256-pixel chip, so that a scene looks the
same at any size.

Shape suffixes: H, W rows and columns; K bands, in the order red, green, blue, near-infrared; P points (x, y).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Plane = NDArray[np.float32]
Points = NDArray[np.float64]
Colour = tuple[float, float, float, float]

PIXELS = 256  # the side of a chip in which stroke widths and radii are given


class Canvas:
    """One chip while it is drawn.

    Args:
        size: side in pixels.
        labels: the label set of the scene: how far one thing spreads depends on what else is there.
        rng: the source of the next random choices; each layer of a scene sets its own.

    Attributes:
        bands_KHW: float32 (4, size, size), red, green, blue and near-infrared; 0 is black, 1 a white cloud.
        taken_HW: float32 (size, size), 1 where something is shown that must not be covered.
        water_HW: float32 (size, size), 1 on water.
        roads: the paths of the roads, each (P, 2).
        banks: the paths of the rivers, each (P, 2).
    """

    def __init__(self, size: int, labels: Collection[str], rng: np.random.Generator) -> None:
        self.size = size
        self.labels = frozenset(labels)
        self.rng = rng
        self.bands_KHW = np.zeros((4, size, size), np.float32)
        self.taken_HW = np.zeros((size, size), np.float32)
        self.water_HW = np.zeros((size, size), np.float32)
        self.roads: list[Points] = []
        self.banks: list[Points] = []
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.x_HW, self.y_HW = np.meshgrid(axis, axis)

    def noise(self, cells: float, octaves: int = 1) -> Plane:
        """Smooth noise of about unit variance: `cells` bumps along a side, then twice as many, half as high.

        Returns:
            float32 (size, size).
        """
        total = np.zeros((self.size, self.size), np.float32)
        for octave in range(octaves):
            # At most two pixels a bump: a finer grid would only be blurred away again.
            side = max(2, min(round(cells * 2**octave), self.size // 2)) + 3
            grid = Image.fromarray(self.rng.standard_normal((side, side), dtype=np.float32))
            shift_x, shift_y = self.rng.random(2)
            box = (1 + shift_x, 1 + shift_y, side - 2 + shift_x, side - 2 + shift_y)
            bumps = grid.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
            total += np.asarray(bumps) * np.float32(1.3 / 2**octave)
        return total

    def patch(self, field_HW: Plane, share: float, softness: float = 0.15) -> Plane:
        """The highest `share` of a field as a mask in [0, 1] with an edge `softness` of the field wide."""
        level = np.quantile(field_HW[::4, ::4], 1 - share)
        mask: Plane = np.clip((field_HW - np.float32(level)) / np.float32(softness) + np.float32(0.5), 0, 1)
        return mask

    def blob(self, x: float, y: float, radius: float, roughness: float = 0.4, stretch: float = 1.0) -> Plane:
        """An irregular disc around (x, y) as a mask in [0, 1]."""
        mask: Plane = np.clip((1 - self.distance(x, y, radius, roughness, stretch)) * 6 + 0.5, 0, 1)
        return mask

    def distance(self, x: float, y: float, radius: float, roughness: float, stretch: float = 1.0) -> Plane:
        """The distance from (x, y) in radii, roughened by noise, longer one way by `stretch`."""
        turn = self.rng.uniform(0, np.pi)
        along = (self.x_HW - x) * math.cos(turn) + (self.y_HW - y) * math.sin(turn)
        across = (self.y_HW - y) * math.cos(turn) - (self.x_HW - x) * math.sin(turn)
        far = np.hypot(along / stretch, across * stretch) / np.float32(radius)
        rough: Plane = far + np.float32(0.35 * roughness) * self.noise(0.8 / radius, 4)
        return rough

    def strokes(self, paths: Sequence[Points], width: float | Sequence[float]) -> Plane:
        """Lines as a mask in [0, 1].

        Args:
            paths: each (P, 2).
            width: in pixels of a 256-pixel chip, for all or for each path.
        """
        widths = [width] * len(paths) if isinstance(width, int | float) else width
        sheet, pen, scale = self._sheet()
        for path, path_width in zip(paths, widths, strict=True):
            pixels = max(1, round(path_width * scale / PIXELS))
            points = [(float(x), float(y)) for x, y in path * scale]
            pen.line(points, fill=255, width=pixels)
            if pixels > 6:  # Pillow's wide lines gape at bends: discs, as dense as the width needs, fill them.
                half = pixels / 2
                for x, y in points[:: max(1, pixels // 16)] + points[-1:]:
                    pen.ellipse((x - half, y - half, x + half, y + half), fill=255)
        return self._mask(sheet)

    def polygons(self, shapes: Sequence[Points]) -> Plane:
        """Filled polygons, each (P, 2), as a mask in [0, 1]."""
        sheet, pen, scale = self._sheet()
        for shape in shapes:
            pen.polygon([(float(x), float(y)) for x, y in shape * scale], fill=255)
        return self._mask(sheet)

    def dots(self, centres: Points, radii: NDArray[np.float64]) -> Plane:
        """Discs at (P, 2) with radii (P,) in pixels of a 256-pixel chip, as a mask in [0, 1]."""
        sheet, pen, scale = self._sheet()
        for (x, y), radius in zip(centres * scale, radii * scale / PIXELS, strict=True):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        return self._mask(sheet)

    def ragged(self, mask_HW: Plane, amount: float = 0.35, cells: float = 60) -> Plane:
        """A mask with its soft edge frayed; where it is 0 or 1 it stays so."""
        edge = 4 * mask_HW * (1 - mask_HW)
        frayed: Plane = (mask_HW + amount * self.noise(cells) * edge - 0.5) * 2 + 0.5
        np.clip(frayed, 0, 1, out=frayed)
        return frayed

    def soften(self, mask_HW: Plane, pixels: float) -> Plane:
        """A mask blurred over about `pixels` of a 256-pixel chip."""
        side = max(4, round(PIXELS / pixels))
        small = Image.fromarray(mask_HW).resize((side, side), Image.Resampling.BILINEAR)
        large = np.asarray(small.resize((self.size, self.size), Image.Resampling.BICUBIC), np.float32)
        return large.clip(0, 1)

    def paint(self, mask_HW: Plane, colour: Colour, texture_HW: Plane | None = None) -> None:
        """Covers what is there.

        Args:
            mask_HW: float32 (size, size) in [0, 1], the cover's opacity.
            colour: red, green, blue, near-infrared.
            texture_HW: float32 (size, size), relative brightness around 0.
        """
        target = np.asarray(colour, np.float32)[:, None, None]
        if texture_HW is not None:
            target = target * (1 + texture_HW)
        self.bands_KHW += mask_HW * (target - self.bands_KHW)

    def claim(self, mask_HW: Plane) -> None:
        """Marks what later layers should leave in sight."""
        np.maximum(self.taken_HW, mask_HW, out=self.taken_HW)

    def free_spot(self, radius: float) -> tuple[float, float]:
        """A place for something of that radius, on the least taken of a few random ones."""
        margin = min(0.75 * radius + 0.02, 0.4)
        spots = self.rng.uniform(margin, 1 - margin, (24, 2))
        costs = [self._taken_share(x, y, radius) for x, y in spots]
        x, y = spots[int(np.argmin(costs))]
        return float(x), float(y)

    def at(self, plane_HW: Plane, points: Points) -> NDArray[np.float32]:
        """The plane's values (P,) at points (P, 2), each moved into the chip."""
        columns, rows = np.clip((points * self.size).astype(int), 0, self.size - 1).T
        values: NDArray[np.float32] = plane_HW[rows, columns]
        return values

    def colour(self, *choices: Colour, spread: float = 0.08) -> Colour:
        """One of the colours, a little lighter or darker and a little off in each band."""
        chosen = np.asarray(choices[int(self.rng.integers(len(choices)))])
        shift = (1 + self.rng.normal(0, spread)) * (1 + self.rng.normal(0, spread / 3, 4))
        red, green, blue, infrared = np.clip(chosen * shift, 0.01, 1).tolist()
        return red, green, blue, infrared

    def _taken_share(self, x: float, y: float, radius: float) -> float:
        low_x, high_x = (int(np.clip(edge, 0, 1) * self.size) for edge in (x - radius, x + radius))
        low_y, high_y = (int(np.clip(edge, 0, 1) * self.size) for edge in (y - radius, y + radius))
        return float(self.taken_HW[low_y : high_y + 1, low_x : high_x + 1].mean())

    def _sheet(self) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
        # Drawn larger and averaged: Pillow's lines have hard edges.
        factor = 2 if self.size >= 128 else 4
        sheet = Image.new("L", (self.size * factor, self.size * factor))
        return sheet, ImageDraw.Draw(sheet), self.size * factor

    def _mask(self, sheet: Image.Image) -> Plane:
        return np.asarray(sheet.reduce(sheet.width // self.size), np.float32) / np.float32(255)


def winding_path(
    rng: np.random.Generator, through: tuple[float, float], heading: float, swing: float, wavelength: float
) -> Points:
    """A path (P, 2) through a point that leaves the chip at both ends.

    The direction swings as a sine of the way along it, which is the shape of river meanders (Langbein and
    Leopold 1966), around a heading that drifts.

    Args:
        through: a point (x, y) inside the chip.
        heading: mean direction in radians.
        swing: amplitude of the direction in radians; 0 is nearly straight, 1.6 makes loops.
        wavelength: length of a bend along the path.
    """
    step = 1 / 128
    way = np.arange(0, 2.4, step)
    halves = []
    for side in (0.0, np.pi):
        phase = rng.uniform(0, 2 * np.pi)
        drift = np.cumsum(rng.normal(0, 0.03, way.size))
        wave = 2 * np.pi * way / (wavelength * rng.uniform(0.8, 1.25))
        angle = heading + side + swing * np.sin(wave + phase) * (0.7 + 0.3 * np.sin(wave / 3)) + drift * swing
        halves.append(np.cumsum(step * np.stack([np.cos(angle), np.sin(angle)], axis=1), axis=0))
    backward, forward = halves[1][::-1], halves[0]
    path: Points = np.asarray(through) + np.concatenate([backward, np.zeros((1, 2)), forward])
    return path


def inside(points: Points, margin: float = 0.02) -> Points:
    """Those of the points (P, 2) that lie in the chip."""
    kept: Points = points[((points > margin) & (points < 1 - margin)).all(axis=1)]
    return kept
