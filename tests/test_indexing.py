"""Tars that others wrote become a dataset where they lie, with the same chips, labels and figures as a build's."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner
from PIL import Image

from planet_dist.config import load_config
from planet_dist.data import open_data
from shards.cli import main
from shards.errors import ConfigError, DatasetError, InputError
from shards.indexing import IndexOptions, index_tars
from shards.labels import PLANET
from shards.reader import Dataset
from shards.verify import verify
from tests.conftest import CHIPS


@pytest.fixture
def tars(chips: Path, dataset: Dataset, tmp_path: Path) -> Path:
    """The session's chips as webdataset's own ShardWriter packs them, with label bits as cls, and a json beside."""
    folder = tmp_path / "tars"
    folder.mkdir()
    labels = dict(zip(dataset.keys(range(CHIPS)), dataset.index()["labels"].tolist(), strict=True))
    with webdataset.ShardWriter(str(folder / "set-%04d.tar"), maxcount=50, verbose=0) as writer:
        for path in sorted((chips / "train-jpg").iterdir()):
            sample = {"__key__": path.stem, "jpg": path.read_bytes(), "cls": labels[path.stem], "json": {"a": 1}}
            writer.write(sample)
    return folder


def by_key(found: Dataset) -> dict[str, tuple[int, bytes]]:
    bits = found.index()["labels"].tolist()
    return {key: (bits[i], bytes(found.image(i))) for i, key in enumerate(found.keys(range(len(found))))}


def test_tars_of_webdatasets_own_writer_give_what_a_build_gives(tars: Path, dataset: Dataset) -> None:
    before = {path: path.read_bytes() for path in tars.iterdir()}
    report = index_tars(IndexOptions(tars, None, PLANET, classes="bits", workers=2))
    found, expected = Dataset(tars), dataset.manifest
    assert report.other_members == CHIPS
    assert {path: path.read_bytes() for path in before} == before
    assert by_key(found) == by_key(dataset)
    assert found.manifest.tars == "indexed" and len(found.manifest.shards) == 3
    for name in ("label_counts", "cooccurrence", "mean", "std", "image", "labels"):
        assert getattr(found.manifest, name) == getattr(expected, name), name
    np.testing.assert_array_equal(found.pixels(7), dataset.pixels(dataset.keys(range(CHIPS)).index(found.keys([7])[0])))


def test_the_check_and_training_take_indexed_tars(tars: Path) -> None:
    index_tars(IndexOptions(tars, None, PLANET, classes="bits"))
    (tars / "README.md").write_text("of somebody else")
    report = verify(tars, workers=2)
    assert report.chips == CHIPS and not report.problems
    data = open_data(load_config("small-resnet-32", ["data.split=tail:30"]), tars)
    assert len(data.split.train_ids) == CHIPS - 30 and data.targets_NC.sum() > CHIPS


def test_a_csv_gives_the_labels_of_tars_that_plain_tar_wrote(chips: Path, dataset: Dataset, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(chips / "train-jpg", "train-jpg")
    result = CliRunner().invoke(main, ["index", str(tmp_path), "--labels", str(chips / "train.csv"), "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert f"{CHIPS} chips" in result.output and "other members, passed over: 1" in result.output
    assert by_key(Dataset(tmp_path)) == by_key(dataset)
    assert CliRunner().invoke(main, ["verify", str(tmp_path), "--workers", "1"]).exit_code == 0


def jpeg(seed: int = 0, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), np.random.default_rng(seed).bytes(side * side * 3)).save(file, "jpeg")
    return file.getvalue()


def tar_of(folder: Path, name: str, *members: tuple[str, bytes]) -> None:
    with tarfile.open(folder / name, "w") as tar:
        for member, data in members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_a_class_may_be_the_place_of_one_label(tmp_path: Path) -> None:
    tar_of(tmp_path, "a.tar", ("x.cls", b"16"), ("x.jpg", jpeg()))
    index_tars(IndexOptions(tmp_path, None, PLANET, classes="index"))
    assert PLANET.names(int(Dataset(tmp_path).index()["labels"][0])) == ["water"]


def test_chips_without_labels_are_taken_where_asked(tmp_path: Path) -> None:
    tar_of(tmp_path, "a.tar", ("x.jpg", jpeg()))
    index_tars(IndexOptions(tmp_path, None, PLANET, unlabelled=True))
    found = Dataset(tmp_path)
    assert len(found) == 1 and found.manifest.labelled == 0 and not verify(tmp_path).problems


@pytest.mark.parametrize(
    ("members", "options", "said"),
    [
        ([("x.jpg", b"no image")], {"unlabelled": True}, "not one"),
        ([("x.jpg", jpeg()), ("y.jpg", jpeg(side=9))], {"unlabelled": True}, "one form"),
        ([("x.jpg", jpeg()), ("y.tif", b"II*\0")], {"unlabelled": True}, "one kind of image"),
        ([("x.jpg", jpeg())], {"classes": "bits"}, "'x' has none"),
        ([("x.jpg", jpeg()), ("x.cls", b"131072")], {"classes": "bits"}, "bits of 17 labels"),
        ([("x.jpg", jpeg()), ("x.cls", b"17")], {"classes": "index"}, "place of one of 17 labels"),
        ([("x.jpg", jpeg()), ("x.cls", b"-1")], {"classes": "index"}, "place of one of 17 labels"),
        ([("x.jpg", jpeg()), ("x.cls", b"clear")], {"classes": "bits"}, "'clear'"),
        ([("README", b"")], {"unlabelled": True}, "not one"),
    ],
)
def test_what_is_wrong_with_tars_is_reported_and_nothing_is_written(
    tmp_path: Path, members: list[tuple[str, bytes]], options: dict[str, object], said: str
) -> None:
    tar_of(tmp_path, "a.tar", *members)
    with pytest.raises(InputError, match=said):
        index_tars(IndexOptions(tmp_path, None, PLANET, **options))  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_rows_without_an_image_and_images_without_a_row_are_problems(tmp_path: Path) -> None:
    tar_of(tmp_path, "a.tar", ("x.jpg", jpeg()), ("y.jpg", jpeg(1)))
    rows = tmp_path / "labels.csv"
    rows.write_text("image_name,tags\nx,clear\nz,haze\n")
    with pytest.raises(InputError, match="no member for 'z'"):
        index_tars(IndexOptions(tmp_path, rows, PLANET))
    rows.write_text("image_name,tags\nx,clear\n")
    with pytest.raises(InputError, match="'y' has none"):
        index_tars(IndexOptions(tmp_path, rows, PLANET))


def test_a_name_in_two_tars_is_a_problem(tmp_path: Path) -> None:
    tar_of(tmp_path, "a.tar", ("x.jpg", jpeg()))
    tar_of(tmp_path, "b.tar", ("x.jpg", jpeg(1)))
    with pytest.raises(InputError, match=r"'x' stands in a\.tar too"):
        index_tars(IndexOptions(tmp_path, None, PLANET, unlabelled=True))


def test_what_a_class_means_has_to_be_said(tmp_path: Path) -> None:
    tar_of(tmp_path, "a.tar", ("x.jpg", jpeg()), ("x.cls", b"3"))
    for options in (IndexOptions(tmp_path, None, PLANET), IndexOptions(tmp_path, None, PLANET, unlabelled=True)):
        with pytest.raises(ConfigError, match="--classes bits or --classes index"):
            index_tars(options)


def test_nothing_of_others_is_written_over(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="holds a dataset already"):
        index_tars(IndexOptions(dataset.root, None, PLANET, classes="bits"))
    tar_of(tmp_path, "a.tar", ("x.jpg", jpeg()))
    (tmp_path / "a.idx").write_text("v1.2 1\njpg 512 100 x.jpg\n")
    with pytest.raises(DatasetError, match="of another program"):
        index_tars(IndexOptions(tmp_path, None, PLANET, unlabelled=True))
    assert (tmp_path / "a.idx").read_text().startswith("v1.2")


@pytest.mark.parametrize(
    ("name", "said"), [("a.b.tar", "rename it"), ("a.tar.gz", "unpack a.tar.gz"), ("b", "no file")]
)
def test_files_that_are_no_plain_shards_are_named(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=said):
        index_tars(IndexOptions(tmp_path, None, PLANET, unlabelled=True))


def test_a_changed_indexed_tar_is_found_by_the_check(tars: Path) -> None:
    index_tars(IndexOptions(tars, None, PLANET, classes="bits"))
    record = Dataset(tars).index()[0]
    path = tars / "set-0000.tar"
    data = bytearray(path.read_bytes())
    data[int(record["offset"]) + 40] ^= 1
    path.write_bytes(data)
    found = "\n".join(f"{problem}: {problem.rule}" for problem in verify(tars).problems)
    assert f"{bytes(record['key']).decode()}': its bytes have changed" in found and "sha256" in found
    with pytest.raises(DatasetError, match="its bytes have changed"):
        Dataset(tars).image(0)
