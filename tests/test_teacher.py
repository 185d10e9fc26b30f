"""A finished run teaches another: its answers soften targets, and one that knows what is held out is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from planet_dist.assembly import assemble
from planet_dist.bundle_files import read_description
from planet_dist.config import Config, load_config
from planet_dist.data import Data, open_data
from planet_dist.engine import run_identity
from planet_dist.evaluate import Logits
from planet_dist.runfolder import differences, settings
from planet_dist.teacher import Teacher, open_teacher
from shards.errors import PlanetError
from shards.reader import Dataset
from tests.conftest import launch
from tests.made_runs import made_fold_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def taught_elsewhere(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that held out fold 1 of 3."""
    return made_fold_run(tmp_path_factory.mktemp("teachers") / "fold-1", dataset, 1, "kfold:3/1")


def student(dataset: Dataset, teacher: Path, *words: str) -> tuple[Config, Data]:
    config = load_config("small-resnet-32", ["data.split=kfold:3/1", f'teacher.run="{teacher}"', *words])
    return config, open_data(config, dataset.root)


def opened(dataset: Dataset, teacher: Path, *words: str) -> Teacher | None:
    config, data = student(dataset, teacher, *words)
    return open_teacher(config, data, CPU)


def test_targets_of_the_chips_that_train_move_towards_the_answers(dataset: Dataset, taught_elsewhere: Path) -> None:
    teacher = opened(dataset, taught_elsewhere, "teacher.weight=0.25")
    assert teacher is not None
    targets_NC = np.array([[0, 1], [1, 0], [1, 1]], dtype=np.uint8)
    soft_NC = teacher.soften(targets_NC, Logits(np.array([2, 0]), np.log([[3.0, 1 / 3], [1.0, 1.0]], dtype=np.float32)))
    assert soft_NC.dtype == np.float32
    assert np.allclose(soft_NC, np.array([[0.125, 0.875], [1, 0], [0.9375, 0.8125]]))


def test_a_taught_run_begins_at_the_loss_of_the_teacher_s_answers_and_names_it(
    dataset: Dataset, taught_elsewhere: Path, tmp_path: Path
) -> None:
    run = tmp_path / "taught"
    words = ["model.width=8", "data.split=kfold:3/1", f'teacher.run="{taught_elsewhere}"', "teacher.weight=0.75"]
    words += ["phases.0.epochs=1", "phases.0.batch_size=40", "runtime.log_every_steps=1", "runtime.figures=false"]
    done = launch(
        "planet_dist/train.py", "--recipe", "small-resnet-32", "--data", str(dataset.root), "--out", str(run),
        *words, "tracking.wandb=off", ranks=1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"the teacher, {taught_elsewhere}, first answers 80 chips" in done.stdout
    config = load_config("small-resnet-32", words)
    data = open_data(config, dataset.root)
    teacher = open_teacher(config, data, CPU)
    assert teacher is not None
    told = read_description(run / "bundle").members[0].protocol["teacher"]
    assert told == f"weights of sha256 {teacher.sha256}, 0.75 of the targets"

    ids_B = data.plan(config, config.phases[0]).batch(0, 0)
    images_BHWC = torch.from_numpy(np.stack([dataset.pixels(int(chip)) for chip in ids_B]))
    with torch.no_grad():
        answers_BC = teacher.network.model(teacher.network.preprocess.evaluate(images_BHWC)).sigmoid()
        parts = assemble(config, data, CPU)
        logits_BC = parts.model.train()(parts.preprocess.train(images_BHWC, ids_B, 0))
        labels_BC = torch.from_numpy(data.targets_NC[ids_B]).float()
        softened, untaught = (
            float(parts.loss(logits_BC, targets_BC, len(ids_B)).mean())
            for targets_BC in (0.25 * labels_BC + 0.75 * answers_BC, labels_BC)
        )
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(softened - untaught) > 0.01
    assert first["loss"] == pytest.approx(softened, abs=0.003)  # where there is bf16, it computes in that


def test_a_run_is_held_to_the_network_that_taught_it_wherever_that_lies(
    dataset: Dataset, taught_elsewhere: Path, tmp_path: Path
) -> None:
    def identity(teacher: Path) -> dict[str, Any]:
        config, data = student(dataset, teacher)
        accelerator = SimpleNamespace(mixed_precision="no")
        return run_identity(config, data, accelerator, open_teacher(config, data, CPU))  # type: ignore[arg-type]

    shutil.copytree(taught_elsewhere, tmp_path / "moved")
    other = made_fold_run(tmp_path / "other", dataset, 2, "kfold:3/1")
    assert differences(identity(taught_elsewhere), identity(tmp_path / "moved")) == []
    assert [where for where, _, _ in differences(identity(taught_elsewhere), identity(other))] == ["teacher"]
    configs = [student(dataset, run)[0] for run in (taught_elsewhere, tmp_path / "moved")]
    assert settings(configs[0]) == settings(configs[1])
    untaught = load_config("small-resnet-32", ["data.split=kfold:3/1"])
    assert [where for where, _, _ in differences(settings(untaught), settings(configs[0]))] == ["teacher"]


def test_a_run_without_a_teacher_has_none(dataset: Dataset) -> None:
    config = load_config("small-resnet-32", ["data.split=kfold:3/1"])
    assert open_teacher(config, open_data(config, dataset.root), CPU) is None


def test_a_teacher_that_was_trained_on_chips_that_are_held_out_is_refused(
    dataset: Dataset, taught_elsewhere: Path
) -> None:
    with pytest.raises(
        PlanetError, match=r"was trained on 40 of the 40 chips that this run holds out \(\S+ is the first"
    ):
        opened(dataset, taught_elsewhere, "data.split=kfold:3/0")
    with pytest.raises(PlanetError, match=r"was trained on \d+ of the 40 chips .*one data.split_seed"):
        opened(dataset, taught_elsewhere, "data.split_seed=5")


def test_a_teacher_whose_split_no_longer_is_that_of_its_bundle_is_refused(
    dataset: Dataset, taught_elsewhere: Path, tmp_path: Path
) -> None:
    """As if its configuration were changed to hide what it was trained on."""
    run = tmp_path / "run"
    shutil.copytree(taught_elsewhere, run)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("kfold:3/1", "kfold:3/0"))
    with pytest.raises(PlanetError, match=r"its split, drawn again, .* train it again"):
        opened(dataset, run, "data.split=kfold:3/0")


def test_what_cannot_teach_is_refused_by_its_folder(
    dataset: Dataset, tif_dataset: Dataset, taught_elsewhere: Path, tmp_path: Path
) -> None:
    with pytest.raises(PlanetError, match=r"teacher.run .*nowhere: not a finished run"):
        opened(dataset, tmp_path / "nowhere")
    alone = dataset.manifest.labels[:2]
    specialist = made_fold_run(tmp_path / "specialist", dataset, 1, "kfold:3/1", speaks_for=alone)
    with pytest.raises(PlanetError, match=r"specialist: was trained on .* alone; a teacher answers for all labels"):
        opened(dataset, specialist)
    config = load_config(
        "small-resnet-32", ["data.split=kfold:3/1", f'teacher.run="{taught_elsewhere}"', "data.kind=any"]
    )
    with pytest.raises(PlanetError, match="fold-1: trained on the dataset"):
        open_teacher(config, open_data(config, tif_dataset.root), CPU)
