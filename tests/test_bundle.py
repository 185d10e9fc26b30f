"""Bundles: what is written is what is read, and nothing that was changed since passes for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from planet_dist import bundle_files
from planet_dist.bundle import Bundle
from planet_dist.bundle_card import model_card
from planet_dist.bundle_description import Description
from planet_dist.bundle_files import load_bundle, write_bundle
from planet_dist.calibration import Unchanged
from planet_dist.decision import ExpectedF2
from shards.errors import RunError
from shards.labels import PLANET
from shards.reader import Dataset
from shards.schema import sealed
from tests.conftest import REPOSITORY
from tests.made_runs import TINY, bundle_of, flat, member, random_weights

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def pair(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Description, list[Path]]:
    """Two members that differ in all that may differ."""
    folder = tmp_path_factory.mktemp("weights")
    weights = [random_weights(folder / f"{seed}.safetensors", TINY, dataset, seed) for seed in (1, 2)]
    rare = dataset.manifest.labels[0]
    first = member(dataset, weights[0], name="first", weights="model-0.safetensors", turns=8)
    second = member(
        dataset,
        weights[1],
        name="second",
        weights="model-1.safetensors",
        size=48,
        normalise="imagenet",
        competing_groups=[[5, 6, 10, 11]],
        speaks_for=[rare],
        thresholds=flat(dataset.manifest.labels, 0.25),
    )
    return bundle_of(dataset, [first, second], rule="any-rare", rare=[rare], scores={"f2": 0.5}), weights


@pytest.fixture
def folder(pair: tuple[Description, list[Path]], tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", *pair)
    return tmp_path / "bundle"


def changed(folder: Path, change: Change) -> Path:
    path = folder / "bundle.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_bytes(sealed(table))
    return folder


def test_what_is_read_is_what_was_written(pair: tuple[Description, list[Path]], folder: Path) -> None:
    found, tensors = load_bundle(folder)
    assert found == pair[0]
    for path, loaded in zip(pair[1], tensors, strict=True):
        expected = load_file(path)
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert sorted(path.name for path in folder.iterdir()) == [
        "MODEL_CARD.md",
        "bundle.json",
        "model-0.safetensors",
        "model-1.safetensors",
    ]


def test_members_are_built_each_with_its_own_input(folder: Path) -> None:
    first, second = Bundle.load(folder).members
    tensors = load_bundle(folder)[1]
    assert (first.preprocess.side, second.preprocess.side) == (32, 48)
    assert (first.turns, second.turns) == (8, 1)
    assert second.competing_groups == [[5, 6, 10, 11]]
    assert not first.model.training
    state = first.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in tensors[0].items())


def test_the_combination_follows_from_the_members(folder: Path) -> None:
    found, _ = load_bundle(folder)
    combination = found.member_combination()
    assert combination.rule == "any-rare"
    assert combination.speaks_MC.tolist() == [[True] * 17, [True] + [False] * 16]
    assert combination.rare_C.tolist() == [True] + [False] * 16
    assert [one.decide(np.full((1, 17), 0.4))[0, 3] for one in combination.own] == [False, True]


def test_weights_that_were_changed_are_refused(folder: Path) -> None:
    path = folder / "model-1.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"model-1\.safetensors: changed since the bundle was written; copy"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["bundle.json", "MODEL_CARD.md", "model-0.safetensors", "model-1.safetensors"])
def test_a_change_of_any_file_is_refused(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    at = data.rindex(b"0.5") if name == "bundle.json" else len(data) // 2
    changes = {"cut": data[:-1], "longer": data + b"\n", "turned": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]}
    for change in changes.values():
        (folder / name).write_bytes(change)
        with pytest.raises(RunError, match=rf"{name}: (changed since the bundle was written|.*give RUN/bundle)"):
            Bundle.load(folder)
    (folder / name).unlink()
    with pytest.raises(RunError, match=rf"{name}"):
        Bundle.load(folder)
    (folder / name).write_bytes(data)
    Bundle.load(folder)


def test_the_card_says_what_the_bundle_is_and_escapes_what_comes_from_data(
    dataset: Dataset, pair: tuple[Description, list[Path]]
) -> None:
    hostile = "<script>|x"
    labels = [hostile, *dataset.manifest.labels[1:]]
    rules = flat(labels, 0.2)
    members = [
        member(
            dataset, pair[1][0], name="[a](http://x)", thresholds=rules, speaks_for=labels, protocol={"split": "a|b"}
        )
    ]
    scores = {
        "rows": 80,
        "folds": 5,
        "chosen": "flat-0.2",
        "rules": [
            {"rule": "flat-0.2", "cross_fitted_f2": 0.91234, "low": 0.89, "high": 0.93, "same_rows_f2": 0.92},
        ],
        "labels": [{"label": hostile, "f2": 0.5, "precision": 0.25, "recall": 0.75, "support": 8}],
    }
    card = model_card(
        bundle_of(dataset, members, labels=labels, exclusive=[], alone=[], scores=scores, thresholds=rules)
    )
    assert "<script>" not in card and "[a](" not in card
    assert "| flat-0.2 (this bundle) | 0.9123 | 0.8900 to 0.9300 | 0.9200 |" in card
    count = dataset.manifest.label_counts[0]
    assert rf"| \<script\>\|x | {count} | 0.500 | 0.250 | 0.750 | 8 |" in card
    assert dataset.digest in card and r"| split | a\|b |" in card
    few = [label for label, count in zip(labels, dataset.manifest.label_counts, strict=True) if count < 50]
    assert all(label.replace("_", r"\_") in card.split("fewer than 50")[1] for label in few[1:])


def test_weights_that_are_gone_are_named(folder: Path) -> None:
    (folder / "model-0.safetensors").unlink()
    with pytest.raises(RunError, match=r"model-0\.safetensors: cannot be read .*copy the bundle again"):
        load_bundle(folder)


def test_weights_of_another_network_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"backbone.weight": torch.zeros(3)}, path)
    write_bundle(tmp_path / "bundle", bundle_of(dataset, [member(dataset, path)]), [path])
    with pytest.raises(RunError, match="not the weights of small-resnet"):
        Bundle.load(tmp_path / "bundle")


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "model.pt", ".safetensors"]
)
def test_a_path_out_of_the_bundle_is_refused(folder: Path, name: str) -> None:
    changed(folder, lambda table: table["members"][0].update(weights=name))
    with pytest.raises(RunError, match=r"bundle\.json: members\.0\.weights"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.update(version=3), "bundle version 3; this program reads version 2"),
        (lambda table: table.pop("version"), "bundle version None"),
        (lambda table: table.update(format="a cake"), "not a bundle"),
        (lambda table: table.pop("labels"), "labels: Field required"),
        (lambda table: table["members"][1].pop("std"), r"members\.1\.std: Field required"),
        (lambda table: table.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda table: table.update(members=[]), "members: List should have at least 1 item"),
        (lambda table: table.update(rule="guess"), "rule: Input should be 'mean', 'vote', 'any-rare' or 'stacked'"),
        (lambda table: table["members"][0].update(turns=3), r"members\.0\.turns"),
        (lambda table: table["members"][0].update(mean=[1.0]), "one entry for each of 3 bands"),
        (lambda table: table["members"][0].update(std=[1.0, -1.0, 1.0]), r"members\.0\.std\.1"),
        (lambda table: table["members"][0]["model"].update(name=7), r"members\.0\.model\.name"),
        (lambda table: table["members"][0].update(competing_groups=[[1, 17]]), r"competing_groups \[\[1, 17\]\]"),
        (lambda table: table["members"][0].update(competing_groups=[[1, 2], [2, 3]]), "competing_groups"),
        (lambda table: table["members"][1].update(speaks_for=["lava"]), "speaks_for names"),
        (lambda table: table.update(rare=["lava"]), "rare names"),
        (lambda table: table["members"][1].update(weights="model-0.safetensors"), "two members bear one file"),
        (lambda table: table["thresholds"].update(thresholds=[2.0] * 17), r"it must be in \[0, 1\]"),
        (lambda table: table["thresholds"].update(labels=[f"l{i}" for i in range(17)]), "thresholds for the labels"),
        (
            lambda table: table["members"][1].update(thresholds=ExpectedF2("e", PLANET.labels, Unchanged()).to_json()),
            "a specialist decides by thresholds, not by e",
        ),
        (lambda table: table["labels"].__setitem__(0, "two words"), "holds white space"),
        (lambda table: table.update(training_label_counts=[1]), "one entry for each of 17 labels"),
        (lambda table: table.update(dataset_digest="abc"), "dataset_digest"),
    ],
)
def test_a_description_that_is_not_whole_is_refused(folder: Path, change: Change, message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        load_bundle(changed(folder, change))
    assert "bundle.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1}', "\xff"])
def test_a_file_that_is_no_description_is_refused(folder: Path, text: str) -> None:
    (folder / "bundle.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=r"give RUN/bundle of a finished run"):
        load_bundle(folder)


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"give RUN/bundle of a finished run"):
        load_bundle(tmp_path / "nothing")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_bundle_takes_the_place_of_an_older_one(
    pair: tuple[Description, list[Path]], folder: Path, can_exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(bundle_files, "_exchange", lambda first, second: False)
    newer = pair[0].model_copy(update={"scores": {"f2": 0.9}})
    write_bundle(folder, newer, pair[1])
    assert load_bundle(folder)[0] == newer
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_a_write_that_fails_leaves_the_older_bundle(
    pair: tuple[Description, list[Path]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_files, "write_whole", full)
    with pytest.raises(RunError, match=r"cannot be written .*No space left"):
        write_bundle(folder, pair[0].model_copy(update={"scores": {}}), pair[1])
    assert load_bundle(folder)[0] == pair[0]
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_weights_that_are_not_the_members_are_not_written(pair: tuple[Description, list[Path]], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="changed while the bundle was written"):
        write_bundle(tmp_path / "bundle", pair[0], pair[1][::-1])
    assert list(tmp_path.iterdir()) == []


def test_chips_get_the_same_answer_from_python_in_any_company_and_size(folder: Path, dataset: Dataset) -> None:
    bundle = Bundle.load(folder, device="cpu")
    images_NHWC = np.stack([dataset.pixels(i) for i in range(40)])
    answers = bundle.predict(images_NHWC)
    assert answers.probabilities_NC.shape == answers.decisions_NC.shape == (40, 17)
    assert answers.probabilities_NC.dtype == np.float64 and answers.decisions_NC.dtype == bool
    assert answers.labels == tuple(dataset.manifest.labels)
    assert len({tuple(tags) for tags in answers.tags}) > 3
    assert answers.tags[7] == [label for label, yes in zip(answers.labels, answers.decisions_NC[7], strict=True) if yes]
    some = bundle.predict([images_NHWC[39], images_NHWC[7].repeat(2, axis=0), images_NHWC[7]])
    assert some.probabilities_NC[0].tobytes() == answers.probabilities_NC[39].tobytes()
    assert some.probabilities_NC[2].tobytes() == answers.probabilities_NC[7].tobytes()
    assert some.tags[0] == answers.tags[39] and some.tags[2] == answers.tags[7]
    assert bundle.predict([]).probabilities_NC.shape == (0, 17)


def test_the_caller_may_choose_the_views_to_average(folder: Path, dataset: Dataset) -> None:
    images_NHWC = np.stack([dataset.pixels(i) for i in range(4)])
    turned_NHWC = np.ascontiguousarray(np.rot90(images_NHWC, axes=(1, 2)))
    averaged = Bundle.load(folder, turns=8)
    plain = Bundle.load(folder, turns=1)

    def apart(bundle: Bundle) -> float:
        both = [bundle.predict(given).probabilities_NC for given in (images_NHWC, turned_NHWC)]
        return float(np.abs(both[0] - both[1]).max())

    assert apart(averaged) < 2e-3, "resizing rounds a turned chip otherwise, in one member"
    assert apart(plain) > 0.02


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((32, 32, 4), np.uint8), r"image 1 of 2 has shape \(32, 32, 4\) and dtype uint8; .* red, green, blue"),
        (np.zeros((32, 32, 3), np.float32), "dtype float32; the model was trained on uint8"),
        (np.zeros((32, 32), np.uint8), r"shape \(32, 32\)"),
        (np.zeros((0, 32, 3), np.uint8), r"shape \(0, 32, 3\)"),
    ],
)
def test_images_of_another_kind_are_refused_by_number(folder: Path, image: np.ndarray, message: str) -> None:
    with pytest.raises(RunError, match=message):
        Bundle.load(folder).predict([np.zeros((32, 32, 3), np.uint8), image])


def test_an_answer_that_is_not_finite_is_an_error_that_names_the_image(tif_dataset: Dataset, tmp_path: Path) -> None:
    weights = random_weights(tmp_path / "w.safetensors", TINY, tif_dataset, 3)
    form = tif_dataset.manifest.image.model_copy(update={"dtype": "float32"})
    write_bundle(tmp_path / "b", bundle_of(tif_dataset, [member(tif_dataset, weights)], image=form), [weights])
    images_NHWC = np.ones((3, 32, 32, 4), np.float32)
    images_NHWC[2, 0, 0, 0] = np.nan
    with pytest.raises(RunError, match=r"image 2 of 3: .* not a finite number \(1 such images\)"):
        Bundle.load(tmp_path / "b").predict(images_NHWC)


def test_the_lines_of_the_docs_run_as_they_stand(
    folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (REPOSITORY / "docs" / "predicting.md").read_text().split("```python\n")[1].split("```")[0]
    (folder.parent / "RUN").mkdir()
    folder.rename(folder.parent / "RUN" / "bundle")
    monkeypatch.chdir(folder.parent)
    known: dict[str, Any] = {"images_NHWC": np.stack([dataset.pixels(i) for i in range(3)])}
    exec(lines, known)
    assert isinstance(known["bundle"], Bundle) and len(known["answers"].tags) == 3
    assert str(known["answers"].tags[0]) in capsys.readouterr().out
    assert "from planet_dist.bundle import Bundle" in (folder.parent / "RUN" / "bundle" / "MODEL_CARD.md").read_text()
