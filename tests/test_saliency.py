"""Class-activation maps."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from planet_dist.config import ModelConfig
from planet_dist.models import Network, build_model, set_trainable
from planet_dist.saliency import activation_maps, last_feature_map
from shards.errors import ConfigError


def seer_of_brightness() -> Network:
    """One label that is brightness, and one that is darkness."""
    conv = nn.Conv2d(1, 2, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
    layers = OrderedDict(conv=conv, relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    head = nn.Linear(2, 2, bias=False)
    head.weight.data = torch.eye(2)
    return Network(nn.Sequential(layers), head).eval()


def test_the_map_is_where_the_label_is_and_nothing_where_it_is_not() -> None:
    images = torch.zeros(3, 1, 8, 8)
    images[0, 0, :, 4:] = 1.0
    images[1, 0, :, 4:] = -1.0
    maps = activation_maps(seer_of_brightness(), images, torch.tensor([0, 1, 0]))
    assert maps[:2, :, 4:].min() == 1
    assert maps[:2, :, :4].max() == 0
    assert maps[2].max() == 0


def test_frozen_networks_of_every_kind_give_maps_of_the_inputs_size() -> None:
    for name, size in (("small-resnet", 32), ("paper2-cnn", 32), ("resnet18", 64)):
        torch.manual_seed(0)
        model = build_model(ModelConfig(name=name, width=8), 3, 3, size).eval()
        set_trainable(model, "head")
        maps = activation_maps(model, torch.randn(2, 3, size, size), torch.tensor([0, 2]))
        assert maps.shape == (2, size, size)
        assert 0 <= maps.min() <= maps.max() <= 1
        assert all(parameter.grad is None for parameter in model.parameters())


def test_the_feature_map_is_the_last_block_before_pooling() -> None:
    model = build_model(ModelConfig(name="resnet18"), 3, 3, 64).eval()
    assert last_feature_map(model, torch.randn(1, 3, 64, 64)) is model.backbone.get_submodule("layer4")


def test_a_network_without_a_feature_map_is_an_error() -> None:
    model = Network(nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(ConfigError, match="no feature map"):
        activation_maps(model, torch.randn(1, 3, 4, 4), torch.tensor([0]))
