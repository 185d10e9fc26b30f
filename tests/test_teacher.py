"""A finished run teaches another: its answers soften the targets of the chips that train."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from planet_dist.assembly import assemble
from planet_dist.bundle_files import read_description
from planet_dist.config import Config, load_config
from planet_dist.data import Data, open_data
from planet_dist.evaluate import Logits
from planet_dist.lineage import open_lineage
from planet_dist.teacher import Teacher
from shards.reader import Dataset
from tests.conftest import train_small
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
    return open_lineage(config, data, CPU).teacher


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
    words += ["phases.0.epochs=1", "phases.0.batch_size=40", "runtime.log_every_steps=1"]
    said = train_small(dataset, run, *words)
    assert f"the teacher, {taught_elsewhere}, first answers 80 chips" in said
    config = load_config("small-resnet-32", words)
    data = open_data(config, dataset.root)
    teacher = open_lineage(config, data, CPU).teacher
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
