"""Predictions for folders: the same for a chip in any company, by the same code as evaluation, and never silent."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from accelerate import Accelerator
from click.testing import CliRunner, Result
from PIL import Image
from pyarrow import parquet

from planet_dist import predict_parts
from planet_dist.bundle import Bundle
from planet_dist.bundle_files import write_bundle
from planet_dist.cli import main
from planet_dist.config import ModelConfig
from planet_dist.evaluate import evaluate
from planet_dist.losses import independent_logits
from planet_dist.metrics import probabilities
from planet_dist.predict import alone, predict_files
from planet_dist.predict_files import Predicted
from planet_dist.stream import DecodedBatches
from shards.errors import RunError
from shards.reader import Dataset
from tests.conftest import launch
from tests.made_runs import TINY, bundle_of, flat, member, random_weights

WEATHER = [5, 6, 10, 11]  # clear, cloudy, haze, partly_cloudy


@pytest.fixture(scope="module")
def single(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one member that averages eight views."""
    folder = tmp_path_factory.mktemp("single")
    weights = random_weights(folder / "w.safetensors", TINY, dataset, 1)
    write_bundle(folder / "bundle", bundle_of(dataset, [member(dataset, weights, turns=8)]), [weights])
    return folder / "bundle"


@pytest.fixture(scope="module")
def trio(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A voting bundle of three members that see chips at different sizes; in one the weather labels compete."""
    folder = tmp_path_factory.mktemp("trio")
    weights = [random_weights(folder / f"{i}.safetensors", TINY, dataset, i) for i in range(3)]
    settings = [{"turns": 8}, {"size": 24, "normalise": "per-chip"}, {"competing_groups": [WEATHER]}]
    members = [
        member(dataset, file, weights=f"model-{i}.safetensors", **setting)
        for i, (file, setting) in enumerate(zip(weights, settings, strict=True))
    ]
    write_bundle(folder / "bundle", bundle_of(dataset, members, rule="vote"), weights)
    return folder / "bundle"


def folder_of(chips: Path, out: Path, numbers: range) -> Path:
    out.mkdir()
    for number in numbers:
        shutil.copy(chips / "train-jpg" / f"train_{number}.jpg", out / f"test_{number}.jpg")
    return out


def predicted_of(bundle: Path, images: Path, **options: Any) -> Predicted:
    out = images.parent / f"{images.name}.csv"
    written = predict_files(bundle, [str(images)], out, ranks=alone("cpu", threads=2), **options)
    assert written is not None
    return written.predicted


def test_a_chip_alone_and_in_a_folder_gets_the_same_bits(trio: Path, chips: Path, tmp_path: Path) -> None:
    together = predicted_of(trio, folder_of(chips, tmp_path / "many", range(100)))
    assert len(together.keys) == 100
    for number in (0, 37, 63, 64, 99):
        alone = predicted_of(trio, folder_of(chips, tmp_path / f"one-{number}", range(number, number + 1)))
        assert alone.keys == [f"test_{number}"]
        assert alone.probabilities_NC.tobytes() == together.probabilities_NC[number].tobytes()
        assert alone.tags == [together.tags[number]]


def test_a_chip_among_chips_of_other_sizes_gets_the_same_bits(single: Path, chips: Path, tmp_path: Path) -> None:
    alone = predicted_of(single, folder_of(chips, tmp_path / "alone", range(3)))
    mixed = folder_of(chips, tmp_path / "mixed", range(3))
    Image.new("RGB", (50, 41), (90, 120, 60)).save(mixed / "test_9.jpg")
    found = predicted_of(single, mixed)
    assert found.keys == ["test_0", "test_1", "test_2", "test_9"]
    assert found.probabilities_NC[:3].tobytes() == alone.probabilities_NC.tobytes()


def test_prediction_says_what_evaluation_says_in_float32(dataset: Dataset, trio: Path, chips: Path) -> None:
    ready = Bundle.load(trio).members[2]
    decoded = DecodedBatches(
        dataset, np.zeros((dataset.manifest.count, 17), np.uint8), 16, threads=1, prefetch_batches=2, pinned=False
    )
    evaluated = evaluate(
        ready.model,
        lambda logits_BC: independent_logits(logits_BC, ready.competing_groups),
        ready.preprocess,
        decoded,
        np.arange(dataset.manifest.count),
        batch_size=16,
        turns=ready.turns,
        accelerator=Accelerator(cpu=True),
    )
    found_MBC = Bundle.load(trio).member_probabilities([dataset.pixels(i) for i in range(16)])
    np.testing.assert_allclose(found_MBC[2], probabilities(evaluated.logits_NC[:16]), atol=1e-6)


def test_probabilities_of_labels_that_compete_add_up_to_one(trio: Path, dataset: Dataset) -> None:
    found_MBC = Bundle.load(trio).member_probabilities([dataset.pixels(i) for i in range(16)])
    np.testing.assert_allclose(found_MBC[2][:, WEATHER].sum(axis=1), 1.0, atol=1e-6)
    assert np.abs(found_MBC[0][:, WEATHER].sum(axis=1) - 1.0).max() > 0.1


def test_members_vote_as_counted_by_hand(trio: Path, chips: Path, dataset: Dataset, tmp_path: Path) -> None:
    found = predicted_of(trio, folder_of(chips, tmp_path / "chips", range(30)))
    bundle = Bundle.load(trio)
    images = [np.asarray(Image.open(tmp_path / "chips" / f"{key}.jpg").convert("RGB")) for key in found.keys]
    each_MNC = np.concatenate([bundle.member_probabilities(images[start : start + 15]) for start in (0, 15)], axis=1)
    for n in range(30):
        votes = {label: sum(each_MNC[m, n, c] > 0.5 for m in range(3)) for c, label in enumerate(bundle.labels)}
        assert found.tags[n] == [label for label in bundle.labels if votes[label] >= 2]
    assert found.probabilities_NC.tolist() == (each_MNC.sum(axis=0) / 3).tolist()
    assert len({tuple(tags) for tags in found.tags}) > 3


def test_the_csv_names_both_families_in_natural_order(single: Path, chips: Path, tmp_path: Path) -> None:
    images = tmp_path / "test"
    images.mkdir()
    for name in ("test_10", "test_9", "file_100", "file_11"):
        shutil.copy(chips / "train-jpg" / "train_1.jpg", images / f"{name}.jpg")
    out = tmp_path / "out.csv"
    result = CliRunner().invoke(main, ["predict", str(single), "--images", str(images), "--out", str(out)])
    assert result.exit_code == 0, result.output
    with out.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image_name", "tags"]
    assert [row[0] for row in rows[1:]] == ["file_11", "file_100", "test_9", "test_10"]
    assert len({row[1] for row in rows[1:]}) == 1
    assert set(rows[1][1].split()) <= set(Bundle.load(single).labels)


def test_images_that_cannot_be_read_are_listed_beside_the_csv_of_the_others(
    single: Path, chips: Path, tmp_path: Path
) -> None:
    images = folder_of(chips, tmp_path / "images", range(4))
    (images / "test_1.jpg").write_bytes((images / "test_1.jpg").read_bytes()[:200])
    (images / "test_2.jpg").write_bytes(b"")
    Image.new("RGB", (32, 32)).save(images / "test_7.png")
    (images / "test_7.png").rename(images / "test_7.jpg")
    Image.new("L", (32, 32)).save(images / "test_8.jpg")
    out = tmp_path / "out.csv"
    command = ["predict", str(single), "--images", str(images), "--out", str(out)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "3 images predicted" in result.stdout  # PIL's convert("RGB") takes grey ones too
    rejected = tmp_path / "out.rejected.csv"
    assert f"3 images could not be used; {rejected} lists them" in result.stderr
    with rejected.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(Path(row["file"]).name for row in rows) == ["test_1.jpg", "test_2.jpg", "test_7.jpg"]
    assert all(row["rule"] and row["remedy"] for row in rows)
    with out.open(newline="") as file:
        assert [row["image_name"] for row in csv.DictReader(file)] == ["test_0", "test_3", "test_8"]
    for name in (1, 2, 7):
        (images / f"test_{name}.jpg").unlink()
    assert CliRunner().invoke(main, command).exit_code == 0
    assert not rejected.exists(), "an older list would seem to be of this prediction"


def test_tiffs_are_predicted_and_other_kinds_bands_and_types_are_refused(
    tif_dataset: Dataset, chips: Path, tmp_path: Path
) -> None:
    weights = random_weights(tmp_path / "w.safetensors", ModelConfig(name="paper1-cnn"), tif_dataset, 3)
    of_tif = bundle_of(tif_dataset, [member(tif_dataset, weights, model=ModelConfig(name="paper1-cnn"))])
    write_bundle(tmp_path / "bundle", of_tif, [weights])
    shutil.copytree(chips / "train-tif", tmp_path / "four")
    found = predicted_of(tmp_path / "bundle", tmp_path / "four")
    assert found.keys[:3] == ["train_0", "train_1", "train_2"] and len(found.keys) == 120
    with pytest.raises(
        RunError, match=r"the images are jpg, and the model was trained on tif \(32x32, 4 bands, uint16"
    ):
        predicted_of(tmp_path / "bundle", chips / "train-jpg")
    three = tmp_path / "three"
    three.mkdir()
    tifffile.imwrite(three / "test_0.tif", np.zeros((32, 32, 3), np.uint16), photometric="rgb")
    tifffile.imwrite(three / "test_1.tif", np.zeros((32, 32, 4), np.uint8), photometric="rgb", extrasamples=[0])
    with pytest.raises(RunError, match="no image can be used") as caught:
        predicted_of(tmp_path / "bundle", three)
    assert "3 bands of uint16: the model was trained on 4 bands of uint16; convert the image" in str(caught.value)
    assert "4 bands of uint8" in str(caught.value)


def test_an_empty_folder_is_an_error(single: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(RunError, match="no image can be used"):
        predicted_of(single, tmp_path / "none")


def test_a_chip_without_a_finite_answer_is_rejected_by_name(tif_dataset: Dataset, tmp_path: Path) -> None:
    weights = random_weights(tmp_path / "w.safetensors", TINY, tif_dataset, 3)
    form = tif_dataset.manifest.image.model_copy(update={"dtype": "float32"})
    write_bundle(tmp_path / "b", bundle_of(tif_dataset, [member(tif_dataset, weights)], image=form), [weights])
    images = tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).uniform(0, 9000, (3, 32, 32, 4)).astype(np.float32)
    pixels[1, 5, 5, 2] = np.inf
    for number in range(3):
        tifffile.imwrite(images / f"test_{number}.tif", pixels[number], photometric="rgb", extrasamples=[0])
    found = predicted_of(tmp_path / "b", images)
    assert found.keys == ["test_0", "test_2"]
    assert [Path(problem.file).name for problem in found.rejected] == ["test_1.tif"]
    assert "finite" in found.rejected[0].rule


def test_the_rule_of_the_bundle_decides(dataset: Dataset, chips: Path, tmp_path: Path) -> None:
    weights = random_weights(tmp_path / "w.safetensors", TINY, dataset, 1)
    images = folder_of(chips, tmp_path / "images", range(5))
    for value, expected in ((0.0, dataset.manifest.labels), (1.0, [])):
        rule = flat(dataset.manifest.labels, value)
        write_bundle(tmp_path / "b", bundle_of(dataset, [member(dataset, weights)], thresholds=rule), [weights])
        assert predicted_of(tmp_path / "b", images).tags == [expected] * 5


def two_families(chips: Path, out: Path, count: int) -> list[str]:
    """The words that name two folders of chips, test_N and file_N."""
    folders = [out / "test-jpg", out / "test-jpg-additional"]
    for family, folder in zip(("test", "file"), folders, strict=True):
        folder.mkdir(parents=True)
        for number in range(count):
            shutil.copy(chips / "train-jpg" / f"train_{number}.jpg", folder / f"{family}_{number}.jpg")
    return [word for folder in folders for word in ("--images", str(folder))]


def sample_of(path: Path, names: list[str]) -> Path:
    path.write_text("image_name,tags\n" + "".join(f"{name},primary clear\n" for name in names))
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["predict", *map(str, words)])


def test_a_submission_is_what_the_competition_takes(
    single: Path, chips: Path, dataset: Dataset, tmp_path: Path
) -> None:
    names = [f"{family}_{number}" for family in ("test", "file") for number in range(20)]
    np.random.default_rng(0).shuffle(names)
    sample = sample_of(tmp_path / "sample.csv", names)
    out = tmp_path / "out.csv"
    result = run(single, *two_families(chips, tmp_path, 20), "--sample", sample, "--out", out)
    assert result.exit_code == 0, result.output
    with out.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image_name", "tags"]
    assert [name for name, _ in rows] == names
    assert all(set(tags.split(" ")) <= set(dataset.manifest.labels) for _, tags in rows if tags)
    by_name = dict(rows)
    assert all(by_name[f"test_{number}"] == by_name[f"file_{number}"] for number in range(20))
    assert len(set(by_name.values())) > 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: [*names, "test_77"], r"1 chip (test_77) of it missing among the images that can be read"),
        (lambda names: names[1:], r"1 image (test_0) unknown to it"),
        (lambda names: [*names[1:], "file_9", "file_10"], r"2 chips (file_9, file_10) of it missing"),
        (lambda names: [*names, "test_1"], r"1 name (test_1) more than once"),
        (lambda names: [], "names no chip"),
    ],
)
def test_a_submission_with_missing_unknown_or_doubled_names_is_never_written(
    single: Path,
    chips: Path,
    tmp_path: Path,
    change: Callable[[list[str]], list[str]],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Bundle, "member_probabilities", lambda *_: pytest.fail("it computed before it looked"))
    images = folder_of(chips, tmp_path / "images", range(3))
    sample = sample_of(tmp_path / "sample.csv", change([f"test_{number}" for number in range(3)]))
    result = run(single, "--images", images, "--sample", sample, "--out", tmp_path / "out.csv")
    assert result.exit_code == 1 and message in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "sample.csv"]


def test_a_file_that_is_no_sample_is_named(single: Path, chips: Path, tmp_path: Path) -> None:
    images = folder_of(chips, tmp_path / "images", range(1))
    (tmp_path / "sample.csv").write_text("name;tags\ntest_0;primary\n")
    result = run(single, "--images", images, "--sample", tmp_path / "sample.csv", "--out", tmp_path / "out.csv")
    assert result.exit_code == 1
    assert "sample.csv:1: the header is 'name;tags'; a sample submission's is 'image_name,tags'" in result.stderr


def test_a_chip_that_cannot_be_read_keeps_a_submission_from_being_written_until_it_is_mended(
    single: Path, chips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_parts, "PART_CHIPS", 16)
    images = folder_of(chips, tmp_path / "images", range(40))
    whole = (images / "test_20.jpg").read_bytes()
    (images / "test_20.jpg").write_bytes(whole[:300])
    sample = sample_of(tmp_path / "sample.csv", [f"test_{number}" for number in range(40)])
    words = (single, "--images", images, "--sample", sample, "--out", tmp_path / "out.csv")
    result = run(*words)
    assert result.exit_code == 1 and "1 chip (test_20) of it missing" in result.stderr
    assert not (tmp_path / "out.csv").exists()
    assert "test_20.jpg" in (tmp_path / "out.rejected.csv").read_text()
    (images / "test_20.jpg").write_bytes(whole)
    computed = count_chips(monkeypatch)
    assert run(*words).exit_code == 0
    assert sum(computed) == 16, "the part that it stands in, and no other"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.csv", "sample.csv"]


def count_chips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []
    compute = Bundle.member_probabilities

    def counted(bundle: Bundle, given: Sequence[Any]) -> Any:
        counts.append(len(given))
        return compute(bundle, given)

    monkeypatch.setattr(Bundle, "member_probabilities", counted)
    return counts


def test_one_name_in_two_folders_is_an_error_that_names_both(single: Path, chips: Path, tmp_path: Path) -> None:
    first, second = (folder_of(chips, tmp_path / name, range(3)) for name in ("first", "second"))
    result = run(single, "--images", first, "--images", second, "--out", tmp_path / "out.csv")
    assert result.exit_code == 1
    assert "3 name(s) stand for more than one chip" in result.stderr
    assert f"test_0: {first / 'test_0.jpg'}, {second / 'test_0.jpg'}" in result.stderr
    assert not (tmp_path / "out.csv").exists()


def test_a_dataset_is_predicted_as_the_folder_that_it_was_built_from(
    single: Path, chips: Path, dataset: Dataset, tif_dataset: Dataset, tmp_path: Path
) -> None:
    for name, images in (("folder", chips / "train-jpg"), ("dataset", dataset.root), ("url", f"file://{dataset.root}")):
        assert run(single, "--images", images, "--out", tmp_path / f"{name}.parquet").exit_code == 0
    data = {path.read_bytes() for path in tmp_path.glob("*.parquet")}
    assert len(data) == 1
    result = run(single, "--images", tif_dataset.root, "--out", tmp_path / "out.csv")
    assert result.exit_code == 1 and "the model was trained on jpg of uint8 red, green, blue" in result.stderr


def test_parquet_has_keys_tags_probabilities_and_decisions(single: Path, chips: Path, tmp_path: Path) -> None:
    images = folder_of(chips, tmp_path / "images", range(30))
    expected = predicted_of(single, images)
    assert run(single, "--images", images, "--out", tmp_path / "out.parquet").exit_code == 0
    table = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert table["image_name"] == expected.keys
    assert [tags.split() for tags in table["tags"]] == expected.tags
    for c, label in enumerate(expected.labels):
        assert table[f"{label}_probability"] == expected.probabilities_NC[:, c].tolist()
        assert table[f"{label}_decided"] == expected.decisions_NC[:, c].tolist()
    assert len(table) == 2 + 2 * 17


class Killed(Exception):
    """What stops a prediction halfway."""


def test_a_prediction_that_was_stopped_goes_on_and_takes_no_part_of_another(
    single: Path, chips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_parts, "PART_CHIPS", 16)
    images, out = folder_of(chips, tmp_path / "images", range(80)), tmp_path / "out.csv"
    whole = predicted_of(single, images)
    computed = count_chips(monkeypatch)

    def stop(done: int, total: int) -> None:
        if done > 40:
            raise Killed

    def predict(**options: Any) -> Any:
        computed.clear()
        return predict_files(single, [str(images)], out, ranks=alone("cpu", threads=1), **options)

    def kill(**options: Any) -> list[Path]:
        shutil.rmtree(tmp_path / ".out.csv.parts", ignore_errors=True)
        with pytest.raises(Killed):
            predict(progress=stop, **options)
        assert not out.exists()
        return list((tmp_path / ".out.csv.parts").iterdir())

    assert len(kill()) == 2
    assert predict().predicted.probabilities_NC.tobytes() == whole.probabilities_NC.tobytes()
    assert sum(computed) == 48
    assert not (tmp_path / ".out.csv.parts").exists()
    out.unlink()

    kill(turns=1)
    assert predict().predicted.probabilities_NC.tobytes() == whole.probabilities_NC.tobytes()
    assert sum(computed) == 80, "other views are another prediction"
    out.unlink()

    for part in kill():
        part.write_bytes(part.read_bytes()[:-40])
    assert predict().predicted.probabilities_NC.tobytes() == whole.probabilities_NC.tobytes()
    assert sum(computed) == 80, "damaged parts are computed again"
    out.unlink()

    kill()
    shutil.copy(images / "test_5.jpg", images / "test_3.jpg")
    found_NC = predict().predicted.probabilities_NC
    assert sum(computed) == 64, "the part of a changed image is computed again"
    assert found_NC[3].tobytes() == found_NC[5].tobytes() != whole.probabilities_NC[3].tobytes()
    others = np.arange(80) != 3
    assert found_NC[others].tobytes() == whole.probabilities_NC[others].tobytes()


def test_two_processes_write_the_bytes_of_one(single: Path, chips: Path, tmp_path: Path) -> None:
    words = two_families(chips, tmp_path, 110)
    alone_out, together_out = tmp_path / "one.parquet", tmp_path / "two.parquet"
    assert run(single, *words, "--out", alone_out).exit_code == 0
    done = launch("-m", "planet_dist.cli", "predict", str(single), *words, "--out", str(together_out))
    assert done.returncode == 0, done.stderr
    assert (
        "predict (process 1 of 2): 128 of 128 images" in done.stderr and done.stdout.count("220 images predicted") == 1
    )
    assert together_out.read_bytes() == alone_out.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    failed = launch("-m", "planet_dist.cli", "predict", str(single), "--images", str(chips), "--out", str(together_out))
    assert failed.returncode != 0 and failed.stderr.count("no image can be used") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.txt", "ends in .txt; give --out FILE.csv or FILE.parquet"),
        ("no/such/out.csv", "cannot be written (there is no folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_computed(
    single: Path, chips: Path, tmp_path: Path, name: str, message: str
) -> None:
    images = folder_of(chips, tmp_path / "images", range(1))
    result = run(single, "--images", images, "--out", tmp_path / name)
    assert result.exit_code == 1 and message in result.stderr


def test_parquet_without_its_library_names_the_extra(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run(single, "--images", tmp_path, "--out", tmp_path / "out.parquet")
    assert result.exit_code == 1 and "pip install 'planet-dist[parquet]'" in result.stderr
