"""A georeferenced scene, read window by window, so that memory doesn't grow with it.

Suffixes: H, W rows and columns of pixels; B bands, in the model's order.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planet_dist.scene_bands import Bands, Scaling, choose_bands, choose_scaling
from planet_dist.scene_grid import Window
from shards.errors import SceneError
from shards.pixels import DTYPES, Pixels
from shards.schema import ImageForm

_CACHE_MEGABYTES = 256  # of decoded blocks; GDAL alone would take a twentieth of the machine's memory
_MOST_BLOCK_BYTES = 256 * 2**20


@dataclass(frozen=True)
class SceneChip:
    """A chip as the network takes it.

    Attributes:
        pixels_HWB: of the model's dtype. Pixels without data have the mean of the chip's others, band by band.
        valid_HW: where the scene has data.
        clipped: how many values of valid pixels lay outside of --range.
    """

    pixels_HWB: Pixels
    valid_HW: NDArray[np.bool_]
    clipped: int


@dataclass(frozen=True)
class Scene:
    """An open scene.

    Attributes:
        path: its file.
        source: rasterio's dataset.
        bands: which of its bands the model takes.
        scaling: of its values.
        no_data: per band of `bands`, the value that stands for no data, or None.
        mask_band: the band whose zeros are no data: a number from 1, 0 for the file's own mask, or None.
    """

    path: Path
    source: Any
    bands: Bands
    scaling: Scaling
    no_data: tuple[float | None, ...]
    mask_band: int | None

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return int(self.source.height)

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return int(self.source.width)

    @property
    def no_data_stated_by(self) -> str:
        """What says where there is no data, for people to read."""
        found = [f"value {self.no_data[0]:g}"] if self.no_data[0] is not None else []
        found += [] if self.mask_band is None else [f"band {self.mask_band}" if self.mask_band else "the file's mask"]
        return " and ".join(found) or "nothing"

    def chip(self, window: Window) -> SceneChip:
        """Reads one chip; where the scene is smaller than it, the scene is mirrored at its edges.

        Raises:
            SceneError: the file is damaged there.
        """
        top, left = max(window.row, 0), max(window.column, 0)
        bottom = min(window.row + window.height, self.height)
        right = min(window.column + window.width, self.width)
        values_HWB, valid_HW = self.read(Window(top, left, bottom - top, right - left))
        clipped = self.scaling.count_clipped(values_HWB[valid_HW])
        pixels_HWB = _filled(self.scaling.apply(values_HWB), valid_HW)
        around = [
            (top - window.row, window.row + window.height - bottom),
            (left - window.column, window.column + window.width - right),
        ]
        pixels_HWB = np.pad(pixels_HWB, [*around, (0, 0)], mode="symmetric")
        return SceneChip(pixels_HWB, np.pad(valid_HW, around, mode="symmetric"), clipped)

    def read(self, window: Window) -> tuple[Pixels, NDArray[np.bool_]]:
        """The scene's own values in a window that lies in it, and where there are any.

        Returns:
            values_HWB, and bool valid_HW: where not every band has the value that stands for no data, the mask has
            none, and all values are finite.

        Raises:
            SceneError: the file is damaged there.
        """
        from rasterio import windows
        from rasterio.errors import RasterioError

        where = windows.Window(window.column, window.row, window.width, window.height)
        try:
            values_BHW = self.source.read(indexes=self.bands.numbers, window=where)
            valid_HW = np.isfinite(values_BHW).all(axis=0)
            if any(value is not None for value in self.no_data):
                valid_HW &= ~np.all([_is(b, v) for b, v in zip(values_BHW, self.no_data, strict=True)], axis=0)
            if self.mask_band is not None:
                read = self.source.read if self.mask_band else self.source.read_masks
                valid_HW &= read(self.mask_band or 1, window=where) > 0
        except RasterioError as error:
            raise SceneError(
                f"{self.path}: rows {window.row} to {window.row + window.height} cannot be read ({error}); "
                "copy the file again from its source"
            ) from error
        return np.ascontiguousarray(np.moveaxis(values_BHW, 0, -1)), valid_HW


def _is(band_HW: Pixels, value: float | None) -> NDArray[np.bool_]:
    return np.zeros(band_HW.shape, bool) if value is None else np.asarray(band_HW == value)


def _filled(pixels_HWB: Pixels, valid_HW: NDArray[np.bool_]) -> Pixels:
    if valid_HW.all() or not valid_HW.any():
        return pixels_HWB
    mean_B = pixels_HWB[valid_HW].mean(axis=0, dtype=np.float64)
    if np.issubdtype(pixels_HWB.dtype, np.integer):
        mean_B = np.rint(mean_B)
    return np.where(valid_HW[..., None], pixels_HWB, mean_B.astype(pixels_HWB.dtype))


@contextmanager
def open_scene(
    path: Path,
    form: ImageForm,
    *,
    bands: str | None = None,
    limits: tuple[float, float] | None = None,
    no_data: float | Literal["file", "none"] = "file",
) -> Iterator[Scene]:
    """Opens a scene for a model, for as long as the block runs.

    Args:
        form: of the model's training chips.
        bands: such as "red=3,green=2,blue=1", counted from 1; None where the file's descriptions name them.
        limits: the scene's values that become the least and the greatest of the model's dtype; needed where the
            scene's dtype is another.
        no_data: the value that stands for no data; "file" for the file's own value, mask or alpha band, "none" where
            every pixel is data.

    Raises:
        SceneError: the file cannot be used, or what is given doesn't fit it.
    """
    import rasterio

    with rasterio.Env(GDAL_CACHEMAX=_CACHE_MEGABYTES):
        source = _opened(path)
        with source:
            _check(path, source)
            claimed = [one.name for one in source.colorinterp]
            chosen = choose_bands(str(path), form.band_order, bands, source.descriptions, claimed)
            scaling = choose_scaling(str(path), _dtype(path, source, chosen), form.dtype, limits)
            if no_data == "file":
                values = tuple(source.nodatavals[number - 1] for number in chosen.numbers)
                yield Scene(path, source, chosen, scaling, values, _mask_band(source, chosen))
            else:
                value = None if no_data == "none" else no_data
                yield Scene(path, source, chosen, scaling, (value,) * form.bands, None)


def _opened(path: Path) -> Any:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # _check says so, with the remedy
        try:
            return rasterio.open(path)
        except RasterioError as error:
            raise SceneError(f"{path}: cannot be opened ({error}); give a GeoTIFF") from error


def _check(path: Path, source: Any) -> None:
    """Raises SceneError unless the scene lies somewhere on the earth and can be read in pieces."""
    if source.crs is None or source.transform.is_identity:
        lacks = "coordinate reference system" if source.crs is None else "geotransform"
        remedy = (
            "it has ground control points: run gdalwarp on it"
            if source.gcps[0]
            else "add what its producer states by gdal_translate -a_srs EPSG:CODE -a_ullr LEFT TOP RIGHT BOTTOM"
        )
        raise SceneError(f"{path}: has no {lacks}, and a map needs to know where its pixels lie; {remedy}")
    for (rows, columns), dtype in zip(source.block_shapes, source.dtypes, strict=True):
        together = source.count if source.profile.get("interleave") == "pixel" else 1
        size = rows * columns * np.dtype(dtype).itemsize * together
        if size > _MOST_BLOCK_BYTES:
            raise SceneError(
                f"{path}: is stored in blocks of {rows}x{columns} pixels, {size >> 20} MiB each, and a block is read "
                f"whole; blocks of up to {_MOST_BLOCK_BYTES >> 20} MiB are read: run gdal_translate -co TILED=YES on it"
            )


def _dtype(path: Path, source: Any, bands: Bands) -> str:
    dtypes = sorted({str(source.dtypes[number - 1]) for number in bands.numbers})
    if len(dtypes) > 1 or dtypes[0] not in DTYPES:
        raise SceneError(
            f"{path}: its bands are of {', '.join(dtypes)}; all must be of one of {', '.join(DTYPES)}: "
            "run gdal_translate -ot on it"
        )
    return dtypes[0]


def _mask_band(source: Any, bands: Bands) -> int | None:
    """The scene's alpha band, unless the user says that it's one of the model's; else 0 for a mask of the file's."""
    from rasterio.enums import ColorInterp, MaskFlags

    alpha = [number for number, one in enumerate(source.colorinterp, start=1) if one == ColorInterp.alpha]
    if alpha:
        return None if alpha[0] in bands.numbers else alpha[0]
    return 0 if MaskFlags.per_dataset in source.mask_flag_enums[0] else None
