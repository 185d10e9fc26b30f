"""The quick-look: of bounded size, for scenes of any shape and any vocabulary, with every colour explained."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from planet_dist import scene_map
from planet_dist.bundle import Bundle
from planet_dist.figures_style import png_bytes
from planet_dist.scene import SceneOptions, map_scene
from planet_dist.scene_bands import Bands, Scaling
from planet_dist.scene_grid import lay_grid
from planet_dist.scene_map import QuickLook, by_rarity
from planet_dist.scene_picture import Picture, take_picture
from planet_dist.scene_read import Scene
from planet_dist.scene_shapes import Projector
from planet_dist.scene_write import MappedCell
from tests.made_scenes import NORTH_UP, colour_bundle, paint, write_scene


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(colour_bundle(tmp_path_factory.mktemp("colours") / "made"), device="cpu")


def picture(height: int, width: int) -> Picture:
    ramp_HWC = np.linspace(0, 1, 40 * 60 * 3, dtype=np.float32).reshape(40, 60, 3)
    return Picture(ramp_HWC, np.ones((40, 60), bool), height, width, (3.0, 3.0), (0.0, -1.0))


def look_of(bundle: Bundle, height: int, width: int, shown: Any) -> QuickLook:
    """A quick-look of 32-pixel cells; `shown` gives each its rarest tag and weather, or None."""
    look = QuickLook.of(bundle.description, lay_grid(height, width, 32, 32, 0.0))
    for cell in look.grid.cells():
        said = shown(cell)
        if said is not None:
            look.add([MappedCell(cell, tuple(filter(None, said)), *said, np.zeros(5), 0.0)])
    return look


def drawn(look: QuickLook, seen: Picture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Figure:
    """The figure as it would be written."""
    kept: list[Figure] = []
    monkeypatch.setattr(scene_map, "write_png", lambda path, figure: kept.append(figure))
    scene_map.draw_quick_look(tmp_path / "map.png", look, seen, "scene.tif", ["1,000 of 1,000 cells are mapped."] * 4)
    return kept[0]


def legends(figure: Figure) -> list[list[str]]:
    return [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes if axes.get_legend()]


def test_the_legend_names_what_the_map_shows_and_how_much_of_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def shown(cell: Any) -> Any:
        if cell.row == 0:
            return None
        return ("water", "clear") if cell.column < 5 else ("", "cloudy")

    figure = drawn(look_of(bundle, 320, 320, shown), picture(320, 320), monkeypatch, tmp_path)
    assert legends(figure) == [
        ["water  50%", "weather alone  50%", "left out"],
        ["clear  50%", "cloudy  50%", "left out"],
    ]


def test_the_rarest_tag_is_the_one_that_fewest_training_chips_bear(bundle: Bundle) -> None:
    assert by_rarity(bundle.description) == ("field", "water", "forest")


@pytest.mark.parametrize(("height", "width"), [(2_000, 2_000), (400, 4_000), (4_000, 400), (32, 32)])
def test_no_text_lies_on_another_or_outside_and_the_size_is_bounded(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, height: int, width: int
) -> None:
    figure = drawn(
        look_of(bundle, height, width, lambda cell: (("field", "water", "forest")[cell.column % 3], "clear")),
        picture(height, width),
        monkeypatch,
        tmp_path,
    )
    image = Image.open(io.BytesIO(png_bytes(figure)))
    assert max(image.size) <= 2_500
    figure.canvas.draw()
    whole = figure.bbox
    boxes = [text.get_window_extent() for text in (figure._suptitle, figure._supxlabel)]  # type: ignore[attr-defined]
    boxes += [axes.title.get_window_extent() for axes in figure.axes if axes.title.get_text()]
    boxes += [axes.get_legend().get_window_extent() for axes in figure.axes if axes.get_legend()]
    for box in boxes:
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


def test_a_scene_of_a_million_cells_is_drawn_from_a_grid_of_fixed_size(bundle: Bundle) -> None:
    look = QuickLook.of(bundle.description, lay_grid(5_000_000, 3_000_000, 32, 32, 0.0))
    assert look.ground_RC.shape == look.weather_RC.shape == (1_000, 1_000)
    grid = look.grid
    last = grid.cell(grid.shape[0] - 1, grid.shape[1] - 1)
    beside = grid.cell(grid.shape[0] - 1, grid.shape[1] - 2)
    for cell, tag in ((last, "forest"), (beside, "field")):
        look.add([MappedCell(cell, (tag,), tag, "clear", np.zeros(5), 0.0)])
    assert look.ground_RC[-1, -1] == look.ground.index("field"), "the rarest of those that share a place"


def test_a_vocabulary_without_groups_has_no_weather(tmp_path: Path) -> None:
    plain = Bundle.load(colour_bundle(tmp_path / "b", changes={"exclusive": [], "alone": []}), device="cpu")
    scene = write_scene(tmp_path / "scene.tif", paint(64, 64, []))
    options = SceneOptions(bands="blue=1,green=2,red=3,nir=4")
    with Image.open(map_scene(plain, scene, tmp_path / "map.geojson", options).quick_look) as image:
        assert image.format == "PNG" and image.width > 500


def test_a_picture_averages_what_has_data_and_knows_its_scale_and_its_north(tmp_path: Path) -> None:
    import rasterio

    scene_BHW = np.full((3, 2000, 1000), 100, np.uint8)
    scene_BHW[:, :, ::2] = 200
    scene_BHW[:, 1000:, :] = 0
    scene_BHW[:, 1000::2, 500:] = 150
    with rasterio.open(write_scene(tmp_path / "s.tif", scene_BHW)) as source:
        bands = Bands(("red", "green", "blue"), (1, 2, 3), "--bands")
        scene = Scene(tmp_path / "s.tif", source, bands, Scaling("uint8", "uint8", None), (0.0,) * 3, None)
        seen = take_picture(scene, Projector("s.tif", source.crs, NORTH_UP))
    assert seen.valid_HW.shape == (800, 400)
    assert seen.valid_HW[:400].all() and seen.valid_HW[400:, 200:].all() and not seen.valid_HW[400:, :200].any()
    assert seen.metres_per_pixel == pytest.approx((3.0, 3.0), rel=0.002)
    assert seen.north == pytest.approx((0.0, -1.0), abs=0.01)
    # Pixels of 100 and 200 are 140 to 160 on average, two or three of them together.
    assert np.ptp(seen.colours_HWC[401:, 201:]) < 1e-6
