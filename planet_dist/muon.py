"""Muon: steps of hidden layers whose singular values are all about one (Jordan et al. 2024), AdamW for the rest.

A layer's gradient, averaged over steps, is a matrix of few strong directions and many weak ones. Muon takes a step
along all of them alike: the average is replaced by the orthogonal matrix that is nearest to it, by five
Newton-Schulz iterations. Scaled by 0.2 x sqrt(the greater side), such a step is as long as AdamW's are (Liu et
al. 2025, section 2.2), so that one learning rate and one weight decay serve both. All ranks have the same average, and
share out the matrices among them.

Hidden layers are those of 32 outputs and inputs or more, of a filter's weights as of a matrix's. The first
convolution, filters that see one channel alone, the labels' own layer, biases and norms are AdamW's.

Letters in names: O outputs, I inputs (of a filter: input channels times places).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw

from planet_dist.precision import cpu_has_bf16

LEAST_SIDE = 32
_MOMENTUM = 0.95
_BETAS, _EPS = (0.9, 0.999), 1e-8  # of AdamW, as torch has them
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al.: the steepest at zero that stays near one
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon for hidden layers and AdamW for all else; see the module's docstring.

    Like torch's fused optimizers it takes no step while `found_inf` is above zero, and never waits for the device.

    Args:
        parameters: of all kinds.
        lr: of both.
        weight_decay: of both, decoupled; biases and norms have none.
    """

    _step_supports_amp_scaling = True  # so that fp16's scaler leaves the decision whether to step to `found_inf`

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> None:
        hidden = [p for p in parameters if is_hidden(p)]
        others = [p for p in parameters if not is_hidden(p)]
        groups = [
            {"params": hidden, "weight_decay": weight_decay, "hidden": True},
            {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay, "hidden": False},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0, "hidden": False},
        ]
        # "fused" makes load_state_dict put the count of steps where the fused AdamW wants it.
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "fused": True})
        self.grad_scale: Tensor | None = None
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Takes a step along the gradients there are."""
        assert closure is None, "a closure's gradients cannot be looked at before the step"
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        assert getattr(self, "grad_scale", None) is None, "clipping takes fp16's scale out of the gradients first"
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if group["hidden"]:
                self._orthogonal_steps(trained, group, found_inf)
            elif trained:
                self._adamw_step(trained, group, found_inf)

    def _orthogonal_steps(self, trained: list[Tensor], group: dict[str, Any], found_inf: Tensor | None) -> None:
        averages, directions = [], []
        for parameter in trained:
            gradient = parameter.grad
            assert gradient is not None
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            average = state["momentum_buffer"].lerp(gradient, 1 - _MOMENTUM)
            averages.append(average)
            # Nesterov's: where the average would be after another step like this one.
            directions.append(_matrix(gradient.lerp(average, _MOMENTUM)))
        for parameter, average, step_OI in zip(trained, averages, orthogonal_by_all(directions), strict=True):
            momentum = self.state[parameter]["momentum_buffer"]
            length = group["lr"] * 0.2 * math.sqrt(max(step_OI.shape))
            after = parameter * (1 - group["lr"] * group["weight_decay"])
            after.add_(_like(step_OI, parameter), alpha=-length)
            for old, new in ((momentum, average), (parameter, after)):
                old.copy_(new if found_inf is None else torch.where(found_inf > 0, old, new))

    def _adamw_step(self, trained: list[Tensor], group: dict[str, Any], found_inf: Tensor | None) -> None:
        for parameter in trained:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in trained]
        adamw(
            trained,
            [p.grad for p in trained if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=found_inf,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=_EPS,
            maximize=False,
        )


def is_hidden(parameter: Tensor) -> bool:
    """Whether a parameter is a hidden layer's weights: 32 outputs and inputs or more."""
    return parameter.ndim in (2, 4) and min(parameter.shape[:2]) >= LEAST_SIDE


def orthogonal_by_all(matrices: Sequence[Tensor]) -> list[Tensor]:
    """orthogonal() of each matrix, the work shared among all ranks, which must all give the same matrices.

    Which rank makes one changes nothing in it, so that any number of ranks takes the same steps.

    Args:
        matrices: (O, I) each, on one device.
    """
    num_ranks = dist.get_world_size() if dist.is_initialized() else 1
    if num_ranks == 1 or not matrices:
        return [orthogonal(matrix_OI) for matrix_OI in matrices]
    own = shares([tuple(matrix_OI.shape) for matrix_OI in matrices], num_ranks)[dist.get_rank()]
    device = matrices[0].device
    # Of one type, whatever the ranks' CPUs compute in. Zeros of all ranks but one leave the one's values as they are.
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    sizes = [matrix_OI.numel() for matrix_OI in matrices]
    together = torch.zeros(sum(sizes), dtype=dtype, device=device)
    parts = together.split(sizes)
    for place in own:
        parts[place].view(matrices[place].shape).copy_(orthogonal(matrices[place]))
    dist.all_reduce(together)
    return [part.view(matrix_OI.shape) for part, matrix_OI in zip(parts, matrices, strict=True)]


def shares(shapes: Sequence[tuple[int, ...]], num_ranks: int) -> list[list[int]]:
    """Which of the matrices each rank makes orthogonal: the dearest first, each to whom least has fallen so far."""
    cost = [min(shape) ** 2 * max(shape) for shape in shapes]
    work = [0] * num_ranks
    found: list[list[int]] = [[] for _ in range(num_ranks)]
    for place in sorted(range(len(shapes)), key=lambda place: -cost[place]):
        rank = work.index(min(work))
        work[rank] += cost[place]
        found[rank].append(place)
    return found


def orthogonal(matrix_OI: Tensor) -> Tensor:
    """About the orthogonal matrix nearest to `matrix_OI`: its singular vectors, and values from 0.7 to 1.2.

    Args:
        matrix_OI: any float type. Of zeros, zeros come back.

    Returns:
        (O, I) in the type of _product_type.
    """
    upright = matrix_OI.shape[0] > matrix_OI.shape[1]
    x = (matrix_OI.T if upright else matrix_OI).to(_product_type(matrix_OI.device), copy=True)
    x /= x.norm().clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if upright else x


def _product_type(device: torch.device) -> torch.dtype:
    """bfloat16, whose precision is enough; float32 on a CPU that has no products in bfloat16."""
    return torch.bfloat16 if device.type != "cpu" or cpu_has_bf16() else torch.float32


def _matrix(weights: Tensor) -> Tensor:
    """(O, I) of a matrix or a filter's (O, channels, height, width); a view where that is channels_last."""
    return weights if weights.ndim == 2 else weights.permute(0, 2, 3, 1).flatten(1)


def _like(matrix_OI: Tensor, weights: Tensor) -> Tensor:
    """The inverse of _matrix, for weights of that shape."""
    if weights.ndim == 2:
        return matrix_OI
    outputs, channels, height, width = weights.shape
    return matrix_OI.reshape(outputs, height, width, channels).permute(0, 3, 1, 2)
