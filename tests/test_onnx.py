"""Exported bundles: the pixels of torch's resizing bit for bit, its probabilities and tags, or no file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional

from planet_dist import onnx_export
from planet_dist.bundle import Bundle
from planet_dist.bundle_files import file_sha256, write_bundle
from planet_dist.calibration import METHODS, Logistic, Method, Unchanged, fit_calibration
from planet_dist.cli import main
from planet_dist.decision import ExpectedF2, decision_from_json
from planet_dist.metrics import probabilities
from planet_dist.onnx_decision import decision_module
from planet_dist.onnx_export import export_onnx, largest_difference, made_chips
from planet_dist.onnx_network import ChipNetwork, FixedResize
from shards.errors import RunError
from shards.labels import PLANET, ExclusiveGroup
from shards.reader import Dataset
from tests.made_runs import TINY, bundle_of, flat, member, random_weights


@pytest.fixture(scope="module")
def trio(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members of all that may differ: views, sizes, normalisations, competing labels, and who speaks for what."""
    folder = tmp_path_factory.mktemp("trio")
    weights = [random_weights(folder / f"{i}.safetensors", TINY, dataset, i) for i in range(3)]
    labels = dataset.manifest.labels
    settings = [
        {"turns": 8},
        {"size": 24, "normalise": "per-chip", "speaks_for": labels[:4], "thresholds": flat(labels, 0.3)},
        {"size": 48, "normalise": "imagenet", "competing_groups": [[5, 6, 10, 11]]},
    ]
    members = [
        member(dataset, file, weights=f"model-{i}.safetensors", **setting)
        for i, (file, setting) in enumerate(zip(weights, settings, strict=True))
    ]
    write_bundle(folder / "bundle", bundle_of(dataset, members, rule="any-rare", rare=labels[:2]), weights)
    return folder / "bundle"


@pytest.mark.parametrize("shape", [(256, 256, 32), (256, 256, 128), (256, 200, 140), (32, 32, 48), (32, 41, 32)])
def test_uint8_is_resized_as_torch_resizes_it_on_a_cpu(shape: tuple[int, int, int]) -> None:
    height, width, side = shape
    images_BHWC = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8))
    expected_BCHW = functional.interpolate(
        images_BHWC.permute(0, 3, 1, 2), size=(side, side), mode="bilinear", antialias=True
    )
    found_BHWC = FixedResize(height, width, side, side, integers=True)(images_BHWC)
    assert torch.equal(found_BHWC, expected_BCHW.permute(0, 2, 3, 1).float())


def test_other_pixels_are_resized_without_rounding() -> None:
    images_BHWC = torch.from_numpy(np.random.default_rng(0).integers(0, 13000, (2, 64, 64, 4)).astype(np.float32))
    expected_BCHW = functional.interpolate(
        images_BHWC.permute(0, 3, 1, 2), size=(24, 24), mode="bilinear", antialias=True
    )
    found_BHWC = FixedResize(64, 64, 24, 24, integers=False)(images_BHWC)
    np.testing.assert_allclose(found_BHWC, expected_BCHW.permute(0, 2, 3, 1), rtol=2e-6)


@pytest.mark.parametrize("rule", ["mean", "vote", "any-rare"])
def test_the_network_decides_as_the_bundle_does(trio: Path, dataset: Dataset, rule: str) -> None:
    loaded = Bundle.load(trio, device="cpu")
    description = loaded.description.model_copy(update={"rule": rule})
    bundle = Bundle(description, loaded.members, loaded.device, loaded.digest)
    images_NHWC = np.stack([dataset.pixels(i) for i in range(60)])
    with torch.no_grad():
        _, decisions_NC = ChipNetwork(bundle).eval()(torch.from_numpy(images_NHWC))
    assert np.array_equal(decisions_NC, bundle.predict(images_NHWC).decisions_NC)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ruled", [False, True])
def test_expected_f2_decides_as_outside_of_the_file(method: Method, ruled: bool) -> None:
    rng = np.random.default_rng(3)
    true_NC = rng.random((600, 17)) < rng.random(17) ** 2
    p_NC = probabilities(rng.normal(np.where(true_NC, 1.5, -2.0), 1.5))
    p_NC[:3], p_NC[3:6, 4:] = 0.0, 1.0
    rules = (PLANET.exclusive, PLANET.alone) if ruled else ((), ())
    decision = ExpectedF2("made", PLANET.labels, fit_calibration(method, p_NC, true_NC), *rules)
    with torch.no_grad():
        decided_NC = decision_module(decision)(torch.from_numpy(p_NC)).numpy()
    expected_NC = decision.decide(p_NC)
    assert len(np.unique(expected_NC, axis=0)) > 50
    assert np.array_equal(decided_NC[6:], expected_NC[6:])
    # Where labels are equally likely it may be another of equally good sets.
    assert np.array_equal(decided_NC[:6].sum(axis=1), expected_NC[:6].sum(axis=1))


def test_a_label_that_no_lawful_set_has_is_in_no_file_decided() -> None:
    groups = (ExclusiveGroup("weather", ("clear", "haze"), True), ExclusiveGroup("light", ("day", "night")))
    decision = ExpectedF2("made", ("clear", "haze", "sea", "day", "night"), Unchanged(), groups, ("sea",))
    p_NC = np.random.default_rng(4).random((200, 5))
    with torch.no_grad():
        decided_NC = decision_module(decision)(torch.from_numpy(p_NC)).numpy()
    assert np.array_equal(decided_NC, decision.decide(p_NC))
    assert not decided_NC[:, 2].any() and decided_NC.any(axis=0).sum() == 4


@pytest.fixture(scope="module")
def exported(trio: Path) -> Path:
    """The members' file."""
    out = trio.parent / "model.onnx"
    result = CliRunner().invoke(main, ["export", str(trio), "--onnx", str(out)])
    assert result.exit_code == 0, result.output
    assert "on 12 made chips onnxruntime's probabilities are within" in result.stdout
    return out


def test_an_exported_ensemble_answers_as_pytorch_does_on_chips(trio: Path, exported: Path, dataset: Dataset) -> None:
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("images_NHWC", "tensor(uint8)", ["N", 32, 32, 3])
    bundle = Bundle.load(trio, device="cpu")
    images_NHWC = np.stack([dataset.pixels(i) for i in range(dataset.manifest.count)])
    expected = bundle.predict(images_NHWC)
    probabilities_NC, decisions_NC = session.run(["probabilities_NC", "decisions_NC"], {"images_NHWC": images_NHWC})
    assert np.abs(probabilities_NC - expected.probabilities_NC).max() < 1e-5
    assert np.array_equal(decisions_NC, expected.decisions_NC)
    assert len(np.unique(decisions_NC, axis=0)) > 3
    stated = session.get_modelmeta().custom_metadata_map
    assert json.loads(stated["labels"]) == list(bundle.labels) and stated["bundle_sha256"] == bundle.digest


def test_a_bundle_that_decides_by_expected_f2_is_exported_with_it(dataset: Dataset, tmp_path: Path) -> None:
    weights = random_weights(tmp_path / "w.safetensors", TINY, dataset, 5)
    labels = tuple(dataset.manifest.labels)
    calibration = Logistic("platt", (0.3,) * 17, tuple(np.linspace(-1.5, 0.5, 17).tolist()))
    decision = ExpectedF2("expected-f2-rules", labels, calibration, PLANET.exclusive, PLANET.alone)
    write_bundle(tmp_path / "bundle", bundle_of(dataset, [member(dataset, weights, thresholds=decision)]), [weights])
    export_onnx(tmp_path / "bundle", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images_NHWC = np.stack([dataset.pixels(i) for i in range(60)])
    (decisions_NC,) = session.run(["decisions_NC"], {"images_NHWC": images_NHWC})
    assert np.array_equal(
        decisions_NC, Bundle.load(tmp_path / "bundle", device="cpu").predict(images_NHWC).decisions_NC
    )
    assert len(np.unique(decisions_NC, axis=0)) > 3
    stated = json.loads(session.get_modelmeta().custom_metadata_map["thresholds"])
    assert decision_from_json(stated, "metadata") == decision
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert "the label set of greatest expected F2" in card and "calibrated for it: platt" in card


def test_tiffs_of_16_bits_and_4_bands_are_exported_too(tif_dataset: Dataset, tmp_path: Path) -> None:
    weights = random_weights(tmp_path / "w.safetensors", TINY, tif_dataset, 3)
    made = bundle_of(tif_dataset, [member(tif_dataset, weights, size=20)])
    write_bundle(tmp_path / "bundle", made, [weights])
    export_onnx(tmp_path / "bundle", tmp_path / "model.onnx")
    images_NHWC = np.stack([tif_dataset.pixels(i) for i in range(30)])
    data = (tmp_path / "model.onnx").read_bytes()
    assert largest_difference(Bundle.load(tmp_path / "bundle", device="cpu"), data, images_NHWC) < 1e-5


def test_nothing_is_written_where_onnxruntime_answers_otherwise(
    trio: Path, exported: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(exported)
    monkeypatch.setattr(onnx_export, "_converted", lambda bundle: model)
    weights = [random_weights(tmp_path / f"{i}.safetensors", TINY, dataset, i) for i in (0, 1, 9)]
    loaded = Bundle.load(trio).description
    members = [
        one.model_copy(update={"sha256": file_sha256(file)}) for one, file in zip(loaded.members, weights, strict=True)
    ]
    write_bundle(tmp_path / "other", loaded.model_copy(update={"members": members}), weights)
    with pytest.raises(RunError, match=r"differ from PyTorch's by up to .* \(1e-05 is allowed\), and the tags of"):
        export_onnx(tmp_path / "other", tmp_path / "model.onnx")
    model.graph.node[0].op_type = "Unheard"
    with pytest.raises(RunError, match=r"onnxruntime cannot run what torch made: .*Unheard"):
        export_onnx(trio, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_the_chips_to_compare_on_are_as_bright_as_the_training_chips(trio: Path, dataset: Dataset) -> None:
    images_NHWC = made_chips(Bundle.load(trio).description, 12)
    assert images_NHWC.shape == (12, 32, 32, 3) and images_NHWC.dtype == np.uint8
    assert np.abs(images_NHWC.mean(axis=(0, 1, 2)) - dataset.manifest.mean).max() < 10
    assert sum(np.ptp(chip, axis=(0, 1)).max() == 0 for chip in images_NHWC) == 1
    assert len({chip.tobytes() for chip in images_NHWC}) == 12


def test_export_without_its_libraries_names_the_extra(
    trio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = CliRunner().invoke(main, ["export", str(trio), "--onnx", str(tmp_path / "model.onnx")])
    assert result.exit_code == 1
    assert "export needs onnxruntime; pip install 'planet-dist[export]'" in result.stderr
