"""Made ground with detail at every scale, and datasets of chips cut from it: which of them are related is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from shards.build import BuildOptions, build
from shards.labels import PLANET
from shards.reader import Dataset

SIDE = 32
Pixels = NDArray[np.uint8]


def ground(seed: int, height: int = SIDE, width: int = SIDE) -> Pixels:
    """Three bands (H, W, 3) of noise at 4, 8 and 16 pixels."""
    rng = np.random.default_rng(seed)
    total = rng.normal(0, 0.5, (height, width, 3))
    for scale in (4, 8, 16):
        coarse = rng.normal(0, 16, (height // scale + 2, width // scale + 2, 3))
        rows, columns = (np.arange(side) / scale for side in (height, width))
        total += _between(_between(coarse, rows, 0), columns, 1)
    return np.clip(110 + total, 0, 255).astype(np.uint8)


def _between(values: NDArray[np.float64], places: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    low = places.astype(int)
    part = (places - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return np.take(values, low, axis) * (1 - part) + np.take(values, low + 1, axis) * part


def mosaic(seed: int, rows: int, columns: int) -> dict[tuple[int, int], Pixels]:
    """Chips that lie side by side, by row and column."""
    whole = ground(seed, rows * SIDE, columns * SIDE)
    return {
        (row, column): whole[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
        for row in range(rows)
        for column in range(columns)
    }


def pack(folder: Path, chips: Mapping[str, Pixels], kind: str = "jpg", shard_bytes: int = 2**26) -> Dataset:
    """A dataset of chips by key, all labelled alike; as TIFF they have a fourth band and 16 bits."""
    images, out = folder / "images", folder / "dataset"
    images.mkdir(parents=True)
    for key, pixels in chips.items():
        if kind == "jpg":
            image = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=95, colorsubsampling="444")
            (images / f"{key}.jpg").write_bytes(image)
        else:
            wide = np.concatenate([pixels, pixels[..., :1]], axis=2).astype(np.uint16) * 40
            tifffile.imwrite(images / f"{key}.tif", wide, photometric="rgb", extrasamples=["unspecified"])
    (folder / "labels.csv").write_text("image_name,tags\n" + "".join(f"{key},clear primary\n" for key in chips))
    build(BuildOptions(images, folder / "labels.csv", out, PLANET, shard_bytes=shard_bytes))
    return Dataset(out)
