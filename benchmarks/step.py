"""What the stream and the stopwatch cost training: beside steps on one batch that stays in memory, in one run.

    python benchmarks/step.py                   made chips of 64x64, the second paper's small network, on the CPU
    python benchmarks/step.py --data DATASET    any dataset

All take steps of the same network in turn, with the same augmentation; the table gives medians of the rounds, in each
of which every contestant comes once. "stream" takes its batches from data.cache = host, filled before the clock starts;
"resident" takes one of them over and over; "unwatched" is the stream without the stopwatch that measures its shares.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from webdataset.pipeline import DataPipeline

from planet_dist.assembly import assemble
from planet_dist.config import Config, load_config
from planet_dist.data import Data, open_data
from planet_dist.learner import Learner
from planet_dist.precision import precision_for
from planet_dist.stopwatch import Stopwatch
from planet_dist.stream import Batch, DecodedBatches, OnDevice, PlannedSteps, decode_threads, open_caches
from shards.build import BuildOptions, build
from shards.labels import PLANET
from shards.synth import write_chips

LOG_EVERY_STEPS = 10


def made_dataset(folder: Path, count: int) -> Path:
    """Chips of 64x64, drawn and packed."""
    write_chips(folder / "chips", count, "jpg", seed=1, size=64)
    build(BuildOptions(folder / "chips" / "train-jpg", folder / "chips" / "train.csv", folder / "dataset", PLANET))
    return folder / "dataset"


class Bench:
    """One learner, and the ways to feed it."""

    def __init__(self, config: Config, data: Data) -> None:
        self.config, self.data = config, data
        on_cpu = not torch.cuda.is_available()
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision_for("bf16", on_cpu=on_cpu))
        device = self.accelerator.device
        phase = config.phases[0]
        self.plan = data.plan(config, phase)
        parts = assemble(config, data, device)
        self.threads = decode_threads(config.data.threads, 1)
        self.caches = open_caches(config, data.dataset, device)
        self.watch = Stopwatch(device, self.threads)
        self.learners = {
            watch: Learner(
                phase,
                parts.model,
                parts.loss,
                parts.preprocess,
                self.accelerator,
                steps_per_epoch=self.plan.steps_per_epoch,
                seed=0,
                watch=watch,
            )
            for watch in (self.watch, Stopwatch.off())
        }
        self.done = 0

    def stream(self, watch: Stopwatch, epochs: int = 10**6) -> Iterator[Batch]:
        """Batches as training has them."""
        decoded = DecodedBatches(
            self.data.dataset,
            self.data.targets_NC,
            self.plan.largest_rank_batch(1),
            threads=self.threads,
            prefetch_batches=self.config.data.prefetch_batches,
            pinned=self.accelerator.device.type == "cuda",
            caches=self.caches,
            watch=watch,
        )
        source = PlannedSteps(self.plan, range(epochs), 0, rank=0, num_ranks=1)
        return iter(DataPipeline(source, decoded, OnDevice(self.accelerator.device, self.caches.device, watch)))

    def steps(self, batches: Iterator[Batch], watch: Stopwatch, count: int) -> float:
        """Seconds of so many steps, as the engine takes them."""
        learner = self.learners[watch]
        started = time.perf_counter()
        for _ in range(count):
            with watch.waiting():
                batch = next(batches)
            length = len(batch.ids_B)
            with watch.computing():
                learner.step(batch, self.done, length)
            watch.lap(length)
            self.done += 1
            for _result in learner.results(unread=1):
                if watch is self.watch:
                    watch.read_lap()
                    if self.done % LOG_EVERY_STEPS == 0:
                        watch.rates()
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started


def stopwatch_seconds(watch: Stopwatch, times: int = 20_000) -> float:
    """Seconds that the stopwatch's own calls of a step take, without a step between them."""
    started = time.perf_counter()
    for number in range(times):
        with watch.waiting(), watch.copying():
            pass
        with watch.computing(), watch.exchanging():
            pass
        for _ in range(16):
            watch.decode(int)
        watch.lap(128)
        watch.read_lap()
        if number % LOG_EVERY_STEPS == 0:
            watch.rates()
    return (time.perf_counter() - started) / times


def measure(config: Config, data: Data, rounds: int, count: int) -> tuple[Table, dict[str, float]]:
    """The table, and the medians in seconds of a step."""
    bench = Bench(config, data)
    off = next(watch for watch in bench.learners if watch is not bench.watch)
    for _ in bench.stream(off, epochs=1):  # fills the cache
        pass
    streams = {watch: bench.stream(watch) for watch in bench.learners}
    kept = next(bench.stream(off))
    resident = iter(lambda: kept, None)
    times: dict[str, list[float]] = {"resident": [], "stream": [], "unwatched": []}
    for number in range(rounds + 1):
        contestants = [("resident", resident, off), ("stream", streams[bench.watch], bench.watch)]
        contestants.append(("unwatched", streams[off], off))
        for name, batches, watch in contestants[number % 3 :] + contestants[: number % 3]:
            # What was decoded while others took their turn is used up first.
            bench.steps(batches, watch, config.data.prefetch_batches + 1)
            seconds = bench.steps(batches, watch, count) / count
            if number:  # the first round warms up
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    own = stopwatch_seconds(Stopwatch(torch.device("cpu"), 2))
    cores = torch.get_num_threads()
    table = Table(
        title=f"{config.model.name}, {cores} compute thread(s), {bench.threads} decoding, torch {torch.__version__}"
    )
    for heading in ("steps", "images/s", "of resident", "spread of rounds"):
        table.add_column(heading, justify="left" if heading == "steps" else "right")
    batch = config.phases[0].batch_size
    for name, values in times.items():
        ratios = [r / v for r, v in zip(times["resident"], values, strict=True)]
        spread = f"{min(ratios):.3f} .. {max(ratios):.3f}"
        table.add_row(name, f"{batch / medians[name]:,.0f}", f"{statistics.median(ratios):.3f}", spread)
    watched = statistics.median(s / u for s, u in zip(times["stream"], times["unwatched"], strict=True))
    table.caption = (
        f"stream with the stopwatch / without: {watched:.4f} of its time; the stopwatch's own calls: "
        f"{own * 1e6:.0f} us a step, {own / medians['stream']:.3%} of it"
    )
    return table, medians


def main() -> None:
    """Prints a table for one compute thread, and one for all cores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a dataset, in place of made chips")
    parser.add_argument("--count", type=int, default=2000, help="made chips")
    parser.add_argument("--recipe", default="paper2-simple-cnn-64")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="of each contestant in a round")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = args.data or made_dataset(Path(folder), args.count)
        own = [f"phases.0.batch_size={args.batch}", f"runtime.cache_dir={folder}/cache", "data.cache=host"]
        config = load_config(args.recipe, [*own, "data.split=random:0.1", "data.kind=any", "augment.flip=true"])
        data = open_data(config, dataset)
        for threads in sorted({1, torch.get_num_threads()}):
            torch.set_num_threads(threads)
            Console().print(measure(config, data, args.rounds, args.steps)[0])


if __name__ == "__main__":
    main()
