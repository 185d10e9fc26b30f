"""The options of `planet-dist predict` for a scene, gathered into one value.

planet-dist predict RUN/bundle --scene SCENE.tif --bands red=3,green=2,blue=1 --range 0,10000 --out map.geojson
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from shards.errors import SceneError

if TYPE_CHECKING:
    from planet_dist.bundle import Turns
    from planet_dist.scene import SceneOptions

_Command = Callable[..., None]


@dataclass(frozen=True)
class SceneRequest:
    """A scene and what was said about it; None stands for what wasn't said."""

    path: Path
    said: dict[str, Any]

    def options(self) -> SceneOptions:
        """As map_scene takes them."""
        from planet_dist.scene import SceneOptions

        return SceneOptions(**{name: value for name, value in self.said.items() if value is not None})


def _range(ctx: click.Context, option: click.Parameter, value: str | None) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = map(float, value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not LOW,HIGH, such as 0,10000") from error
    return low, high


def _no_data(ctx: click.Context, option: click.Parameter, value: str | None) -> float | Literal["none"] | None:
    if value is None or value == "none":
        return value  # type: ignore[return-value]  # mypy doesn't narrow by comparing
    try:
        return float(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither a number nor none") from error


_OPTIONS = {
    "bands": click.option("--bands", metavar="NAME=N,...", help="Scene: its bands, red=3,green=2,... counted from 1."),
    "limits": click.option(
        "--range", "limits", metavar="LOW,HIGH", callback=_range, help="Scene: values to stretch to the model's dtype."
    ),
    "overlap": click.option("--overlap", type=float, help="Scene: share of a chip in the next one.  [default: 0.25]"),
    "chip": click.option("--chip", type=int, metavar="PIXELS", help="Scene: a chip's side.  [default: the model's]"),
    "no_data": click.option(
        "--nodata", "no_data", metavar="VALUE", callback=_no_data, help="Scene: its value, or none; else the file's."
    ),
    "most_no_data": click.option(
        "--max-nodata",
        "most_no_data",
        type=float,
        help="Scene: leave chips out with a greater share of it.  [default: 0.25]",
    ),
}


def scene_options(command: _Command) -> _Command:
    """Gives a click command --scene and its options, of which it gets one argument, scene: SceneRequest | None."""

    @wraps(command)
    def with_scene(*args: Any, scene: Path | None, **values: Any) -> None:
        said = {name: values.pop(name) for name in _OPTIONS}
        given = [name for name, value in said.items() if value is not None]
        if scene is None and given:
            raise click.UsageError(f"{_flag(given[0])} goes with --scene FILE.tif")
        command(*args, scene=None if scene is None else SceneRequest(scene, said), **values)

    decorated: _Command = with_scene
    for option in reversed(_OPTIONS.values()):
        decorated = option(decorated)
    return click.option("--scene", type=click.Path(path_type=Path), help="A georeferenced scene (GeoTIFF).")(decorated)


def _flag(name: str) -> str:
    return {"limits": "--range", "no_data": "--nodata", "most_no_data": "--max-nodata"}.get(name, f"--{name}")


def predict_scene(bundle_folder: Path, scene: SceneRequest, out: Path, turns: Turns | None) -> None:
    """Maps a scene, with a line of progress on stderr, and says what was made.

    Args:
        turns: views to average for each chip, or None for the bundle's own number.

    Raises:
        PlanetError: as map_scene and Bundle.load; or the launcher started several processes.
    """
    _require_libraries()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SceneError(
            "--scene under accelerate launch: one process maps a scene; run planet-dist predict without it"
        )
    import torch

    from planet_dist.bundle import Bundle
    from planet_dist.scene import map_scene
    from shards.progress import ProgressLine
    from shards.workers import available_cores

    torch.set_num_threads(available_cores())
    bundle = Bundle.load(bundle_folder, turns=turns)
    with ProgressLine("predict") as line:
        made = map_scene(bundle, scene.path, out, scene.options(), progress=line.update)
    click.echo("\n".join([*made.lines, f"map: {made.map}", f"quick-look: {made.quick_look}"]))


def _require_libraries() -> None:
    missing = [name for name in ("rasterio", "pyogrio") if find_spec(name) is None]
    if missing:
        raise SceneError(
            f'--scene needs {" and ".join(missing)}, which the extra "scene" brings; '
            "run pip install 'planet-dist[scene]'"
        )
