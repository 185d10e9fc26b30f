"""The exponential moving average of a model's weights and buffers."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    """Keeps an averaged copy of a model.

    The decay starts low and rises to `decay`, so that the first steps do not weigh on short runs:
    min(decay, (1 + n) / (10 + n)) at update n, as TensorFlow's ExponentialMovingAverage has it.

    Attributes:
        model: the copy, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int, share: torch.Tensor) -> None:
        """Moves the copy towards `model`.

        Args:
            updates: made before.
            share: 0-d on the model's device: 1, or 0 to leave the copy where it is.
        """
        weight = share * (1 - min(self.decay, (1 + updates) / (10 + updates)))
        pairs = zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        floats = []
        for mine, theirs in pairs:
            if mine.is_floating_point():
                floats.append((mine, theirs))
            else:
                mine.copy_(theirs)
        mine_N, theirs_N = [a for a, _ in floats], [b for _, b in floats]
        if share.device.type == "cpu":
            torch._foreach_lerp_(mine_N, theirs_N, float(weight))  # in a third of the time of what follows
            return
        # A device's share is not known on the host without waiting for it, and lerp takes no tensor for all.
        steps_N = torch._foreach_sub(theirs_N, mine_N)
        torch._foreach_mul_(steps_N, weight)
        torch._foreach_add_(mine_N, steps_N)
