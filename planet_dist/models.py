"""Networks: a backbone, then a head that gives one logit a label.

Letters in names: B chips of a batch, C bands or channels, H and W pixels; logits_BC has one column a label.

    paper1-cnn      first paper, section 3.1: two convolutions of 3x3 (32 and 64 filters) with ReLU, each
                    followed by 2x2 max pooling; dense 128, ReLU, labels. The paper gives no sizes: those are
                    the Keras starter example's of its time.
    paper2-cnn      second paper, section 5.1.1: four convolutions of 3x3 and 32 filters with ReLU, 2x2 max
                    pooling and dropout after each pair; dense 256, ReLU, dropout, dense 256 (L2), ReLU,
                    labels (L2). Where it pools is left open; after each pair is the layout of Keras's own
                    example.
    small-resnet    ours, for low resolutions: a stem of two convolutions with a basic block between them, the
                    second halving the side so that the widest maps cost little; 2 + 2 + 1 basic blocks of width,
                    2 width and 4 width; global average and maximum pooling side by side. 1.6 million
                    weights at width 64.
    anything else   a torchvision network or efficientnet_lite0 to 2 (planet_dist.backbones), and one of three heads:
                    "linear" (labels), "paper1" (first paper, 3.2: pooling and three dense layers; the paper
                    gives no sizes: 512, 256, labels) or "paper2" (second paper, 3.1: global average pooling,
                    dense 512 with ReLU and L2, labels).

Every convolution of our own pads so as to keep the side, so that any size from the stated smallest one works.
Initial weights come from torch's generator alone: call torch.manual_seed first.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from planet_dist.backbones import build_backbone, require_backbone, set_stochastic_depth
from planet_dist.config import ModelConfig
from shards.errors import ConfigError

OWN_NETWORKS = ("paper1-cnn", "paper2-cnn", "small-resnet")
_SMALLEST_SIZE = {"paper1-cnn": 4, "paper2-cnn": 4, "small-resnet": 16}


class Network(nn.Module):
    """A backbone and a head.

    Args:
        backbone: images float32 (B, bands, S, S), normalised, channels_last -> features (B, F).
        head: features (B, F) -> logits (B, labels).
        l2: weight of the penalty.
        regularised: names in `head` of the dense layers whose weights it sums over.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, l2: float = 0.0, regularised: Sequence[str] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.l2 = l2
        self.regularised = tuple(regularised)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, labels) of images float32 (B, bands, S, S)."""
        features_BF: Tensor = self.backbone(images_BCHW)
        # The head is cheap, and bf16 logits, with 8 bits of mantissa, would tie chips that thresholds must tell apart.
        with torch.autocast(features_BF.device.type, enabled=False):
            logits_BC: Tensor = self.head(features_BF.float())
        return logits_BC

    def penalty(self) -> Tensor:
        """What is added to the mean loss: l2 x the sum of squared weights, biases left out, as in Keras; a scalar."""
        total = next(self.parameters()).new_zeros(())
        if self.l2:
            for name in self.regularised:
                total = total + self.l2 * self.head.get_parameter(f"{name}.weight").square().sum()
        return total

    def train(self, mode: bool = True) -> Network:
        """As nn.Module's, but frozen batch-norm layers stay in evaluation mode: their statistics do not move."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and _is_frozen(module):
                module.eval()
        return self


def build_model(
    config: ModelConfig, labels: int, bands: int, size: int, band_order: Sequence[str] | None = None
) -> Network:
    """Builds a network, all of which trains.

    Args:
        config: which network; see the module's docstring.
        labels: logits per chip.
        bands: channels of the input.
        size: side of the input in pixels.
        band_order: what each band is; only pretrained stems ask, and take red, green and blue first when it
            is None.

    Raises:
        ConfigError: an unknown network, a size it cannot take, weights that cannot be had or do not fit, or stochastic
            depth in a network that has none.
    """
    network = _build(config, labels, bands, size, band_order)
    if config.stochastic_depth >= 0:
        set_stochastic_depth(config.name, network, config.stochastic_depth)
    return network


def _build(config: ModelConfig, labels: int, bands: int, size: int, band_order: Sequence[str] | None) -> Network:
    if config.name not in OWN_NETWORKS:
        return _pretrainable(config, labels, size, _named_bands(bands, band_order))
    if config.weights != "none":
        raise ConfigError(
            f"model.weights {config.weights!r}: {config.name} starts from random weights, or from a finished run; "
            "set it to none or the folder of one, or choose a torchvision backbone"
        )
    smallest = _SMALLEST_SIZE[config.name]
    if size < smallest:
        raise ConfigError(
            f"model {config.name} cannot take {size} px: it pools to nothing below {smallest}; "
            f"set data.size to {smallest} or more"
        )
    if config.name == "paper1-cnn":
        return _paper1_cnn(config, labels, bands, size)
    if config.name == "paper2-cnn":
        return _paper2_cnn(config, labels, bands, size)
    return _small_resnet(config, labels, bands)


def set_trainable(model: Network, trains: str) -> None:
    """Chooses what trains, and freezes the rest: no gradients, and batch-norm statistics that stay as they are.

    Args:
        model: not wrapped by DDP, which must be made anew afterwards.
        trains: "all", "head", or "from:MODULE": everything registered before that module of the backbone
            (which in torchvision's networks is the order of the forward pass) is frozen.

    Raises:
        ConfigError: the network has no such module; it lists those there are.
    """
    names = [name for name, _ in model.named_modules()]
    first = 0 if trains == "all" else names.index(_resolve(model, names, trains))
    for index, module in enumerate(model.modules()):
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(index >= first)
    model.train(model.training)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers of weights that train and that are frozen."""
    counts = [0, 0]
    for parameter in model.parameters():
        counts[not parameter.requires_grad] += parameter.numel()
    return counts[0], counts[1]


def _resolve(model: Network, names: Sequence[str], trains: str) -> str:
    wanted = trains.removeprefix("from:")
    for candidate in (f"backbone.{wanted}", wanted, f"head.{wanted}"):
        if candidate in names and wanted:
            return candidate
    known = [name.removeprefix("backbone.") for name in names if name not in ("", "backbone")]
    close = difflib.get_close_matches(wanted, known, n=3)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    top = [name for name, _ in model.backbone.named_children()]
    raise ConfigError(
        f"trains {trains!r}: the network has no module of that name; {hint}it has {', '.join([*top, 'head'])} "
        "and what lies in them, with dots between"
    )


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters(recurse=False))
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _named_bands(bands: int, band_order: Sequence[str] | None) -> tuple[str, ...]:
    if band_order is not None:
        assert len(band_order) == bands, (band_order, bands)
        return tuple(band_order)
    return ("red", "green", "blue", *(f"band_{i}" for i in range(4, bands + 1)))[:bands]


def _pretrainable(config: ModelConfig, labels: int, size: int, band_order: Sequence[str]) -> Network:
    try:
        require_backbone(config.name)
    except ConfigError as error:
        raise ConfigError(f"{error}; of our own there are {', '.join(OWN_NETWORKS)}") from error
    backbone, features = build_backbone(config.name, config.weights, size, band_order)
    if config.head == "paper1":
        return Network(backbone, _dense([features, 512, 256, labels], config.dropout))
    if config.head == "paper2":
        return Network(backbone, _dense([features, 512, labels], config.dropout), config.l2, ["dense1"])
    return Network(backbone, _dense([features, labels], config.dropout))


def _dense(widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Dense layers dense1, dense2 ... with ReLU between them, and dropout before each."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, len(widths)):
        if dropout:
            layers[f"dropout{i}"] = nn.Dropout(dropout)
        layers[f"dense{i}"] = nn.Linear(widths[i - 1], widths[i])
        if i < len(widths) - 1:
            layers[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(layers)


def _paper1_cnn(config: ModelConfig, labels: int, bands: int, size: int) -> Network:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inputs, filters) in enumerate(((bands, 32), (32, 64)), start=1):
        layers[f"conv{i}"] = nn.Conv2d(inputs, filters, 3, padding=1)
        layers[f"relu{i}"] = nn.ReLU()
        layers[f"pool{i}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    return Network(nn.Sequential(layers), _dense([64 * (size // 4) ** 2, 128, labels], config.dropout))


def _paper2_cnn(config: ModelConfig, labels: int, bands: int, size: int) -> Network:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, inputs in enumerate((bands, 32, 32, 32), start=1):
        layers[f"conv{i}"] = nn.Conv2d(inputs, 32, 3, padding=1)
        layers[f"relu{i}"] = nn.ReLU()
        if i % 2 == 0:
            layers[f"pool{i // 2}"] = nn.MaxPool2d(2)
            layers[f"dropout{i // 2}"] = nn.Dropout(config.dropout)
    layers["flatten"] = nn.Flatten()
    head = nn.Sequential(
        OrderedDict(
            dense1=nn.Linear(32 * (size // 4) ** 2, 256),
            relu1=nn.ReLU(),
            dropout=nn.Dropout(config.dropout),
            dense2=nn.Linear(256, 256),
            relu2=nn.ReLU(),
            dense3=nn.Linear(256, labels),
        )
    )
    return Network(nn.Sequential(layers), head, config.l2, ["dense2", "dense3"])


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; starts as the shortcut alone, its last batch-norm scale being zero."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        nn.init.zeros_(self.bn2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        branch_BCHW = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x_BCHW)))))
        return torch.relu(branch_BCHW + self.shortcut(x_BCHW))


class _MeanAndMax(nn.Module):
    """Pools each channel over the chip twice, (B, C, H, W) -> (B, 2C): how much of it there is, and whether at all."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.cat([x_BCHW.mean(dim=(2, 3)), x_BCHW.amax(dim=(2, 3))], dim=1)


def _small_resnet(config: ModelConfig, labels: int, bands: int) -> Network:
    width = config.width

    def stem(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem1"] = stem(bands, width // 2, 1)
    layers["stage0"] = _Block(width // 2, width // 2, 1)
    layers["stem2"] = stem(width // 2, width, 2)
    layers["stage1"] = nn.Sequential(_Block(width, width, 1), _Block(width, width, 1))
    layers["stage2"] = nn.Sequential(_Block(width, 2 * width, 2), _Block(2 * width, 2 * width, 1))
    layers["stage3"] = nn.Sequential(_Block(2 * width, 4 * width, 2))
    layers["pool"] = _MeanAndMax()
    backbone = nn.Sequential(layers)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return Network(backbone, _dense([8 * width, labels], config.dropout))
