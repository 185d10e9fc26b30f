"""What a training step of an EfficientNet-Lite gains on this CPU by our ways beside torch's own, in one run.

    python benchmarks/cpu_step.py

Four processes of one thread each take a step, forward and backward, by turns: with torch's convolutions alone; with
our gradients of depthwise filters; with 1x1 filters as products of matrices too; and with freed memory kept beside. In
bf16 where the CPU has kernels for it, as launch files ask. Medians of the rounds; docs/decisions.md says why.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from unittest import mock

import torch
from printed import wide_console
from rich.table import Table
from torch import nn

from planet_dist.efficientnet_lite import FILE_NAMES, DepthwiseConv2d, EfficientNetLite, PointwiseConv2d
from planet_dist.memory import keep_freed_memory
from planet_dist.precision import describe_precision, precision_for

WAYS = ("torch's own", "depthwise", "1x1 too", "memory too")
WARM_UP = 8  # rounds


def take_steps(name: str, side: int, batch: int, way: int, precision: str) -> None:
    """One step for each line of standard input; prints the seconds of each."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if way == 3:
        keep_freed_memory()
    for place, kind in enumerate((DepthwiseConv2d, PointwiseConv2d), start=1):
        if way < place:
            mock.patch.object(kind, "forward", nn.Conv2d.forward).start()
    network = EfficientNetLite(name).to(memory_format=torch.channels_last)
    images_BCHW = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    for _ in sys.stdin:
        started = time.perf_counter()
        network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits_BC = network(images_BCHW)
        logits_BC.float().square().mean().backward()
        print(time.perf_counter() - started, flush=True)


def measure(name: str, side: int, batch: int, rounds: int, precision: str) -> tuple[str, ...]:
    """A row of the table."""
    command = [sys.executable, __file__, "--network", name, "--side", str(side), "--batch", str(batch)]
    command += ["--precision", precision, "--way"]
    processes = [
        subprocess.Popen([*command, str(way)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for way in range(len(WAYS))
    ]
    times: list[list[float]] = [[] for _ in WAYS]
    for number in range(rounds + WARM_UP):
        for process, seconds in zip(processes, times, strict=True):
            assert process.stdin is not None and process.stdout is not None
            print(file=process.stdin, flush=True)
            taken = float(process.stdout.readline())
            if number >= WARM_UP:
                seconds.append(taken)
    for process in processes:
        process.communicate()
    cells = [f"{batch / statistics.median(times[0]):.0f}"]
    for before, after in itertools.pairwise(times):
        ratios = [old / new for old, new in zip(before, after, strict=True)]
        cells.append(f"{batch / statistics.median(after):.0f} ({statistics.median(ratios):.2f} times)")
    return name, str(side), *cells


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--network", choices=FILE_NAMES, help="this one alone")
    parser.add_argument("--side", type=int, help="chips of so many pixels alone")
    parser.add_argument("--precision", choices=("bf16", "no"), help="no is float32")
    parser.add_argument("--way", type=int, choices=range(len(WAYS)), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way is not None:
        take_steps(args.network, args.side, args.batch, args.way, args.precision)
        return
    precision = args.precision or precision_for("bf16", on_cpu=True)
    cpu = torch.backends.cpu.get_cpu_capability()
    table = Table(title=f"{describe_precision(precision, precision)}, batches of {args.batch}, one thread, {cpu}")
    for heading in ("network", "side", *(f"{way}, images/s" for way in WAYS)):
        table.add_column(heading)
    for name in [args.network] if args.network else FILE_NAMES:
        for side in [args.side] if args.side else (48, 64):
            table.add_row(*measure(name, side, args.batch, args.rounds, precision))
    table.caption = "in brackets: medians of the rounds' ratios to the column before"
    wide_console().print(table)


if __name__ == "__main__":
    main()
