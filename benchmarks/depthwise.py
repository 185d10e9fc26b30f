"""What planet_dist.efficientnet_lite.DepthwiseConv2d gains in training on this CPU, beside torch's own, in one run.

    python benchmarks/depthwise.py

One thread takes forward and backward passes of each network in turn, at each side, by our gradient of small depthwise
filters and by oneDNN's; medians of the rounds. docs/decisions.md says why.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from unittest import mock

import torch
from printed import wide_console
from rich.table import Table
from torch import Tensor, nn

from planet_dist.efficientnet_lite import FILE_NAMES, DepthwiseConv2d, EfficientNetLite


def seconds(network: nn.Module, images_BCHW: Tensor) -> float:
    """Of one forward and backward pass."""
    network.zero_grad(set_to_none=True)
    started = time.perf_counter()
    network(images_BCHW).square().mean().backward()
    return time.perf_counter() - started


def measure(name: str, side: int, batch: int, rounds: int) -> tuple[str, ...]:
    """A row of the table."""
    torch.manual_seed(0)
    network = EfficientNetLite(name).to(memory_format=torch.channels_last)
    images_BCHW = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    ways = (nullcontext, lambda: mock.patch.object(DepthwiseConv2d, "forward", nn.Conv2d.forward))
    times: list[list[float]] = []
    for number in range(rounds + 1):
        row = [0.0, 0.0]
        for way in (0, 1) if number % 2 else (1, 0):
            with ways[way]():
                row[way] = seconds(network, images_BCHW)
        times += [row] if number else []  # the first round warms up
    ratios = [torchs / ours for ours, torchs in times]
    ours, torchs = (batch / statistics.median(column) for column in zip(*times, strict=True))
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return name, str(side), f"{torchs:.0f}", f"{ours:.0f}", spread


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title=f"float32, batches of {args.batch}, one thread, {torch.backends.cpu.get_cpu_capability()}")
    for heading in ("network", "side", "torch's own, images/s", "by offsets, images/s", "ratio"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name in FILE_NAMES:
        for side in (48, 64):
            table.add_row(*measure(name, side, args.batch, args.rounds))
    wide_console().print(table)


if __name__ == "__main__":
    main()
