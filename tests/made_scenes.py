"""Scenes of known colours, and a bundle that tells the colours apart: a real network, its head fitted to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.transform import Affine
from safetensors.torch import save_file

from planet_dist.bundle_description import Description, Member
from planet_dist.bundle_files import file_sha256, write_bundle
from planet_dist.models import build_model
from shards.schema import ImageForm
from tests.made_runs import TINY, flat

SIDE = 32
LABELS = ["clear", "cloudy", "field", "forest", "water"]
BANDS = ["blue", "green", "red", "near_infrared"]
# Per place its colour, in the order of BANDS, and its labels.
COLOURS = {
    "forest": (3000, 2800, 1800, 9000),
    "water": (3500, 3000, 1500, 1200),
    "field": (4500, 5000, 6000, 7000),
    "cloudy": (12000, 12000, 12000, 12000),
}
TAGS = {"forest": "clear forest", "water": "clear water", "field": "clear field", "cloudy": "cloudy"}
UTM = "EPSG:32720"
NORTH_UP = Affine(3.0, 0.0, 600_000.0, 0.0, -3.0, 9_500_000.0)

Place = tuple[str, int, int, int, int]  # a colour, and its first row, first column, height and width


def paint(height: int, width: int, places: Sequence[Place], background: str = "forest", seed: int = 0) -> NDArray[Any]:
    """A scene of uint16 (4, height, width) in the order of BANDS: places on a background, with some grain."""
    scene_BHW = np.empty((4, height, width), np.float64)
    scene_BHW[:] = np.array(COLOURS[background])[:, None, None]
    for colour, row, column, rows, columns in places:
        scene_BHW[:, row : row + rows, column : column + columns] = np.array(COLOURS[colour])[:, None, None]
    scene_BHW += np.random.default_rng(seed).normal(0, 60, scene_BHW.shape)
    return scene_BHW.clip(1, 65535).astype(np.uint16)


def write_scene(
    path: Path,
    scene_BHW: NDArray[Any],
    *,
    crs: str | None = UTM,
    transform: Affine = NORTH_UP,
    descriptions: Sequence[str] = (),
    **profile: Any,
) -> Path:
    """A GeoTIFF of the bands as they come."""
    bands, height, width = scene_BHW.shape
    form = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": scene_BHW.dtype}
    with rasterio.open(path, "w", **form, crs=crs, transform=transform, **profile) as file:
        file.write(scene_BHW)
        for number, description in enumerate(descriptions, start=1):
            file.set_band_description(number, description)
    return path


def colour_bundle(
    folder: Path,
    *,
    dtype: str = "uint16",
    to_dtype: Any = lambda values: values,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """A bundle for chips of 32x32 pixels and four bands that gives a colour its labels.

    Args:
        dtype: of the training chips.
        to_dtype: turns values of COLOURS into theirs.
        changes: stand above the description's own.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = list(COLOURS)
    chips_NBHW = np.stack(
        [to_dtype(paint(SIDE, SIDE, [], name, int(rng.integers(1 << 30)))) for name in names for _ in range(8)]
    ).astype(np.float32)
    mean_B, std_B = chips_NBHW.mean(axis=(0, 2, 3)), chips_NBHW.std(axis=(0, 2, 3))
    inputs_NBHW = torch.from_numpy((chips_NBHW - mean_B[:, None, None]) / std_B[:, None, None])
    bears_NC = np.repeat([[label in TAGS[name].split() for label in LABELS] for name in names], 8, axis=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(TINY, len(LABELS), len(BANDS), SIDE).eval()
    with torch.no_grad():
        features_NF = np.hstack([model.backbone(inputs_NBHW).numpy(), np.ones((len(inputs_NBHW), 1), np.float32)])
        fitted_FC = np.linalg.lstsq(features_NF, np.where(bears_NC, 6.0, -6.0), rcond=1e-4)[0]
        model.head.dense1.weight.copy_(torch.from_numpy(fitted_FC[:-1].T))
        model.head.dense1.bias.copy_(torch.from_numpy(fitted_FC[-1]))
    weights = folder / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    member = Member.model_validate(
        {
            "name": "colours",
            "weights": "model.safetensors",
            "sha256": file_sha256(weights),
            "model": TINY,
            "size": SIDE,
            "normalise": "dataset",
            "mean": mean_B.tolist(),
            "std": std_B.tolist(),
            "turns": 1,
            "competing_groups": [],
            "speaks_for": LABELS,
            "thresholds": flat(LABELS, 0.5),
            "protocol": {"split": "tail:200"},
        }
    )
    made = {
        "labels": LABELS,
        "exclusive": [{"name": "weather", "labels": ["clear", "cloudy"], "required": True}],
        "alone": ["cloudy"],
        "image": ImageForm(kind="tif", height=SIDE, width=SIDE, bands=4, dtype=dtype, band_order=BANDS),
        "members": [member],
        "thresholds": flat(LABELS, 0.5),
        "training_chips": 1000,
        "training_label_counts": [900, 100, 60, 800, 90],
        "scores": {},
        "dataset_digest": "0" * 64,
    }
    write_bundle(folder / "bundle", Description.model_validate(made | dict(changes or {})), [weights])
    return folder / "bundle"
