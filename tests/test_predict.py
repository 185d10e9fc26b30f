"""Predictions for folders: the same for a chip in any company, by the same code as evaluation, and never silent."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from accelerate import Accelerator
from click.testing import CliRunner
from PIL import Image

from planet_dist.bundle import Bundle
from planet_dist.bundle_files import write_bundle
from planet_dist.cli import main
from planet_dist.config import ModelConfig
from planet_dist.evaluate import evaluate
from planet_dist.losses import independent_logits
from planet_dist.metrics import probabilities
from planet_dist.predict import predict_folder, write_predictions_csv
from planet_dist.stream import DecodedBatches
from shards.errors import RunError
from shards.reader import Dataset
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


def test_a_chip_alone_and_in_a_folder_gets_the_same_bits(trio: Path, chips: Path, tmp_path: Path) -> None:
    together = predict_folder(trio, folder_of(chips, tmp_path / "many", range(100)))
    assert len(together.keys) == 100
    for number in (0, 37, 63, 64, 99):
        alone = predict_folder(trio, folder_of(chips, tmp_path / f"one-{number}", range(number, number + 1)))
        assert alone.keys == [f"test_{number}"]
        assert alone.probabilities_NC.tobytes() == together.probabilities_NC[number].tobytes()
        assert alone.tags == [together.tags[number]]


def test_a_chip_among_chips_of_other_sizes_gets_the_same_bits(single: Path, chips: Path, tmp_path: Path) -> None:
    alone = predict_folder(single, folder_of(chips, tmp_path / "alone", range(3)))
    mixed = folder_of(chips, tmp_path / "mixed", range(3))
    Image.new("RGB", (50, 41), (90, 120, 60)).save(mixed / "test_9.jpg")
    found = predict_folder(single, mixed)
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
    found = predict_folder(trio, folder_of(chips, tmp_path / "chips", range(30)))
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
    found = predict_folder(tmp_path / "bundle", chips / "train-tif")
    assert found.keys[:3] == ["train_0", "train_1", "train_2"] and len(found.keys) == 120
    with pytest.raises(
        RunError, match=r"the images are jpg, and the model was trained on tif \(32x32, 4 bands, uint16"
    ):
        predict_folder(tmp_path / "bundle", chips / "train-jpg")
    three = tmp_path / "three"
    three.mkdir()
    tifffile.imwrite(three / "test_0.tif", np.zeros((32, 32, 3), np.uint16), photometric="rgb")
    tifffile.imwrite(three / "test_1.tif", np.zeros((32, 32, 4), np.uint8), photometric="rgb", extrasamples=[0])
    with pytest.raises(RunError, match="no image can be used") as caught:
        predict_folder(tmp_path / "bundle", three)
    assert "3 bands of uint16: the model was trained on 4 bands of uint16; convert the image" in str(caught.value)
    assert "4 bands of uint8" in str(caught.value)


def test_an_empty_folder_is_an_error(single: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(RunError, match="no image can be used"):
        predict_folder(single, tmp_path / "none")


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
    found = predict_folder(tmp_path / "b", images)
    assert found.keys == ["test_0", "test_2"]
    assert [Path(problem.file).name for problem in found.rejected] == ["test_1.tif"]
    assert "finite" in found.rejected[0].rule


def test_the_rule_of_the_bundle_decides(dataset: Dataset, chips: Path, tmp_path: Path) -> None:
    weights = random_weights(tmp_path / "w.safetensors", TINY, dataset, 1)
    images = folder_of(chips, tmp_path / "images", range(5))
    for value, expected in ((0.0, dataset.manifest.labels), (1.0, [])):
        rule = flat(dataset.manifest.labels, value)
        write_bundle(tmp_path / "b", bundle_of(dataset, [member(dataset, weights)], thresholds=rule), [weights])
        assert predict_folder(tmp_path / "b", images).tags == [expected] * 5


def test_a_csv_that_cannot_be_written_is_an_error(single: Path, chips: Path, tmp_path: Path) -> None:
    found = predict_folder(single, folder_of(chips, tmp_path / "images", range(1)))
    with pytest.raises(ValueError, match=r"cannot be written .* give another --out"):
        write_predictions_csv(tmp_path / "no" / "such" / "out.csv", found)
