"""Memory that a step frees serves the next one, and is not asked of the system again."""

import subprocess
import sys

COUNT = """
import resource, sys
import torch
from planet_dist.memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

def step():
    return [torch.ones(32 * 2**20) for _ in range(2)]  # 128 MiB each

for _ in range(8):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    """Of forty steps, after eight."""
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


def test_a_step_takes_no_new_memory_from_the_system() -> None:
    # Once or twice something small comes to lie in what is free, and the next step needs memory beside it.
    assert page_faults("kept") < page_faults("given back") / 20
