"""Class-activation maps: where in a chip a network sees a label.

Grad-CAM (Selvaraju et al., 2017): each channel of the last feature map is weighted by the mean gradient of the label's
logit over it, and what speaks for the label is kept.

Letters in array names: B chips, K channels, H and W cells of the feature map.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from planet_dist.models import Network
from shards.errors import ConfigError


def activation_maps(model: Network, inputs_BCHW: Tensor, labels: Tensor) -> NDArray[Any]:
    """Where each chip speaks for a label.

    The feature map is the last one of more than a pixel that the backbone computes: what its last convolution (or its
    last block of parallel ones) hands to the pooling.

    Args:
        model: in evaluation mode.
        inputs_BCHW: float32, as the model takes it.
        labels: int64 (B,), the label asked of each chip.

    Returns:
        float32 (B, S, S) from 0 to 1, of the input's size; all 0 where nothing speaks for the label.

    Raises:
        ConfigError: the network has no feature map.
    """
    feature_map = last_feature_map(model, inputs_BCHW)
    kept: list[Tensor] = []
    handle = feature_map.register_forward_hook(lambda module, given, output: kept.append(output))
    try:
        with torch.enable_grad():
            # from the input on, since all weights may be frozen
            logits_BC = model(inputs_BCHW.detach().requires_grad_())
            chosen_B = logits_BC.gather(1, labels[:, None]).squeeze(1)
            (gradient_BKHW,) = torch.autograd.grad(chosen_B.sum(), kept[-1])
    finally:
        handle.remove()
    weights_BK = gradient_BKHW.mean(dim=(2, 3))
    maps_BHW = torch.einsum("bk,bkhw->bhw", weights_BK, kept[-1].detach()).relu()
    resized = functional.interpolate(
        maps_BHW[:, None], size=inputs_BCHW.shape[2:], mode="bilinear", align_corners=False
    )[:, 0]
    most_B = resized.amax(dim=(1, 2), keepdim=True)
    result: NDArray[Any] = torch.where(most_B > 0, resized / most_B, 0.0).float().cpu().numpy()
    return result


@torch.no_grad()
def last_feature_map(model: Network, inputs_BCHW: Tensor) -> nn.Module:
    """The backbone's module whose output is the last feature map of more than a pixel, before any pooling after it."""
    found: list[nn.Module] = []

    def note(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            found.append(module)

    modules = [module for module in model.backbone.modules() if not _passes_on(module)]
    handles = [module.register_forward_hook(note) for module in modules]
    try:
        model(inputs_BCHW[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ConfigError(f"{type(model.backbone).__name__} has no feature map of more than a pixel to draw")
    return found[-1]


def _passes_on(module: nn.Module) -> bool:
    """Whether a module only pools, drops or hands on what others computed."""
    passes = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d)
    return isinstance(module, (*passes, nn.Identity, nn.Flatten))
