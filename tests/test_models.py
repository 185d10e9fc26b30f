"""Networks, their weights and what of them trains, against the papers' text and against themselves."""

from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models as zoo

from planet_dist import backbones
from planet_dist.backbones import build_backbone, fetch_weights, weights_path
from planet_dist.config import Config, ModelConfig, load_config, recipe_paths
from planet_dist.models import Network, build_model, count_parameters, set_trainable
from shards.errors import ConfigError

RGB = ("red", "green", "blue")
TIFF = ("blue", "green", "red", "near_infrared")
PAPER_RECIPES = [name for name in recipe_paths() if name.startswith("paper")]


@pytest.fixture(autouse=True)
def _private_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    torch.manual_seed(0)


def _build(name: str, size: int = 32, bands: int = 3, labels: int = 17, **settings: Any) -> Network:
    return build_model(ModelConfig(name=name, **settings), labels, bands, size)


def _images(size: int = 32, bands: int = 3, chips: int = 2) -> Tensor:
    return torch.randn(chips, bands, size, size).to(memory_format=torch.channels_last)


def _kinds(module: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in module.children()]


def _linears(module: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]


def _cache(name: str, state: dict[str, Tensor]) -> Path:
    path = weights_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("name", "settings", "sizes"),
    [
        ("paper1-cnn", {}, (4, 33, 64)),
        ("paper2-cnn", {"dropout": 0.25, "l2": 0.01}, (4, 33, 64)),
        ("small-resnet", {"width": 16, "dropout": 0.1}, (16, 33, 64)),
        ("resnet18", {"head": "paper1"}, (32,)),
        ("mobilenet_v3_small", {"head": "paper2", "l2": 0.01}, (32,)),
        ("squeezenet1_1", {"head": "linear", "dropout": 0.1}, (32,)),
        ("inception_v3", {"head": "paper2"}, (80,)),
        ("efficientnet_lite0", {}, (32, 49)),
    ],
)
@pytest.mark.parametrize("bands", [3, 4])
def test_every_network_gives_a_logit_a_label_and_a_gradient_to_every_weight(
    name: str, settings: dict[str, Any], sizes: tuple[int, ...], bands: int
) -> None:
    for size in sizes:
        model = _build(name, size, bands, labels=5, **settings)
        logits_BC = model.train()(_images(size, bands))
        assert logits_BC.shape == (2, 5) and logits_BC.dtype == torch.float32
        (logits_BC.square().sum() + model.penalty()).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all()


def test_paper1_cnn_has_two_convolutions_with_relu_and_pooling_then_two_dense_layers() -> None:
    model = _build("paper1-cnn", 256, bands=4)
    assert _kinds(model.backbone) == ["Conv2d", "ReLU", "MaxPool2d"] * 2 + ["Flatten"]
    assert _linears(model.head) == [(64 * 64 * 64, 128), (128, 17)]
    convolutions = (4 * 9 + 1) * 32 + (32 * 9 + 1) * 64
    assert count_parameters(model) == (convolutions + (64 * 64 * 64 + 1) * 128 + 129 * 17, 0)


@pytest.mark.parametrize("size", [64, 128, 140])
def test_paper2_cnn_has_four_convolutions_of_32_and_two_dense_layers_of_256(size: int) -> None:
    model = _build("paper2-cnn", size, dropout=0.25, l2=0.01)
    convolutions = [m for m in model.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [32] * 4
    assert _kinds(model.backbone).count("MaxPool2d") == 2
    flat = 32 * (size // 4) ** 2
    assert _linears(model.head) == [(flat, 256), (256, 256), (256, 17)]
    assert _kinds(model.head) == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Linear"]
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.25}
    weights = (3 * 9 + 1) * 32 + 3 * (32 * 9 + 1) * 32 + (flat + 1) * 256 + 257 * 256 + 257 * 17
    assert count_parameters(model) == (weights, 0)


def test_small_resnet_has_1_6_million_weights_and_starts_as_its_shortcuts() -> None:
    model = _build("small-resnet").eval()
    assert 1_600_000 <= count_parameters(model)[0] < 1_650_000
    x_BCHW = torch.randn(2, 64, 8, 8).relu()
    first_block = model.backbone.get_submodule("stage1.0")
    torch.testing.assert_close(first_block(x_BCHW), x_BCHW)


@pytest.mark.parametrize(
    ("name", "size", "features", "frozen"),
    [
        ("vgg16", 224, 512, 14_714_688),
        ("inception_v3", 140, 2048, 21_785_568),
        ("inception_v3", 299, 2048, 21_785_568),
        ("resnet50", 224, 2048, 23_508_032),
    ],
)
def test_papers_backbones_are_frozen_whole_below_their_heads(name: str, size: int, features: int, frozen: int) -> None:
    first = _build(name, size, head="paper1")
    assert _linears(first.head) == [(features, 512), (512, 256), (256, 17)]
    set_trainable(first, "head")
    assert count_parameters(first) == ((features + 1) * 512 + 513 * 256 + 257 * 17, frozen)
    if name == "inception_v3":
        second = _build(name, size, head="paper2")
        assert _linears(second.head) == [(features, 512), (512, 17)]


@pytest.mark.parametrize(
    "name",
    [
        "alexnet",
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "googlenet",
        "maxvit_t",
        "mnasnet0_5",
        "mobilenet_v2",
        "regnet_y_400mf",
        "shufflenet_v2_x0_5",
        "swin_t",
        "swin_v2_t",
        "vit_b_32",
    ],
)
def test_every_torchvision_family_works_as_a_backbone_of_four_bands(name: str) -> None:
    model = _build(name, 224, bands=4, labels=3)
    assert len(_linears(model.head)) == 1
    features = _linears(model.head)[0][0]
    with torch.inference_mode():
        assert model.eval().backbone(_images(224, 4, chips=1)).shape == (1, features)


def test_a_backbone_gives_the_features_that_torchvisions_own_network_classifies() -> None:
    whole = zoo.resnet18().eval()
    backbone, features = build_backbone("resnet18", "none", 32, RGB)
    assert features == 512
    backbone.load_state_dict(whole.state_dict(), strict=False)
    whole.fc = nn.Identity()
    images_BCHW = _images()
    with torch.inference_mode():
        torch.testing.assert_close(backbone.eval()(images_BCHW), whole(images_BCHW))


def test_inception_has_no_auxiliary_output_and_leaves_its_input_alone() -> None:
    model = _build("inception_v3", 80)
    assert not any("Aux" in name for name, _ in model.named_modules())
    assert model.backbone.transform_input is False
    assert isinstance(model.train()(_images(80)), Tensor)


@pytest.mark.parametrize(
    ("name", "size", "remedy"),
    [
        ("inception_v3", 74, "data.size to 75 or more"),
        ("vgg16", 16, "data.size to 32 or more"),
        ("vit_b_32", 100, "multiple of its patch"),
        ("maxvit_t", 100, "multiple of its patch"),
        ("small-resnet", 15, "data.size to 16 or more"),
        ("paper1-cnn", 3, "data.size to 4 or more"),
    ],
)
def test_a_size_that_a_network_cannot_take_is_refused_with_one_that_it_can(name: str, size: int, remedy: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot take {size} px.*{remedy}"):
        _build(name, size)


def test_an_unknown_network_is_refused_with_close_names() -> None:
    with pytest.raises(ConfigError, match=r"resnet50.*small-resnet"):
        _build("resnet5O")


def test_initial_weights_depend_on_the_seed_alone() -> None:
    def states(seed: int, name: str) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return _build(name, bands=4, width=16).state_dict()

    for name in ("small-resnet", "paper2-cnn", "resnet18"):
        once, again, other = states(1, name), states(1, name), states(2, name)
        assert all(torch.equal(once[key], again[key]) for key in once)
        assert not torch.equal(once["head.dense1.weight"], other["head.dense1.weight"])


def test_penalty_is_the_sum_of_squared_weights_of_the_named_layers() -> None:
    model = _build("paper2-cnn", 16, l2=0.01)
    second, output = model.head.get_submodule("dense2"), model.head.get_submodule("dense3")
    assert isinstance(second, nn.Linear) and isinstance(output, nn.Linear)
    expected = 0.01 * (second.weight.detach().square().sum() + output.weight.detach().square().sum())
    penalty = model.penalty()
    torch.testing.assert_close(penalty.detach(), expected)
    penalty.backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched == {"head.dense2.weight", "head.dense3.weight"}
    torch.testing.assert_close(second.weight.grad, 0.02 * second.weight.detach())


def test_penalty_of_the_second_papers_head_is_on_its_512_units_alone() -> None:
    model = _build("resnet18", head="paper2", l2=0.01)
    model.penalty().backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched == {"head.dense1.weight"}


@pytest.mark.parametrize("name", ["paper2-cnn", "paper1-cnn", "small-resnet"])
def test_penalty_is_zero_without_l2(name: str) -> None:
    assert _build(name).penalty().item() == 0.0


def _after_steps(model: Network, images_BCHW: Tensor) -> dict[str, Tensor]:
    """The state after two steps of everything that may train, as a training loop takes them."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        model.train()
        optimizer.zero_grad()
        model(images_BCHW).square().sum().backward()
        optimizer.step()
        model.eval()
    return model.state_dict()


@pytest.mark.parametrize(
    ("name", "trains", "moved"),
    [
        ("resnet18", "head", "head."),
        ("resnet18", "from:layer4", "head.|backbone.layer4."),
        ("resnet18", "from:layer4.1", "head.|backbone.layer4.1."),
        ("resnet18", "from:layer4.1.bn2", "head.|backbone.layer4.1.bn2."),
        ("small-resnet", "from:stage3", "head.|backbone.stage3."),
        ("small-resnet", "from:head", "head."),
    ],
)
def test_frozen_layers_keep_every_bit_of_weights_and_statistics(name: str, trains: str, moved: str) -> None:
    model = _build(name, width=16)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    set_trainable(model, trains)
    after = _after_steps(model, _images(chips=4))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if re.match(moved, key)}


def test_what_was_frozen_trains_again_in_a_later_phase() -> None:
    model = _build("small-resnet", width=16)
    set_trainable(model, "head")
    set_trainable(model, "all")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    after = _after_steps(model, _images(chips=4))
    assert not any(torch.equal(before[key], after[key]) for key in before)
    assert count_parameters(model)[1] == 0


def test_from_mixed_6d_trains_inceptions_last_blocks_and_nothing_before() -> None:
    model = _build("inception_v3", 80, head="paper2")
    set_trainable(model, "from:Mixed_6d")
    parts = {
        name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad and name.startswith("backbone")
    }
    assert parts == {"Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c"}
    assert all(p.requires_grad for p in model.head.parameters())
    model.train()
    norms = [(n, m.training) for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(training == (name.split(".")[1] in parts) for name, training in norms)


def test_an_unknown_module_is_refused_with_those_there_are() -> None:
    model = _build("resnet18")
    with pytest.raises(ConfigError, match=r"did you mean layer4.*conv1, bn1.*head"):
        set_trainable(model, "from:layer44")


def test_imagenet_weights_come_from_the_hub_cache() -> None:
    published = zoo.resnet18().state_dict()
    _cache("resnet18", published)
    found = _build("resnet18", weights="imagenet").backbone.state_dict()
    assert found and all(torch.equal(found[key], published[key]) for key in found)


def test_imagenet_weights_that_are_not_there_are_reported_with_place_and_command() -> None:
    with pytest.raises(ConfigError) as error:
        _build("resnet50", weights="imagenet")
    assert str(weights_path("resnet50")) in str(error.value)
    assert "planet-dist weights fetch resnet50" in str(error.value)
    assert weights_path("resnet50").name == "resnet50-0676ba61.pth"


def test_auxiliary_weights_of_inception_are_left_behind() -> None:
    published = zoo.inception_v3(init_weights=False).state_dict()
    assert any(key.startswith("AuxLogits.") for key in published)
    _cache("inception_v3", published)
    found = _build("inception_v3", 80, weights="imagenet").backbone.state_dict()
    assert all(torch.equal(found[key], published[key]) for key in found)


def test_densenets_old_key_names_are_understood() -> None:
    published = zoo.densenet121().state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12]\.)", r"\1.\2", key): v for key, v in published.items()}
    assert set(old) != set(published)
    _cache("densenet121", old)
    found = _build("densenet121", weights="imagenet").backbone.state_dict()
    assert all(torch.equal(found[key], published[key]) for key in found)


def test_position_weights_of_a_transformer_are_stretched_to_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    published = zoo.vit_b_32().state_dict()
    monkeypatch.setattr(backbones, "load_weights", lambda name, weights: dict(published))  # 350 MB as a file
    found = _build("vit_b_32", 96, weights="imagenet").backbone.state_dict()
    assert found["encoder.pos_embedding"].shape == (1, 10, 768)
    torch.testing.assert_close(found["class_token"], published["class_token"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_from_a_file(tmp_path: Path, suffix: str) -> None:
    published = zoo.resnet18().state_dict()
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        torch.save(published, path)
    else:
        save_file(published, path)
    found = _build("resnet18", weights=str(path)).backbone.state_dict()
    assert all(torch.equal(found[key], published[key]) for key in found)


def test_weights_of_a_trained_network_of_our_own_give_its_backbone_and_its_bands(tmp_path: Path) -> None:
    trained = _build("resnet18", bands=4, head="paper1").state_dict()
    save_file(trained, tmp_path / "model.safetensors")
    found = _build("resnet18", bands=4, weights=str(tmp_path / "model.safetensors"), labels=3).state_dict()
    assert all(torch.equal(found[key], trained[key]) for key in found if key.startswith("backbone."))


class _Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("trapped"),))


def test_unreadable_weights_are_refused_and_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = tmp_path / "whole.pth"
    torch.save(zoo.squeezenet1_1().state_dict(), whole)
    files = {
        "cut.pth": whole.read_bytes()[:10_000],
        "empty.pth": b"",
        "text.safetensors": b"not tensors at all",
        "trap.pth": pickle.dumps(_Trap(), protocol=2),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=f"{name}: cannot be read as tensors alone"):
            _build("squeezenet1_1", weights=str(tmp_path / name))
    assert not (tmp_path / "trapped").exists()
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "checkpoint.pth")
    with pytest.raises(ConfigError, match="not a table of named tensors"):
        _build("squeezenet1_1", weights=str(tmp_path / "checkpoint.pth"))


def test_weights_of_another_network_are_refused_key_by_key() -> None:
    _cache("resnet18", zoo.resnet34().state_dict())
    with pytest.raises(ConfigError, match=r"has layer1\.2\.conv1\.weight, which the network lacks.* more"):
        _build("resnet18", weights="imagenet")
    state = zoo.resnet18().state_dict()
    del state["bn1.bias"]
    state["layer1.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
    _cache("resnet18", state)
    with pytest.raises(
        ConfigError, match=r"lacks bn1\.bias, has layer1\.0\.conv1\.weight of shape \(1, 2, 3, 3\), not"
    ):
        _build("resnet18", weights="imagenet")


@pytest.mark.parametrize("weights", ["nowhere.pth", "imagenett"])
def test_a_path_without_weights_is_refused(weights: str) -> None:
    with pytest.raises(ConfigError, match="not a file that ends in"):
        _build("resnet18", weights=weights)


def test_weights_for_a_network_of_our_own_are_refused() -> None:
    with pytest.raises(ConfigError, match="starts from random weights, or from a finished run"):
        _build("small-resnet", weights="imagenet")


def test_fetched_weights_appear_whole_and_only_with_the_digest_of_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"some weights"
    served = tmp_path / f"net-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    monkeypatch.setattr(backbones, "weights_url", lambda name: served.as_uri())
    with pytest.raises(ConfigError, match="cannot fetch"):
        fetch_weights("resnet18")
    served.write_bytes(data + b" and a transmission error")
    with pytest.raises(ConfigError, match="invalid hash"):
        fetch_weights("resnet18")
    assert list(weights_path("resnet18").parent.iterdir()) == []
    served.write_bytes(data)
    assert fetch_weights("resnet18").read_bytes() == data
    served.unlink()
    assert fetch_weights("resnet18") == weights_path("resnet18")  # it lies there, so nothing is asked of the server


def test_a_further_band_starts_from_the_mean_filter_and_all_are_rescaled() -> None:
    published = zoo.resnet18().state_dict()
    _cache("resnet18", published)
    stem_OIKK = published["conv1.weight"]
    mean_OKK = stem_OIKK.mean(1)
    backbone, _ = build_backbone("resnet18", "imagenet", 32, TIFF)
    found_OIKK = backbone.get_parameter("conv1.weight").detach()
    expected_OIKK = torch.stack([stem_OIKK[:, 2], stem_OIKK[:, 1], stem_OIKK[:, 0], mean_OKK], 1) * 0.75
    torch.testing.assert_close(found_OIKK, expected_OIKK)
    backbone, _ = build_backbone("resnet18", "imagenet", 32, ("band_1",))
    torch.testing.assert_close(backbone.get_parameter("conv1.weight").detach(), mean_OKK[:, None] * 3)
    first_three = build_model(ModelConfig(name="resnet18", weights="imagenet"), 17, 4, 32)
    torch.testing.assert_close(first_three.backbone.get_parameter("conv1.weight")[:, :3].detach(), stem_OIKK * 0.75)


def test_a_grey_chip_gives_a_pretrained_stem_the_same_with_any_bands() -> None:
    _cache("resnet18", zoo.resnet18().state_dict())
    grey_B1HW = torch.rand(1, 1, 32, 32)
    features = []
    for order in (RGB, TIFF, ("band_1", "band_2")):
        backbone, _ = build_backbone("resnet18", "imagenet", 32, order)
        features.append(backbone.eval()(grey_B1HW.expand(1, len(order), 32, 32)).detach())
    torch.testing.assert_close(features[1], features[0])
    torch.testing.assert_close(features[2], features[0])


def _config(recipe: str) -> Config:
    return load_config(recipe, ["model.weights=none"])


@pytest.mark.parametrize("recipe", PAPER_RECIPES)
def test_every_recipe_opens_with_its_command_and_its_phases_can_train(recipe: str) -> None:
    text = recipe_paths()[recipe].read_text()
    assert text.startswith("# accelerate launch ") and f"--recipe {recipe} " in text.splitlines()[1]
    assert re.search(r"(First|Second) paper, section", text) and "Given:" in text and "Left open" in text
    config = _config(recipe)
    model = build_model(config.model, 17, 4 if config.data.kind == "tif" else 3, config.data.size)
    for phase in config.phases:
        set_trainable(model, phase.trains)
        assert count_parameters(model)[0] > 0


@pytest.mark.parametrize(
    ("recipe", "model", "size", "epochs", "trains"),
    [
        ("paper1-baseline", "paper1-cnn", 256, 20, "all"),
        ("paper1-vgg16", "vgg16", 224, 40, "head"),
        ("paper1-inception-v3", "inception_v3", 299, 40, "head"),
        ("paper1-resnet50", "resnet50", 224, 60, "head"),
    ],
)
def test_first_papers_recipes_are_as_in_its_text(recipe: str, model: str, size: int, epochs: int, trains: str) -> None:
    config = load_config(recipe)
    (phase,) = config.phases
    assert (config.model.name, config.data.size, phase.epochs, phase.trains) == (model, size, epochs, trains)
    assert (config.data.split, config.evaluate.best_by, phase.optimizer) == ("tail:8000", "accuracy", "adam")
    assert (config.loss.name, config.loss.cooccurrence) == ("bce", "none")
    own = model == "paper1-cnn"
    assert config.data.kind == ("tif" if own else "jpg")
    assert (config.model.weights, config.model.head) == (("none", "linear") if own else ("imagenet", "paper1"))


@pytest.mark.parametrize(
    ("suffix", "size", "l2"), [("64", 64, 0.0), ("128", 128, 0.0), ("128-l2", 128, 0.01), ("140", 140, 0.01)]
)
def test_second_papers_simple_recipes_are_as_in_its_text(suffix: str, size: int, l2: float) -> None:
    config = load_config(f"paper2-simple-cnn-{suffix}")
    assert (config.model.name, config.data.size, config.model.l2) == ("paper2-cnn", size, l2)
    assert (config.data.split, config.data.normalise) == ("random:0.3", "per-chip")
    assert config.model.dropout > 0


def test_second_papers_inception_recipe_is_as_in_its_text() -> None:
    config = load_config("paper2-inception-v3")
    head, joint = config.phases
    assert (config.model.name, config.model.head, config.model.weights) == ("inception_v3", "paper2", "imagenet")
    assert (config.data.size, config.data.split, config.data.normalise) == (140, "random:0.3", "per-chip")
    assert (config.loss.name, config.loss.cooccurrence, config.loss.alpha) == ("bce", "weather", 1e-4)
    assert (head.epochs, head.trains, head.optimizer, head.batch_size) == (20, "head", "adam", 128)
    assert (joint.epochs, joint.trains, joint.optimizer) == (70, "from:Mixed_6d", "sgd")
    assert (joint.learning_rate, joint.momentum) == (0.01, 0.9)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "convnext_tiny"])
def test_stochastic_depth_rises_evenly_and_leaves_blocks_out_in_training_alone(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=name, stochastic_depth=0.4), 17, 3, 32)
    found = [module.p for module in model.modules() if type(module).__name__ == "StochasticDepth"]
    assert found[0] == 0 and found[-1] == 0.4
    assert np.allclose(np.diff(found), 0.4 / (len(found) - 1))
    plain = build_model(ModelConfig(name=name, stochastic_depth=0.0), 17, 3, 32)
    plain.load_state_dict(model.state_dict())
    images_BCHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(images_BCHW), plain.eval()(images_BCHW))
    block = next(m for m in reversed(list(model.modules())) if type(m).__name__ == "StochasticDepth").train()
    kept_B = block(torch.ones(4000, 1, 1, 1)).flatten()
    assert sorted(set(kept_B.tolist())) == [0.0, pytest.approx(1 / 0.6)]
    assert abs(kept_B.mean() - 1) < 0.05


def test_stochastic_depth_that_is_no_probability_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stochastic_depth -0.2 is no probability; take 0 or more, or -1"):
        load_config("small-resnet-32", ["model.stochastic_depth=-0.2"])


@pytest.mark.parametrize("name", ["small-resnet", "resnet18"])
def test_stochastic_depth_is_refused_where_no_block_is_left_out(name: str) -> None:
    with pytest.raises(ConfigError, match=f"model.stochastic_depth with '{name}', which leaves no blocks out"):
        build_model(ModelConfig(name=name, stochastic_depth=0.2), 17, 3, 32)
