"""A run starts from another one's network or learns from it; one that knows what is held out is refused."""

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
from planet_dist.bundle import Bundle
from planet_dist.bundle_files import read_description
from planet_dist.config import Config, load_config
from planet_dist.data import Data, open_data
from planet_dist.engine import run_identity
from planet_dist.lineage import NO_LINEAGE, Lineage, open_lineage
from planet_dist.runfolder import differences, settings
from shards.errors import ConfigError, PlanetError
from shards.reader import Dataset
from tests.conftest import train_small
from tests.made_runs import made_fold_run

CPU = torch.device("cpu")
KEYS = pytest.mark.parametrize("key", ["teacher.run", "model.weights"])


@pytest.fixture(scope="module")
def earlier(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that held out fold 1 of 3."""
    return made_fold_run(tmp_path_factory.mktemp("earlier") / "fold-1", dataset, 1, "kfold:3/1")


def later(dataset: Dataset, key: str, run: Path, *words: str) -> tuple[Config, Data]:
    config = load_config(
        "small-resnet-32", ["model.width=8", "data.split=kfold:3/1", f"{key}={json.dumps(str(run))}", *words]
    )
    return config, open_data(config, dataset.root)


def opened(dataset: Dataset, key: str, run: Path, *words: str) -> Lineage:
    config, data = later(dataset, key, run, *words)
    return open_lineage(config, data, CPU)


def test_a_run_starts_from_the_network_of_another_and_says_so(dataset: Dataset, earlier: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["model.width=8", "data.split=kfold:3/1", f'model.weights="{earlier}"', "phases.0.batch_size=40"]
    words += ["phases.0.epochs=1", "phases.0.learning_rate=1e-9", "runtime.log_every_steps=1"]
    train_small(dataset, run, *words)
    sha256 = read_description(earlier / "bundle").members[0].sha256
    member = read_description(run / "bundle").members[0]
    assert member.protocol["starts from"] == f"the network of sha256 {sha256}"
    assert str(earlier) not in (run / "bundle" / "bundle.json").read_text()
    assert Bundle.load(run / "bundle", device=CPU).members[0].turns == member.turns

    config = load_config("small-resnet-32", words)
    data = open_data(config, dataset.root)
    ids_B = data.plan(config, config.phases[0]).batch(0, 0)
    images_BHWC = torch.from_numpy(np.stack([dataset.pixels(int(chip)) for chip in ids_B]))
    targets_BC = torch.from_numpy(data.targets_NC[ids_B]).float()

    def first_loss(config: Config, weights: dict[str, torch.Tensor] | None) -> float:
        parts = assemble(config, data, CPU, weights)
        with torch.no_grad():
            logits_BC = parts.model.train()(parts.preprocess.train(images_BHWC, ids_B, 0))
            return float(parts.loss(logits_BC, targets_BC, len(ids_B)).mean())

    started = first_loss(config, Bundle.load(earlier / "bundle", device=CPU).members[0].model.state_dict())
    anew = first_loss(config.model_copy(update={"model": config.model.without_weights()}), None)
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(started - anew) > 0.1 * started
    assert first["loss"] == pytest.approx(started, rel=0.01)  # where there is bf16, it computes in that


@KEYS
def test_a_run_is_held_to_the_network_that_it_comes_from_wherever_that_lies(
    key: str, dataset: Dataset, earlier: Path, tmp_path: Path
) -> None:
    def identity(run: Path) -> dict[str, Any]:
        config, data = later(dataset, key, run)
        accelerator: Any = SimpleNamespace(mixed_precision="no")
        return run_identity(config, data, accelerator, open_lineage(config, data, CPU))

    shutil.copytree(earlier, tmp_path / "moved")
    other = made_fold_run(tmp_path / "other", dataset, 2, "kfold:3/1")
    assert differences(identity(earlier), identity(tmp_path / "moved")) == []
    stated = {"teacher.run": "teacher", "model.weights": "starts from"}[key]
    assert [where for where, _, _ in differences(identity(earlier), identity(other))] == [stated]
    configs = [later(dataset, key, run)[0] for run in (earlier, tmp_path / "moved")]
    assert settings(configs[0]) == settings(configs[1])
    of_its_own = load_config("small-resnet-32", ["model.width=8", "data.split=kfold:3/1"])
    where = {"teacher.run": "teacher", "model.weights": "model.weights"}[key]
    assert [place for place, _, _ in differences(settings(of_its_own), settings(configs[0]))] == [where]


def test_a_run_of_its_own_has_nothing_of_others(dataset: Dataset) -> None:
    config = load_config("small-resnet-32", ["data.split=kfold:3/1"])
    lineage = open_lineage(config, open_data(config, dataset.root), CPU)
    assert lineage == NO_LINEAGE and lineage.stated() == {}


@KEYS
def test_a_run_that_was_trained_on_chips_that_are_held_out_is_refused(
    key: str, dataset: Dataset, earlier: Path
) -> None:
    with pytest.raises(
        PlanetError, match=rf"{key} .*was trained on 40 of the 40 chips that this run holds out \(\S+ is the first"
    ):
        opened(dataset, key, earlier, "data.split=kfold:3/0")
    with pytest.raises(PlanetError, match=r"was trained on \d+ of the 40 chips .*one data.split_seed"):
        opened(dataset, key, earlier, "data.split_seed=5")


@KEYS
def test_a_run_that_comes_from_another_must_have_held_out_all_that_is_held_out(
    key: str, dataset: Dataset, tmp_path: Path
) -> None:
    """What it saw itself says nothing of what the run before it saw, where it looked at fewer chips."""
    told = {"starts from": "imagenet weights"}
    fewer = made_fold_run(tmp_path / "fewer", dataset, 1, "kfold:3/1", words=["data.limit=60"], protocol=told)
    held_out = "tail:60"
    opened(dataset, key, fewer, f"data.split={held_out}")
    told = {"starts from": "the network of sha256 0123"}
    second = made_fold_run(tmp_path / "second", dataset, 1, "kfold:3/1", words=["data.limit=60"], protocol=told)
    with pytest.raises(PlanetError, match=r"second: has something of another network, which may .* \d+ of the chips"):
        opened(dataset, key, second, f"data.split={held_out}")


@KEYS
def test_a_run_whose_split_no_longer_is_that_of_its_bundle_is_refused(
    key: str, dataset: Dataset, earlier: Path, tmp_path: Path
) -> None:
    """As if its configuration were changed to hide what it was trained on."""
    run = tmp_path / "run"
    shutil.copytree(earlier, run)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("kfold:3/1", "kfold:3/0"))
    with pytest.raises(PlanetError, match=r"its split, drawn again, .* train it again"):
        opened(dataset, key, run, "data.split=kfold:3/0")


@KEYS
def test_what_a_run_cannot_come_from_is_refused_by_its_folder(
    key: str, dataset: Dataset, tif_dataset: Dataset, earlier: Path, tmp_path: Path
) -> None:
    with pytest.raises(PlanetError, match=rf"{key} .*nowhere: not a finished run"):
        opened(dataset, key, tmp_path / "nowhere")
    alone = dataset.manifest.labels[:2]
    specialist = made_fold_run(tmp_path / "specialist", dataset, 1, "kfold:3/1", speaks_for=alone)
    with pytest.raises(PlanetError, match=r"specialist: was trained on .* alone; name a run that answers for all"):
        opened(dataset, key, specialist)
    config, _ = later(dataset, key, earlier, "data.kind=any")
    with pytest.raises(PlanetError, match="fold-1: trained on the dataset"):
        open_lineage(config, open_data(config, tif_dataset.root), CPU)


def test_another_network_than_the_run_s_cannot_go_on_with_its_weights(dataset: Dataset, earlier: Path) -> None:
    config, data = later(dataset, "model.weights", earlier, "model.width=16")
    with pytest.raises(
        ConfigError, match=r"fold-1: another network's .*\(4, 3, 3, 3\), not \(8, 3, 3, 3\); .*give this"
    ):
        assemble(config, data, CPU, open_lineage(config, data, CPU).weights)
    config, data = later(dataset, "model.weights", earlier, "model.name=paper2-cnn")
    with pytest.raises(ConfigError, match=r"fold-1: another network's than this paper2-cnn .* missing") as raised:
        assemble(config, data, CPU, open_lineage(config, data, CPU).weights)
    assert len(str(raised.value)) < 400 + len(str(earlier))


def test_a_run_that_normalised_otherwise_cannot_be_gone_on_with(dataset: Dataset, earlier: Path) -> None:
    with pytest.raises(
        PlanetError, match=r"fold-1: its network .* data.normalise=per-chip; give data.normalise=dataset"
    ):
        opened(dataset, "model.weights", earlier, "data.normalise=per-chip")


def test_a_file_of_a_run_is_refused_for_the_run_says_more(
    dataset: Dataset, tif_dataset: Dataset, earlier: Path, tmp_path: Path
) -> None:
    file = earlier / "bundle" / "model.safetensors"
    with pytest.raises(PlanetError, match=r"a file of a run of this dataset, .*: model.weights=.*fold-1$"):
        opened(dataset, "model.weights", file)
    # What another dataset's run learned tells nothing of these chips, and a file without a run says nothing.
    assert opened(tif_dataset, "model.weights", file, "data.kind=any") == NO_LINEAGE
    shutil.copy(file, tmp_path / "copy.safetensors")
    assert opened(dataset, "model.weights", tmp_path / "copy.safetensors") == NO_LINEAGE


@KEYS
def test_that_held_out_chips_chose_the_earlier_run_s_epoch_is_told(key: str, dataset: Dataset, tmp_path: Path) -> None:
    chosen = made_fold_run(tmp_path / "chosen", dataset, 1, "kfold:3/1", words=["evaluate.best_by=f2"])
    (told,) = opened(dataset, key, chosen).stated().values()
    assert "of the epoch that was best by f2 on chips that are held out here too" in told


def test_a_misspelt_kind_of_weights_is_told_of_all_kinds(dataset: Dataset) -> None:
    with pytest.raises(PlanetError, match=r"model.weights imagnet: not a finished run .* none, imagenet, and files"):
        opened(dataset, "model.weights", Path("imagnet"))
