"""Training without torch's compiler, which torch would load all the same.

Nothing here is compiled. But torch keeps its compiler from looking into some functions of optimizers and of DDP, tells
it where their steps begin and end, and DDP asks for its settings; to do so it loads the whole compiler: a quarter of
the time from the start of train.py to its first step. Accelerate asks each model whether it holds tensors that are
shared out among devices, and loads all that makes such tensors, sympy too, which takes as long.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import accelerator as accelerate_module
from torch.nn.parallel import DistributedDataParallel

OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


class _Compiler:
    """Stands where torch keeps its compiler, and answers the one question that DDP asks: nothing here is compiled.

    Whoever wants more of it loads the real one, which then takes this place.
    """

    def __getattr__(self, name: str) -> Any:
        if name == "utils" and "torch._dynamo" not in sys.modules:
            return SimpleNamespace(get_optimize_ddp_mode=lambda: "no_optimization")
        return getattr(import_module("torch._dynamo"), name)


def leave_compiler_out() -> None:
    """Lets a run do without it. Where torch or Accelerate do these things in another way, nothing changes."""
    if hasattr(accelerate_module, "model_has_dtensor"):
        # It would load torch.distributed.tensor to find none of its tensors: longer than the compiler takes.
        accelerate_module.model_has_dtensor = lambda model: False
    if "torch._dynamo" not in sys.modules:
        torch._dynamo = _Compiler()  # type: ignore[assignment]
    forward = getattr(DistributedDataParallel, "_inside_ddp_forward", None)
    _never_compiled(getattr(forward, "__wrapped__", None))
    for name in dir(torch.optim.Optimizer):
        _never_compiled(getattr(torch.optim.Optimizer, name))
    for kind in OPTIMIZERS:
        step = kind.__dict__.get("step")
        if step is not None and step.__code__.co_name == "_use_grad":
            # All that it adds to the step, for an optimizer that isn't differentiated itself, is this.
            kind.step = torch.no_grad()(step.__wrapped__)  # type: ignore[method-assign]


def _never_compiled(wrapper: Any) -> None:
    """Lets a function into which torch's compiler may not look find that out without the compiler."""
    inner = getattr(wrapper, "__wrapped__", None)
    if inner is not None and wrapper.__code__.co_filename.endswith("_compile.py"):
        inner.__dynamo_disable = inner  # what the wrapper keeps there after its first call, and then calls
