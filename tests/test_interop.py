"""What webdataset reads from a dataset on its own: every sample, once, with its bytes and labels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import planet_dist
from shards.build import BuildOptions, build
from shards.labels import PLANET
from shards.reader import Dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve chips in at least four shards, the last chip unlabelled."""
    root = tmp_path_factory.mktemp("interop")
    images = root / "chips"
    images.mkdir()
    rng = np.random.default_rng(0)
    rows = ["image_name,tags"]
    for number in range(12):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"train_{number}.jpg")
        if number < 11:
            rows.append(f"train_{number},clear {PLANET.labels[number % 3]}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    options = BuildOptions(images, root / "labels.csv", root / "out", PLANET, shard_bytes=10240, unlabelled=True)
    assert len(build(options).manifest.shards) >= 4
    return root / "out"


def test_every_sample_comes_through_webdataset_alone_with_its_bytes_and_labels(dataset: Path) -> None:
    reader = Dataset(dataset)
    index = reader.index()
    samples = list(planet_dist.as_webdataset(dataset))
    assert [sample["__key__"] for sample in samples] == reader.keys(range(12))
    for chip_id, sample in enumerate(samples):
        assert sample["jpg"] == bytes(reader.image(chip_id))
        if index["labelled"][chip_id]:
            assert int(sample["cls"]) == index["labels"][chip_id]
        else:
            assert "cls" not in sample


def test_ranks_share_the_samples_out_without_overlap(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        keys = [sample["__key__"] for sample in planet_dist.as_webdataset(dataset, shuffle_shards=True, seed=7)]
        assert keys
        seen += keys
    assert sorted(seen) == sorted(Dataset(dataset).keys(range(12)))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where one core has to do for both workers
def test_loader_workers_share_the_samples_out_without_overlap(dataset: Path) -> None:
    from torch.utils.data import DataLoader

    loader = DataLoader(planet_dist.as_webdataset(dataset), batch_size=None, num_workers=2)
    assert sorted(sample["__key__"] for sample in loader) == sorted(Dataset(dataset).keys(range(12)))


def test_the_seed_alone_sets_the_order_of_shards(dataset: Path) -> None:
    def keys(seed: int) -> list[str]:
        return [sample["__key__"] for sample in planet_dist.as_webdataset(dataset, shuffle_shards=True, seed=seed)]

    assert keys(1) == keys(1)
    assert len({tuple(keys(seed)) for seed in range(5)}) > 1


def test_importing_the_package_imports_neither_torch_nor_webdataset() -> None:
    code = "import planet_dist, sys; print('torch' in sys.modules, 'webdataset' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
