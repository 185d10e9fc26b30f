"""Training without torch's compiler, which torch would load all the same.

Nothing here is compiled. But torch keeps its compiler from looking into some functions of optimizers, and tells it
where their steps begin and end, and to do so it loads the whole compiler: a quarter of the time from the start of
train.py to its first step. Accelerate asks each model whether it holds tensors that are shared out among devices, and
loads all that makes such tensors, sympy too, which takes as long.
"""

from __future__ import annotations

from importlib import import_module

import torch
from accelerate import accelerator as accelerate_module

OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


def leave_compiler_out(ranks: int) -> None:
    """Lets optimizers do without it. Where torch does these things in another way, nothing changes.

    Args:
        ranks: of the run. With several, DDP needs the compiler's settings, and it's loaded here: later, the time would
            be that of a first step, in which other ranks wait.
    """
    if ranks > 1:
        import_module("torch._dynamo")
        return
    if hasattr(accelerate_module, "model_has_dtensor"):
        # It would load torch.distributed.tensor to find none of its tensors: longer than the compiler takes.
        accelerate_module.model_has_dtensor = lambda model: False
    for name in dir(torch.optim.Optimizer):
        wrapper = getattr(torch.optim.Optimizer, name)
        inner = getattr(wrapper, "__wrapped__", None)
        if inner is not None and wrapper.__code__.co_filename.endswith("_compile.py"):
            inner.__dynamo_disable = inner  # what the wrapper keeps there after its first call, and then calls
    for kind in OPTIMIZERS:
        step = kind.__dict__.get("step")
        if step is not None and step.__code__.co_name == "_use_grad":
            # All that it adds to the step, for an optimizer that isn't differentiated itself, is this.
            kind.step = torch.no_grad()(step.__wrapped__)  # type: ignore[method-assign]
