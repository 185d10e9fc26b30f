"""A small dataset of made chips, drawn and packed once, and how to launch ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shards.build import BuildOptions, build
from shards.labels import PLANET
from shards.reader import Dataset
from shards.synth import write_chips

# Files that take half a minute or more, the longest first: two workers that take files in turn then end together.
SLOW = (
    "test_slurm",
    "test_elastic",
    "test_train",
    "test_liveness",
    "test_tracking_runs",
    "test_ensemble",
    "test_recipes",
    "test_ensemble_folds",
    "test_doctor",
    "test_evaluate",
    "test_predict",
)
REPOSITORY = Path(__file__).parent.parent
CHIPS = 120
# Begins a command that a test interrupts: tests in the background of a shell script ignore Ctrl-C, and so would it.
HEARS_CTRL_C = ("env", "--default-signal=INT")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


@pytest.fixture(scope="session")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Kaggle gives it: train-jpg, train-tif and train.csv, 120 chips of 32x32."""
    folder = tmp_path_factory.mktemp("made") / "chips"
    write_chips(folder, CHIPS, "both", seed=5, size=32, workers=1)
    return folder


@pytest.fixture(scope="session")
def dataset(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The chips as JPEG, in several shards."""
    out = tmp_path_factory.mktemp("datasets") / "jpg"
    build(BuildOptions(chips / "train-jpg", chips / "train.csv", out, PLANET, shard_bytes=64 * 1024))
    return Dataset(out)


@pytest.fixture(scope="session")
def tif_dataset(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The chips as 4-band TIFF."""
    out = tmp_path_factory.mktemp("datasets") / "tif"
    build(BuildOptions(chips / "train-tif", chips / "train.csv", out, PLANET, shard_bytes=512 * 1024))
    return Dataset(out)


def launch(script: str, *words: str, ranks: int = 2, timeout_seconds: float = 600) -> subprocess.CompletedProcess[str]:
    """Runs a script of the repository under accelerate launch with launch/cpu.yaml; 1 rank needs no file of its own."""
    how = ["--config_file", "launch/cpu.yaml"] if ranks > 1 else ["--num_processes", "1", "--mixed_precision", "bf16"]
    if ranks > 2:
        how += ["--num_processes", str(ranks)]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *how, script, *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def train_small(dataset: Dataset, run: Path, *words: str, ranks: int = 1) -> str:
    """Trains small-resnet-32 to its end, without W&B and figures; gives what it printed."""
    done = launch(
        "planet_dist/train.py", "--recipe", "small-resnet-32", "--data", str(dataset.root), "--out", str(run),
        *words, "tracking.wandb=off", "runtime.figures=false", ranks=ranks,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
