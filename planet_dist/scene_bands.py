"""Which band of a scene is which, and what its values mean: stated by the user or by the file, never guessed.

A TIFF's colour interpretation is no statement: photometric tags of real scenes claim red, green, blue and alpha for
blue, green, red and near-infrared. Descriptions of bands are one, where they name every band that the model takes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.errors import SceneError
from shards.pixels import Pixels

_SYNONYMS = {"nir": "near_infrared"}


@dataclass(frozen=True)
class Bands:
    """A scene's bands in the order that a model takes them.

    Attributes:
        names: the model's.
        numbers: of the scene, counted from 1.
        stated_by: "--bands" or "the file's descriptions".
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    stated_by: str

    def __str__(self) -> str:
        pairs = (f"{name}={number}" for name, number in zip(self.names, self.numbers, strict=True))
        return f"{','.join(pairs)} (by {self.stated_by})"


def choose_bands(
    where: str, wanted: Sequence[str], given: str | None, descriptions: Sequence[str | None], claimed: Sequence[str]
) -> Bands:
    """Finds the model's bands among the scene's.

    Args:
        where: the scene's name, for errors.
        wanted: the model's band names in its order.
        given: such as "red=3,green=2,blue=1", bands counted from 1, or None.
        descriptions: of the scene's bands, as its file has them.
        claimed: the file's colour interpretation, which is only shown.

    Raises:
        SceneError: `given` is no whole and sound mapping, or there is none and the descriptions don't name every band.
    """
    example = ",".join(f"{name}=N" for name in wanted)
    if given is not None:
        return Bands(tuple(wanted), _parse(given, wanted, len(descriptions), example), "--bands")
    known = [None if text is None else _plain(text) for text in descriptions]
    places = [[n for n, name in enumerate(known, start=1) if name == _plain(band)] for band in wanted]
    if all(len(found) == 1 for found in places):
        return Bands(tuple(wanted), tuple(found[0] for found in places), "the file's descriptions")
    shown = ", ".join(repr(text) if text else "none" for text in descriptions)
    raise SceneError(
        f"{where}: which of its {len(descriptions)} bands are {', '.join(wanted)}? Their descriptions ({shown}) don't "
        f"say, and colour tags ({', '.join(claimed)}) are too often wrong; give --bands {example}, counted from 1"
    )


def _parse(given: str, wanted: Sequence[str], count: int, example: str) -> tuple[int, ...]:
    remedy = f"give --bands {example}, each N a band of the scene from 1 to {count}"
    found: dict[str, int] = {}
    for part in given.split(","):
        name, equals, number = part.partition("=")
        if not equals or not re.fullmatch(r"\s*[0-9]{1,6}\s*", number) or not 1 <= int(number) <= count:
            raise SceneError(f"--bands {given}: {part!r} is not NAME=N; {remedy}")
        if _plain(name) in found or int(number) in found.values():
            raise SceneError(f"--bands {given}: {part!r} repeats a name or a band; {remedy}")
        found[_plain(name)] = int(number)
    if set(found) != {_plain(band) for band in wanted}:
        raise SceneError(f"--bands {given}: the model takes {', '.join(wanted)}, each once; {remedy}")
    return tuple(found[_plain(band)] for band in wanted)


def _plain(name: str) -> str:
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    return _SYNONYMS.get(plain, plain)


@dataclass(frozen=True)
class Scaling:
    """A scene's values to those of the training chips.

    Attributes:
        source, target: dtypes.
        limits: the values that become 0 and the target's greatest, or None where values stay as they are.
    """

    source: str
    target: str
    limits: tuple[float, float] | None

    def __str__(self) -> str:
        if self.limits is None:
            return f"{self.source} as it is"
        low, high = self.limits
        return f"{self.source} {low:g}..{high:g} to {self.target} 0..{np.iinfo(self.target).max}"

    def apply(self, values: Pixels) -> Pixels:
        """Values of the source dtype, any shape, as the target dtype: linear, rounded, clipped at the limits."""
        if self.limits is None:
            return values
        low, high = self.limits
        greatest = np.iinfo(self.target).max
        scaled = (values.astype(np.float64) - low) * (greatest / (high - low))
        integers: Pixels = np.rint(scaled.clip(0, greatest)).astype(self.target)
        return integers

    def count_clipped(self, values: Pixels) -> int:
        """How many values lie outside of the limits."""
        if self.limits is None:
            return 0
        wide = values.astype(np.float64)
        return int(np.count_nonzero((wide < self.limits[0]) | (wide > self.limits[1])))


def choose_scaling(where: str, source: str, target: str, limits: tuple[float, float] | None) -> Scaling:
    """How a scene's values become the model's.

    Args:
        where: the scene's name, for errors.
        source, target: dtypes of the scene and of the training chips.
        limits: as given by --range LOW,HIGH.

    Raises:
        SceneError: the dtypes differ and nothing is said about it, or the limits make no sense.
    """
    if limits is None:
        if source == target:
            return Scaling(source, target, None)
        remedy = (
            "give --range LOW,HIGH, the values that become its least and greatest"
            if np.issubdtype(target, np.integer)
            else f"convert it to {target}"
        )
        raise SceneError(f"{where}: its pixels are {source}, and the model was trained on {target}; {remedy}")
    low, high = limits
    if not low < high or not np.isfinite([low, high]).all():
        raise SceneError(f"--range {low:g},{high:g}: LOW must be less than HIGH, and both finite; give two such values")
    if not np.issubdtype(target, np.integer):
        raise SceneError(
            f"--range {low:g},{high:g}: the model was trained on {target}, which has no greatest value to stretch to; "
            f"convert {where} to {target} in the training chips' own units"
        )
    return Scaling(source, target, limits)
