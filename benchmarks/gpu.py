"""Training on a GPU: images/s of this project's steps beside a plain PyTorch loop, in one run on one GPU.

    python benchmarks/gpu.py                 ResNet-50 at 224, Inception-v3 at 299, VGG-16 at 224, bf16, channels_last
    python benchmarks/gpu.py --rehearse      two small chips a step on the CPU: shows that it runs, and measures nothing

Contestants take steps in turn, and the table gives medians of the rounds:
    stream     this project in the first epoch: JPEG chips of 256x256 are read, decoded, copied, resized and flipped
    resident   this project's step on one batch that stays on the device
    plain      a plain loop on one batch on the device: torchvision's network, autocast, fused AdamW
    compiled   the same loop under torch.compile
Without a GPU it says so, and ends with status 1.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import nn
from webdataset.pipeline import DataPipeline

from planet_dist.assembly import assemble
from planet_dist.config import Config, load_config
from planet_dist.data import Data, open_data
from planet_dist.learner import Learner
from planet_dist.precision import precision_for
from planet_dist.stream import Batch, DecodedBatches, OnDevice, PlannedSteps, decode_threads
from shards.build import BuildOptions, build
from shards.labels import PLANET
from shards.synth import write_chips

NETWORKS = {"resnet50": (224, 256), "inception_v3": (299, 256), "vgg16": (224, 128)}
RATE = 1e-4
Steps = Callable[[int], None]


def configuration(name: str, size: int, batch: int) -> Config:
    """A recipe of one phase that trains all of a torchvision network."""
    own = [
        f"model.name={name}",
        "model.weights=none",
        f"data.size={size}",
        "data.split=random:0.1",
        "data.kind=any",
        "augment.flip=true",
        f"phases.0.batch_size={batch}",
        f"phases.0.learning_rate={RATE}",
        "phases.0.ema_decay=0",
        "phases.0.clip_norm=0",
        "phases.0.epochs=1000",
    ]
    return load_config("small-resnet-32", own)


def ours(config: Config, data: Data, accelerator: Accelerator) -> tuple[Steps, Steps]:
    """Steps with the stream, and on one batch."""
    phase, device = config.phases[0], accelerator.device
    plan = data.plan(config, phase)
    parts = assemble(config, data, device)
    learner = Learner(
        phase, parts.model, parts.loss, parts.preprocess, accelerator, steps_per_epoch=plan.steps_per_epoch, seed=0
    )
    done = itertools.count()

    def take(batches: Iterator[Batch], count: int) -> None:
        for batch in itertools.islice(batches, count):
            learner.step(batch, next(done), len(batch.ids_B))
            for _ in learner.results(unread=1):
                pass

    def stream() -> Iterator[Batch]:
        decoded = DecodedBatches(
            data.dataset,
            data.targets_NC,
            plan.largest_rank_batch(1),
            threads=decode_threads(0, 1),
            prefetch_batches=config.data.prefetch_batches,
            pinned=device.type == "cuda",
        )
        source = PlannedSteps(plan, range(phase.epochs), 0, rank=0, num_ranks=1)
        return iter(DataPipeline(source, decoded, OnDevice(device)))

    streamed, kept = stream(), next(stream())
    return (lambda count: take(streamed, count)), (lambda count: take(itertools.repeat(kept), count))


def plain(name: str, size: int, batch: int, labels: int, device: torch.device, *, compiled: bool) -> Steps:
    """A loop without anything of this project."""
    network = torchvision.models.get_model(
        name, weights=None, num_classes=labels, **({"aux_logits": False} if name == "inception_v3" else {})
    )
    network = network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, fused=True)
    images_BCHW = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    targets_BC = torch.randint(0, 2, (batch, labels), device=device).float()
    run: nn.Module = torch.compile(network) if compiled else network  # type: ignore[assignment]
    bf16 = precision_for("bf16", on_cpu=device.type == "cpu") == "bf16"

    def steps(count: int) -> None:
        for _ in range(count):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits_BC = run(images_BCHW)
            nn.functional.binary_cross_entropy_with_logits(logits_BC.float(), targets_BC).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def seconds(steps: Steps, count: int, device: torch.device) -> float:
    """Of so many steps, the device's part included."""
    started = time.perf_counter()
    steps(count)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(name: str, size: int, batch: int, data: Data, args: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second of each round, by contestant."""
    accelerator = Accelerator(cpu=args.rehearse, mixed_precision=precision_for("bf16", on_cpu=args.rehearse))
    device = accelerator.device
    config = configuration(name, size, batch)
    stream, resident = ours(config, data, accelerator)
    labels = len(data.labels)
    contestants = {"stream": stream, "resident": resident}
    contestants["plain"] = plain(name, size, batch, labels, device, compiled=False)
    if not args.rehearse:
        contestants["compiled"] = plain(name, size, batch, labels, device, compiled=True)
    rates: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    for number in range(args.rounds + 1):
        for contestant, steps in contestants.items():
            # The first round compiles and chooses kernels; later, what was decoded in the others' turns is used up.
            seconds(steps, config.data.prefetch_batches + 1, device)
            taken = seconds(steps, args.steps, device)
            if number:
                rates[contestant].append(args.steps * batch / taken)
    return rates


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="two small chips a step on the CPU")
    parser.add_argument("--count", type=int, default=4000, help="made chips")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of each contestant in a round")
    args = parser.parse_args()
    if args.rehearse:
        args.count, args.rounds, args.steps = 40, 1, 1
        where = "rehearsal on the CPU: these figures mean nothing"
    elif torch.cuda.is_available():
        where = f"{torch.cuda.get_device_name()}, bf16, torch {torch.__version__}, CUDA {torch.version.cuda}"
    else:
        print(f"no GPU here: torch {torch.__version__} finds none, so that nothing was measured", file=sys.stderr)
        sys.exit(1)
    table = Table(title=f"Training, images/s: {where}")
    for heading in ("network", "batch", "contestant", "images/s", "of plain", "spread"):
        table.add_column(heading, justify="left" if heading in ("network", "contestant") else "right")
    with tempfile.TemporaryDirectory() as folder:
        chips, dataset = Path(folder) / "chips", Path(folder) / "dataset"
        write_chips(chips, args.count, "jpg", seed=1)
        build(BuildOptions(chips / "train-jpg", chips / "train.csv", dataset, PLANET))
        for name, (size, batch) in NETWORKS.items():
            side, chosen = (size // 3, 2) if args.rehearse else (size, batch)
            rates = measure(name, side, chosen, open_data(configuration(name, side, chosen), dataset), args)
            base = statistics.median(rates["plain"])
            for contestant, values in rates.items():
                median = statistics.median(values)
                spread = f"{min(values):,.0f} .. {max(values):,.0f}"
                network = f"{name} at {side}"
                table.add_row(network, str(chosen), contestant, f"{median:,.0f}", f"{median / base:.2f}", spread)
    Console().print(table)


if __name__ == "__main__":
    main()
