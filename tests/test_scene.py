"""Scenes to maps: polygons where the places are, by libraries that the program itself does not use to make them."""

from __future__ import annotations

import json
import resource
import sqlite3
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import shapely
from click.testing import CliRunner
from rasterio.transform import Affine

from planet_dist.bundle import Bundle
from planet_dist.cli import main
from planet_dist.scene import MappedScene, SceneOptions, map_scene
from planet_dist.scene_grid import lay_grid
from shards.errors import ConfigError, PlanetError, SceneError
from tests.made_scenes import NORTH_UP, SIDE, TAGS, UTM, colour_bundle, paint, write_scene

PLACES = [("water", 100, 60, 120, 200), ("field", 250, 300, 110, 110), ("cloudy", 0, 420, 90, 130)]
HEIGHT, WIDTH = 400, 550
STATED = SceneOptions(bands="blue=1,green=2,red=3,nir=4")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(colour_bundle(tmp_path_factory.mktemp("colours") / "made"), device="cpu")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene") / "scene.tif", paint(HEIGHT, WIDTH, PLACES))


@pytest.fixture(scope="module")
def mapped(bundle: Bundle, scene: Path, tmp_path_factory: pytest.TempPathFactory) -> MappedScene:
    return map_scene(bundle, scene, tmp_path_factory.mktemp("map") / "map.geojson", STATED)


def features(path: Path) -> list[tuple[shapely.Geometry, dict[str, Any]]]:
    """Polygons and properties of a GeoJSON file."""
    found = json.loads(path.read_text(encoding="utf-8"))["features"]
    return [(shapely.geometry.shape(one["geometry"]), one["properties"]) for one in found]


def packaged(path: Path) -> tuple[list[tuple[shapely.Geometry, dict[str, Any]]], str]:
    """Polygons and properties of a GeoPackage, read as the SQLite database that it is, and the name of its CRS."""
    with sqlite3.connect(path) as database:
        database.row_factory = sqlite3.Row
        rows = [dict(row) for row in database.execute("SELECT * FROM cells")]
        crs = database.execute(
            "SELECT organization || ':' || organization_coordsys_id FROM gpkg_contents "
            "JOIN gpkg_spatial_ref_sys USING (srs_id) WHERE table_name = 'cells'"
        ).fetchone()[0]
    database.close()
    # A header of 8 bytes and an envelope stand before the well-known binary.
    envelopes = {0: 0, 1: 32, 2: 48, 3: 48, 4: 64}
    found = []
    for row in rows:
        blob = row.pop("geom")
        assert blob[:2] == b"GP"
        found.append((shapely.from_wkb(blob[8 + envelopes[blob[3] >> 1 & 7] :]), row))
    return found, crs


def to_scene(shape: shapely.Geometry, crs: str = UTM) -> shapely.Geometry:
    """From longitude and latitude to the scene's coordinates, by pyproj."""
    turn = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    return shapely.transform(shape, lambda points: np.column_stack(turn.transform(*points.T)))


def box(row: int, column: int, rows: int, columns: int, transform: Affine = NORTH_UP) -> shapely.Geometry:
    """A rectangle of pixels in the scene's coordinates."""
    corners = [(column, row), (column, row + rows), (column + columns, row + rows), (column + columns, row)]
    t = transform
    return shapely.Polygon([(t.c + t.a * x + t.b * y, t.f + t.d * x + t.e * y) for x, y in corners])


def check_places(found: list[tuple[shapely.Geometry, dict[str, Any]]], transform: Affine = NORTH_UP) -> None:
    """Cells whose chip lies in one place have its tags, and there are such cells in each."""
    metres = abs(transform.determinant) ** 0.5
    wholes = {name: box(*where, transform=transform) for name, *where in PLACES}
    seen = dict.fromkeys(TAGS, 0)
    for shape, properties in found:
        chip = shape.centroid.buffer(0.75 * SIDE * metres)  # half a chip's diagonal, and what edges move it
        inside = [name for name, place in wholes.items() if place.contains(chip)]
        if not inside and not any(place.intersects(chip) for place in wholes.values()):
            inside = ["forest"]
        for name in inside:
            seen[name] += 1
            assert properties["tags"] == TAGS[name], (name, properties)
    assert all(count >= 4 for count in seen.values()), seen


@pytest.mark.parametrize(
    ("height", "width", "overlap"), [(400, 550, 0.25), (33, 1000, 0.0), (64, 65, 0.9), (20, 31, 0.5)]
)
def test_every_pixel_lies_in_exactly_one_cell_and_every_cell_in_its_chip(
    height: int, width: int, overlap: float
) -> None:
    grid = lay_grid(height, width, SIDE, SIDE, overlap)
    times_HW = np.zeros((height, width), int)
    for cell in grid.cells():
        inside, chip = cell.pixels, cell.chip
        times_HW[inside.row : inside.row + inside.height, inside.column : inside.column + inside.width] += 1
        assert (chip.height, chip.width) == (SIDE, SIDE)
        assert chip.row <= inside.row and inside.row + inside.height <= chip.row + SIDE
        assert chip.column <= inside.column and inside.column + inside.width <= chip.column + SIDE
        assert height < SIDE or 0 <= chip.row <= height - SIDE
        assert width < SIDE or 0 <= chip.column <= width - SIDE
    assert (times_HW == 1).all()
    heights = np.diff(grid.row_edges)
    assert np.ptp(heights) <= 1 and heights.max() <= (SIDE * (1 - overlap) if height > SIDE else SIDE)


def test_polygons_of_a_geojson_lie_where_the_places_are(mapped: MappedScene) -> None:
    found = [(to_scene(shape), properties) for shape, properties in features(mapped.map)]
    check_places(found)
    for shape, properties in found:
        expected = box(*(properties[name] for name in ("row", "column", "height", "width")))
        assert shape.hausdorff_distance(expected) < 0.05, "metres, of pixels of 3 m"
        assert set(properties["tags"].split()) == {
            label for label in ("clear", "cloudy", "field", "forest", "water") if properties[f"p_{label}"] > 0.5
        }


def test_cells_cover_the_scene_without_gap_or_overlap(mapped: MappedScene) -> None:
    shapes = [to_scene(shape) for shape, _ in features(mapped.map)]
    assert len(shapes) == mapped.counts.cells == mapped.counts.mapped
    whole = box(0, 0, HEIGHT, WIDTH)
    assert shapely.union_all(shapes).symmetric_difference(whole).area < 1e-4 * whole.area
    assert sum(shape.area for shape in shapes) == pytest.approx(whole.area, rel=1e-4)


def test_a_geojson_is_as_rfc_7946_wants_it(mapped: MappedScene) -> None:
    table = json.loads(mapped.map.read_text(encoding="utf-8"))
    assert table["type"] == "FeatureCollection" and "crs" not in table
    assert table["made_by"]["bands"] == "blue=1,green=2,red=3,near_infrared=4 (by --bands)"
    for one in table["features"]:
        ring = one["geometry"]["coordinates"][0]
        assert ring[0] == ring[-1] and shapely.LinearRing(ring).is_ccw and shapely.Polygon(ring).is_valid
        assert -62.2 < ring[0][0] < -61 and -5 < ring[0][1] < -4, "longitude first"


def test_a_geopackage_has_the_scenes_own_coordinates_and_the_same_predictions(
    bundle: Bundle, scene: Path, mapped: MappedScene, tmp_path: Path
) -> None:
    made = map_scene(bundle, scene, tmp_path / "map.gpkg", STATED)
    found, crs = packaged(made.map)
    assert crs == UTM
    check_places(found)
    plain = features(mapped.map)
    assert len(found) == len(plain)
    for (shape, row), (_, properties) in zip(found, plain, strict=True):
        assert {name: row[name] for name in properties} == properties
        assert shape.equals_exact(shape.normalize(), 1e9)
        assert shape.symmetric_difference(box(*(row[n] for n in ("row", "column", "height", "width")))).area == 0


def test_a_turned_scene_has_turned_cells(bundle: Bundle, tmp_path: Path) -> None:
    cosine, sine = 3 * np.cos(0.5), 3 * np.sin(0.5)
    turned = Affine(cosine, sine, 600_000, sine, -cosine, 9_500_000)
    path = write_scene(tmp_path / "turned.tif", paint(HEIGHT, WIDTH, PLACES), transform=turned)
    found = [
        (to_scene(shape), row) for shape, row in features(map_scene(bundle, path, tmp_path / "m.json", STATED).map)
    ]
    check_places(found, turned)
    own, _ = packaged(map_scene(bundle, path, tmp_path / "m.gpkg", STATED).map)
    check_places(own, turned)


def test_a_scene_that_runs_upwards_still_has_counterclockwise_cells_in_their_places(
    bundle: Bundle, tmp_path: Path
) -> None:
    upwards = Affine(3.0, 0.0, 600_000.0, 0.0, 3.0, 9_500_000.0)
    path = write_scene(tmp_path / "up.tif", paint(HEIGHT, WIDTH, PLACES), transform=upwards)
    found = features(map_scene(bundle, path, tmp_path / "map.geojson", STATED).map)
    assert all(shapely.LinearRing(shape.exterior.coords).is_ccw for shape, _ in found)
    check_places([(to_scene(shape), row) for shape, row in found], upwards)


def test_long_sides_are_cut_so_that_degrees_follow_the_scenes_straight_lines(bundle: Bundle, tmp_path: Path) -> None:
    # In Lambert's conic projection of Europe, with cells of some 250 km.
    coarse = Affine(10_000.0, 0.0, 3_000_000.0, 0.0, -10_000.0, 4_000_000.0)
    path = write_scene(tmp_path / "coarse.tif", paint(100, 100, []), crs="EPSG:3034", transform=coarse)
    found = features(map_scene(bundle, path, tmp_path / "map.geojson", STATED).map)
    corners = {len(shape.exterior.coords) for shape, _ in found}
    assert len(corners) == 1 and corners.pop() > 5
    for shape, row in found:
        expected = box(*(row[name] for name in ("row", "column", "height", "width")), transform=coarse)
        fine = shapely.segmentize(shape, 0.01)  # what a reader draws: straight in degrees
        assert to_scene(fine, "EPSG:3034").hausdorff_distance(expected) < 0.1 * 10_000


def test_cells_over_the_antimeridian_are_cut_in_two(bundle: Bundle, tmp_path: Path) -> None:
    east, north = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32760", always_xy=True).transform(179.999, -17.0)
    place = Affine(3.0, 0.0, east, 0.0, -3.0, north)
    path = write_scene(tmp_path / "fiji.tif", paint(96, 120, []), crs="EPSG:32760", transform=place)
    found = features(map_scene(bundle, path, tmp_path / "map.geojson", STATED).map)
    kinds = {shape.geom_type for shape, _ in found}
    assert kinds == {"Polygon", "MultiPolygon"}
    whole = 0.0
    for shape, _ in found:
        assert all(part.bounds[2] - part.bounds[0] < 1 for part in getattr(shape, "geoms", [shape]))
        assert all(shapely.LinearRing(part.exterior.coords).is_ccw for part in getattr(shape, "geoms", [shape]))
        whole += to_scene(shape, "EPSG:32760").area
    assert whole == pytest.approx(96 * 120 * 9, rel=1e-3)


def test_bands_in_another_order_give_the_same_map(
    bundle: Bundle, scene: Path, mapped: MappedScene, tmp_path: Path
) -> None:
    order = [3, 0, 2, 1]  # near-infrared, blue, red, green, behind a band of another kind
    shuffled_BHW = np.concatenate([np.full((1, HEIGHT, WIDTH), 7, np.uint16), paint(HEIGHT, WIDTH, PLACES)[order]])
    path = write_scene(tmp_path / "other.tif", shuffled_BHW)
    stated = SceneOptions(bands=" red=4, nir=2,GREEN=5,blue=3")
    assert features_of(map_scene(bundle, path, tmp_path / "a.geojson", stated).map) == features_of(mapped.map)
    named = [None, "NIR", "Blue", "red", "green"]
    path = write_scene(tmp_path / "named.tif", shuffled_BHW, descriptions=[name or "cloud mask" for name in named])
    assert features_of(map_scene(bundle, path, tmp_path / "b.geojson", SceneOptions()).map) == features_of(mapped.map)


def features_of(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))["features"]


def test_bands_are_asked_for_where_only_colour_tags_speak(bundle: Bundle, tmp_path: Path) -> None:
    tagged = write_scene(tmp_path / "tagged.tif", paint(64, 64, []), photometric="rgb", alpha="YES")
    with pytest.raises(SceneError, match=r"red, green, blue, alpha\) are too often wrong; give --bands blue=N,green=N"):
        map_scene(bundle, tagged, tmp_path / "map.geojson", SceneOptions())
    assert not (tmp_path / "map.geojson").exists()


def test_near_infrared_that_is_tagged_alpha_hides_nothing(bundle: Bundle, tmp_path: Path) -> None:
    scene_BHW = paint(64, 64, [])
    scene_BHW[3, :, :40] = 0  # would be transparent
    path = write_scene(tmp_path / "tagged.tif", scene_BHW, photometric="rgb", alpha="YES")
    made = map_scene(bundle, path, tmp_path / "map.geojson", STATED)
    assert made.counts.mapped == made.counts.cells and made.counts.data_pixels == 64 * 64


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("red=1,green=2,blue=3", "the model takes blue, green, red, near_infrared, each once"),
        ("red=1,green=2,blue=3,nir=5", "'nir=5' is not NAME=N"),
        ("red=1,green=2,blue=3,nir=3", "'nir=3' repeats a name or a band"),
        ("red=0,green=2,blue=3,nir=4", "'red=0' is not NAME=N"),
        ("red,green,blue,nir", "'red' is not NAME=N"),
    ],
)
def test_bands_that_make_no_sense_are_refused(
    bundle: Bundle, scene: Path, tmp_path: Path, given: str, message: str
) -> None:
    with pytest.raises(SceneError, match=message) as caught:
        map_scene(bundle, scene, tmp_path / "map.geojson", SceneOptions(bands=given))
    assert "each N a band of the scene from 1 to 4" in str(caught.value)


def test_values_of_another_dtype_need_a_range_and_then_give_the_same_tags(tmp_path: Path) -> None:
    limits = (500.0, 13_000.0)

    def to_bytes(values: Any) -> Any:
        return np.rint((np.asarray(values, float) - limits[0]).clip(0) * 255 / (limits[1] - limits[0])).astype(np.uint8)

    of_bytes = Bundle.load(colour_bundle(tmp_path / "b", dtype="uint8", to_dtype=to_bytes), device="cpu")
    path = write_scene(tmp_path / "scene.tif", paint(HEIGHT, WIDTH, PLACES))
    with pytest.raises(SceneError, match="its pixels are uint16, and the model was trained on uint8; give --range LOW"):
        map_scene(of_bytes, path, tmp_path / "map.geojson", STATED)
    stated = SceneOptions(bands=STATED.bands, limits=limits)
    made = map_scene(of_bytes, path, tmp_path / "map.geojson", stated)
    check_places([(to_scene(shape), row) for shape, row in features(made.map)])
    assert made.counts.clipped == 0
    plain = write_scene(tmp_path / "bytes.tif", to_bytes(paint(HEIGHT, WIDTH, PLACES)))
    same = map_scene(of_bytes, plain, tmp_path / "same.geojson", STATED)
    assert features_of(same.map) == features_of(made.map)
    narrow = map_scene(of_bytes, path, tmp_path / "n.geojson", SceneOptions(bands=STATED.bands, limits=(2000, 13000)))
    assert 0 < narrow.counts.clipped < narrow.counts.values, "water is darker than 2000 in two bands"
    assert any("of them clipped" in line for line in narrow.lines)
    with pytest.raises(SceneError, match="LOW must be less than HIGH"):
        map_scene(of_bytes, path, tmp_path / "n.geojson", SceneOptions(bands=STATED.bands, limits=(5, 5)))


def test_no_data_is_left_out_and_counted_whichever_way_it_is_stated(bundle: Bundle, tmp_path: Path) -> None:
    scene_BHW = paint(HEIGHT, WIDTH, PLACES)
    scene_BHW[:, 300:, :200] = 0
    hole, beside = box(300, 0, 100, 200), box(0, 0, 270, WIDTH)
    as_value = write_scene(tmp_path / "value.tif", scene_BHW, nodata=0)
    unsaid = write_scene(tmp_path / "unsaid.tif", scene_BHW)
    alpha_1HW = np.where(scene_BHW[:1] > 0, 65535, 0).astype(np.uint16)
    as_alpha = write_scene(tmp_path / "alpha.tif", np.concatenate([scene_BHW, alpha_1HW]), photometric="minisblack")
    with_alpha(as_alpha)
    as_mask = write_scene(tmp_path / "mask.tif", scene_BHW)
    with_mask(as_mask, scene_BHW[0] > 0)
    stated = SceneOptions(bands=STATED.bands, no_data=0.0)
    results = []
    for path, options in ((as_value, STATED), (unsaid, stated), (as_alpha, STATED), (as_mask, STATED)):
        made = map_scene(bundle, path, tmp_path / f"{path.stem}.geojson", options)
        assert made.counts.data_pixels == HEIGHT * WIDTH - 100 * 200, path
        found = [(to_scene(shape), row) for shape, row in features(made.map)]
        assert len(found) == made.counts.mapped == made.counts.cells - made.counts.left_out
        assert not any(hole.contains(shape) for shape, _ in found)
        assert all(row["no_data"] <= 0.25 for _, row in found)
        covered = shapely.union_all([shape for shape, _ in found])
        assert beside.difference(covered).area < 1e-4 * beside.area
        check_places(found)
        data = box(0, 0, HEIGHT, WIDTH).difference(hole)
        assert made.counts.lost_data_pixels == pytest.approx(data.difference(covered).area / 9, abs=5)
        results.append(features_of(made.map))
    assert all(result == results[0] for result in results[1:])
    everything = map_scene(bundle, as_value, tmp_path / "all.geojson", SceneOptions(bands=STATED.bands, no_data="none"))
    assert everything.counts.mapped == everything.counts.cells


def with_alpha(path: Path) -> None:
    import rasterio
    from rasterio.enums import ColorInterp

    with rasterio.open(path, "r+") as file:
        file.colorinterp = [*file.colorinterp[:-1], ColorInterp.alpha]


def with_mask(path: Path, valid_HW: Any) -> None:
    import rasterio

    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(valid_HW)


def test_a_dark_pixel_in_one_band_is_data(bundle: Bundle, tmp_path: Path) -> None:
    scene_BHW = paint(64, 64, [])
    scene_BHW[2] = 0
    path = write_scene(tmp_path / "dark.tif", scene_BHW, nodata=0)
    assert map_scene(bundle, path, tmp_path / "map.geojson", STATED).counts.data_pixels == 64 * 64


def test_pixels_without_data_do_not_sway_a_chip(bundle: Bundle, tmp_path: Path) -> None:
    scene_BHW = paint(SIDE, SIDE, [], "water")
    scene_BHW[:, :, :7] = 65535
    path = write_scene(tmp_path / "edge.tif", scene_BHW, nodata=65535)
    ((_, row),) = features(map_scene(bundle, path, tmp_path / "map.geojson", STATED).map)
    assert row["tags"] == "clear water" and row["no_data"] == pytest.approx(7 / SIDE, abs=1e-6)


def test_a_scene_smaller_than_a_chip_is_one_cell(bundle: Bundle, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "small.tif", paint(9, 20, [], "water"))
    ((shape, row),) = features(map_scene(bundle, path, tmp_path / "map.geojson", STATED).map)
    assert row["tags"] == "clear water"
    assert to_scene(shape).hausdorff_distance(box(0, 0, 9, 20)) < 0.05


def test_larger_chips_give_fewer_larger_cells(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    options = SceneOptions(bands=STATED.bands, chip=64, overlap=0.0)
    made = map_scene(bundle, scene, tmp_path / "map.geojson", options)
    assert made.counts.cells == 7 * 9
    assert "64x64 pixels (19" in made.lines[0]


def test_a_local_grid_is_mapped_in_its_own_coordinates_alone(bundle: Bundle, tmp_path: Path) -> None:
    local = 'LOCAL_CS["mine grid",UNIT["metre",1]]'
    path = write_scene(tmp_path / "mine.tif", paint(64, 64, []), crs=local)
    with pytest.raises(SceneError, match=r"cannot be brought to longitude and latitude .*give --out FILE\.gpkg"):
        map_scene(bundle, path, tmp_path / "map.geojson", STATED)
    made = map_scene(bundle, path, tmp_path / "map.gpkg", STATED)
    assert len(packaged(made.map)[0]) == made.counts.cells


def test_a_map_never_takes_the_scenes_place(bundle: Bundle, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif", paint(64, 64, []))
    picture = path.rename(tmp_path / "map.png")
    with pytest.raises(SceneError, match="would take its place; rename --out"):
        map_scene(bundle, picture, tmp_path / "map.geojson", STATED)
    assert picture.exists()


def test_a_scene_without_a_place_on_earth_is_refused_with_the_remedy(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.warns(match="no geotransform"):
        path = write_scene(tmp_path / "bare.tif", paint(64, 64, []), crs=None, transform=Affine.identity())
    with pytest.raises(SceneError, match=r"has no coordinate reference system.*gdal_translate -a_srs"):
        map_scene(bundle, path, tmp_path / "map.geojson", STATED)


def test_files_that_are_no_scene_are_refused_by_name(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("no image")
    for name in ("text.tif", "missing.tif"):
        with pytest.raises(SceneError, match=rf"{name}: cannot be opened .*give a GeoTIFF"):
            map_scene(bundle, tmp_path / name, tmp_path / "map.geojson", STATED)
    with pytest.raises(SceneError, match=r"map\.shp: a scene's map is GeoJSON .* or GeoPackage"):
        map_scene(bundle, scene, tmp_path / "map.shp", STATED)
    with pytest.raises(SceneError, match=r"none of its \d+ cells can be predicted"):
        empty = write_scene(tmp_path / "empty.tif", np.zeros((4, 64, 64), np.uint16), nodata=0)
        map_scene(bundle, empty, tmp_path / "map.geojson", STATED)
    with pytest.raises(ConfigError, match=r"overlap 1\.0"):
        map_scene(bundle, scene, tmp_path / "map.geojson", SceneOptions(bands=STATED.bands, overlap=1.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.tif", "text.tif"]


@pytest.mark.parametrize("name", ["map.geojson", "map.gpkg"])
def test_a_damaged_scene_leaves_the_older_map_as_it_was(bundle: Bundle, tmp_path: Path, name: str) -> None:
    path = write_scene(tmp_path / "cut.tif", paint(HEIGHT, WIDTH, PLACES))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / name).write_text("an older map")
    with pytest.raises(SceneError, match=r"rows \d+ to \d+ cannot be read .*copy the file again"):
        map_scene(bundle, path, tmp_path / name, STATED)
    assert (tmp_path / name).read_text() == "an older map"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["cut.tif", name]


@pytest.mark.parametrize("name", ["map.geojson", "map.gpkg"])
def test_a_disk_without_room_leaves_no_half_of_a_map(bundle: Bundle, scene: Path, tmp_path: Path, name: str) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, most))
    try:
        with pytest.raises(PlanetError, match=rf"{name}: cannot be written \(.*free some space or give another --out"):
            map_scene(bundle, scene, tmp_path / name, STATED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert list(tmp_path.iterdir()) == []


def test_the_command_maps_a_scene_and_says_what_was_left_out(scene: Path, tmp_path: Path) -> None:
    made = colour_bundle(tmp_path / "made")
    out = tmp_path / "map.geojson"
    command = ["predict", str(made), "--scene", str(scene), "--out", str(out)]
    asked = CliRunner().invoke(main, command)
    assert asked.exit_code == 1 and "give --bands blue=N,green=N,red=N,near_infrared=N" in asked.stderr
    result = CliRunner().invoke(main, [*command, "--bands", str(STATED.bands), "--max-nodata", "0.1"])
    assert result.exit_code == 0, result.output
    assert "Left out: 0 cells" in result.stdout and "over 10% of the chip" in result.stdout
    assert f"map: {out}" in result.stdout
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert len(features(out)) == 17 * 23


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "x", "--bands", "red=1"], "--bands goes with --scene FILE.tif"),
        (["--images", "x", "--nodata", "0"], "--nodata goes with --scene FILE.tif"),
        (["--images", "x", "--scene", "y.tif"], "give --images, or --scene without --sample"),
        (["--scene", "y.tif", "--sample", "z.csv"], "give --images, or --scene without --sample"),
        ([], "give --images, or --scene without --sample"),
        (["--scene", "y.tif", "--range", "5"], "'5' is not LOW,HIGH"),
        (["--scene", "y.tif", "--nodata", "black"], "'black' is neither a number nor none"),
    ],
)
def test_options_that_do_not_go_together_are_a_mistake_of_usage(words: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["predict", "b", *words, "--out", "o.geojson"])
    assert result.exit_code == 2 and message in result.stderr


def test_several_processes_are_refused_before_they_all_write_one_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(main, ["predict", "b", "--scene", "s.tif", "--out", "o.geojson"])
    assert result.exit_code == 1 and "one process maps a scene" in result.stderr


def test_values_far_from_the_training_chips_are_said_to_be_doubtful(bundle: Bundle, tmp_path: Path) -> None:
    usual = map_scene(bundle, write_scene(tmp_path / "a.tif", paint(64, 64, PLACES)), tmp_path / "a.json", STATED)
    assert not any("Doubtful" in line for line in usual.lines)
    bright = write_scene(tmp_path / "b.tif", paint(64, 64, PLACES) + np.uint16(30_000))
    lines = map_scene(bundle, bright, tmp_path / "b.json", STATED).lines
    assert "near_infrared" in lines[-1] and lines[-1].endswith("check --bands and --range.")


def test_missing_libraries_are_named_with_the_extra_that_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planet_dist.scene_cli.find_spec", lambda name: None if name == "rasterio" else object())
    result = CliRunner().invoke(main, ["predict", "b", "--scene", "s.tif", "--out", "o.geojson"])
    assert result.exit_code == 1 and "--scene needs rasterio" in result.stderr and "planet-dist[scene]" in result.stderr


def test_a_map_that_a_kill_left_half_done_is_cleared_away(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    (tmp_path / ".map.gpkg.tmp").mkdir()
    (tmp_path / ".map.gpkg.tmp" / "map.gpkg").write_bytes(struct.pack("<I", 7))
    map_scene(bundle, scene, tmp_path / "map.gpkg", STATED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.gpkg", "map.png"]


def test_a_folder_that_is_not_there_is_an_error(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanetError, match=r"cannot be written .* give another --out"):
        map_scene(bundle, scene, tmp_path / "no" / "map.geojson", STATED)
