"""A trace of some steps, RUN/profile/rank-N.json.gz: ui.perfetto.dev opens it.

Named spans stand in it for waiting, decoding, copying, computing and exchanging (planet_dist.stopwatch), and below them
what torch does: its operators, gloo's or NCCL's calls, and the kernels of a GPU.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, schedule

_SKIPPED_STEPS = 3  # memory is taken and kernels are chosen in the first ones; the profiler's own start is slow too
_WARM_UP_STEPS = 1


class Trace:
    """Records some of a process's steps, once, and writes them when they are over; what is computed is the same.

    Args:
        folder: of all ranks' traces.
        rank: whose this is.
        steps: to record; 0 records none.
    """

    def __init__(self, folder: Path, rank: int, steps: int) -> None:
        self.path = folder / f"rank-{rank}.json.gz"
        self.written = False
        self._profile: profile | None = None
        if steps:
            gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(
                activities=[ProfilerActivity.CPU, *gpu],
                schedule=schedule(wait=_SKIPPED_STEPS, warmup=_WARM_UP_STEPS, active=steps, repeat=1),
                on_trace_ready=self._write,
                # Chips are decoded in threads.
                experimental_config=_ExperimentalConfig(profile_all_threads=True),
            )
            self._profile.start()

    def step(self) -> None:
        """Marks the end of a step."""
        if self._profile is not None:
            self._profile.step()
            if self.written:
                self._profile.stop()
                self._profile = None

    def close(self) -> None:
        """Writes what there is, where training ended first."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, recorded: profile) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"part-{self.path.name}")
        recorded.export_chrome_trace(str(part))
        part.replace(self.path)
        self.written = True
