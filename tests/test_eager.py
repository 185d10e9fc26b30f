"""Training starts without torch's compiler, and its optimizers do the same without it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

STEPS = """
import json, sys
import torch
from planet_dist.eager import leave_compiler_out
if {left_out}:
    leave_compiler_out(ranks=1)
torch.manual_seed(0)
weights = torch.nn.Parameter(torch.randn(4, 3))
optimizer = torch.optim.{kind}([weights], lr=0.1, weight_decay=0.1{more})
for _ in range(3):
    weights.square().sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
optimizer.load_state_dict(optimizer.state_dict())
assert torch.is_grad_enabled() and weights.requires_grad
print(json.dumps(dict(weights=weights.tolist(), compiler="torch._dynamo" in sys.modules)))
"""


WHOLE = """
import sys
import torch
from accelerate import Accelerator
from planet_dist.config import ModelConfig
from planet_dist.eager import leave_compiler_out
from planet_dist.models import build_model
accelerator = Accelerator(cpu=True, mixed_precision="bf16")
leave_compiler_out(ranks=1)
model = build_model(ModelConfig(name="small-resnet", width=8), 3, 3, 32)
prepared, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), fused=True))
print([name for name in ("torch._dynamo", "torch.distributed.tensor", "sympy") if name in sys.modules])
"""


def test_accelerate_prepares_a_model_without_tensors_shared_among_devices() -> None:
    done = subprocess.run([sys.executable, "-c", WHOLE], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"


def test_a_run_starts_without_what_draws_its_figures() -> None:
    code = "import sys, planet_dist.engine, planet_dist.train; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "False\n"


def three_steps(kind: str, more: str, left_out: bool) -> dict[str, object]:
    script = STEPS.format(kind=kind, more=more, left_out=left_out)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(("kind", "more"), [("AdamW", ", fused=True"), ("SGD", ", momentum=0.9, fused=True")])
def test_an_optimizer_takes_the_same_steps_without_the_compiler(kind: str, more: str) -> None:
    without = three_steps(kind, more, left_out=True)
    assert not without["compiler"]
    usual = three_steps(kind, more, left_out=False)
    assert usual["compiler"], "torch no longer loads it by itself: planet_dist/eager.py has nothing left to do"
    assert without["weights"] == usual["weights"]
