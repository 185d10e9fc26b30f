"""Training starts without torch's compiler, and its optimizers do the same without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

STEPS = """
import json, sys
import torch
from planet_dist.eager import leave_compiler_out
if {left_out}:
    leave_compiler_out()
found = {{}}
for kind, more in (("AdamW", {{}}), ("SGD", dict(momentum=0.9))):
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(4, 3))
    optimizer = getattr(torch.optim, kind)([weights], lr=0.1, weight_decay=0.1, fused=True, **more)
    for _ in range(3):
        weights.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    optimizer.load_state_dict(optimizer.state_dict())
    assert torch.is_grad_enabled() and weights.requires_grad
    found[kind] = weights.tolist()
print(json.dumps(dict(weights=found, compiler="torch._dynamo" in sys.modules)))
"""


WHOLE = """
import sys
import torch
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel
from planet_dist.config import ModelConfig
from planet_dist.eager import leave_compiler_out
from planet_dist.models import build_model
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
accelerator = Accelerator(cpu=True, mixed_precision="bf16")
leave_compiler_out()
model = build_model(ModelConfig(name="small-resnet", width=8), 3, 3, 32)
prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), fused=True))
together = prepared if isinstance(prepared, DistributedDataParallel) else DistributedDataParallel(prepared)
together(torch.randn(2, 3, 32, 32)).sum().backward()
optimizer.step()
print([name for name in ("torch._dynamo", "torch.distributed.tensor", "sympy") if name in sys.modules])
print(torch._dynamo.config.optimize_ddp, torch._dynamo is sys.modules["torch._dynamo"])
"""


def test_ranks_train_without_the_compiler_and_whoever_wants_it_gets_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WHOLE, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == ["[]", "True True"]


def test_a_run_starts_without_what_draws_its_figures() -> None:
    code = "import sys, planet_dist.engine, planet_dist.train; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "False\n"


def three_steps(*, left_out: bool) -> dict[str, Any]:
    command = [sys.executable, "-c", STEPS.format(left_out=left_out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return dict(json.loads(done.stdout))


def test_optimizers_take_the_same_steps_without_the_compiler() -> None:
    without = three_steps(left_out=True)
    assert not without["compiler"]
    usual = three_steps(left_out=False)
    assert usual["compiler"], "torch no longer loads it by itself: planet_dist/eager.py has nothing left to do"
    assert without["weights"] == usual["weights"]
