"""How fast batches come, beside the bare decoder, beside a copy, and beside other loaders, in one run.

    python benchmarks/loader.py                     made chips; make bench installs the peers first
    python benchmarks/loader.py --images DIR        any folder of JPEG chips
    python benchmarks/loader.py --markdown          tables to be pasted

Every loader has a process of its own and runs its epochs in turn with the others, from a warm page cache; a ratio is
the median of the ratios of each round. Peers run in the interpreter that --peers names, with requirements-bench.lock.
All give batches of 128 in shuffled order; uint8 at the chips' own size unless a table says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from printed import Printer

from shards.build import BuildOptions, build
from shards.labels import PLANET
from shards.synth import write_chips
from shards.workers import available_cores

HERE = Path(__file__).parent
PATIENCE_SECONDS = 240  # for one answer
SHARD_BYTES = 4 * 2**20  # several shards, so that peers which deal shards to their workers have some to deal
PEERS = {
    "webdataset": "webdataset",
    "webdataset-our-decoder": "webdataset, our decoder",
    "litdata": "litdata, our decoder",
    "torchdata": "torchdata nodes, threads, our decoder",
    "mosaicml": "MosaicML streaming, our decoder",
    "files": "files, PIL, DataLoader",
}
# Seconds from the end of the imports to the first batch, dataset opened and threads started.
FIRST_BATCH = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import planet_dist.host_cache, planet_dist.stream
import loader_contestants as contestants
started = time.perf_counter()
batch = next(iter(contestants.stream(Path(sys.argv[1]), int(sys.argv[3])).epoch(0, 1)))
print(time.perf_counter() - started)
"""


@dataclass
class Contestant:
    """A loader's process.

    Attributes:
        name, workers: what it runs.
        rates: images/s of each round.
        missing: why it can't take part, where it can't.
    """

    name: str
    workers: int
    passes: int = 1
    python: str = sys.executable
    versions: str = ""
    missing: str = ""
    private_mib: float = 0.0
    rates: list[float] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    def start(self, folder: Path) -> None:
        """Starts it."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        if not Path(self.python).exists():
            self.missing = f"no {self.python}: make bench installs it"
            return
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [self.python, str(HERE / "loader_contestants.py"), self.name, str(folder), str(self.workers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def warm_up(self) -> None:
        """Waits until it's there, and lets it run an epoch that doesn't count."""
        if not self.missing:
            self.versions = str(self._answer().get("versions", ""))
            self.ask(0, memory=False)
            self.rates.clear()

    def ask(self, number: int, *, memory: bool) -> None:
        """One round."""
        if self.missing:
            return
        assert self.process is not None and self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([number, 1 if memory else self.passes, memory]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why
        answer = self._answer()
        if memory:
            self.private_mib = float(answer.get("private_bytes", 0)) / 2**20
        elif answer:
            self.rates.append(float(answer["images_per_second"]))

    def _answer(self) -> dict[str, float | str]:
        assert self.process is not None and self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_SECONDS)
        line = self.process.stdout.readline() if ready else ""
        if line:
            answer: dict[str, float | str] = json.loads(line)
            return answer
        self.stop()
        self.errors.seek(0)
        told = [text for text in self.errors.read().splitlines() if text.strip()]
        self.missing = told[-1][:150] if told else f"no answer in {PATIENCE_SECONDS} s"
        return {}

    def stop(self) -> None:
        """Ends it with its workers, of which some would hold it up."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def make_data(folder: Path, images: Path | None, count: int, tiffs: int) -> None:
    """Chips, and the datasets that all contestants read."""
    if images is None:
        write_chips(folder / "chips", count, "jpg", 0)
    else:
        (folder / "chips").mkdir()
        (folder / "chips" / "train-jpg").symlink_to(images.resolve())
    write_chips(folder / "tiffs", tiffs, "tif", 0)
    for kind, home in (("jpg", "chips"), ("tif", "tiffs")):
        source = (folder / home / f"train-{kind}").resolve()
        size = SHARD_BYTES if kind == "jpg" else 2**26
        build(BuildOptions(source, None, folder / kind, PLANET, shard_bytes=size, unlabelled=True))


def compete(folder: Path, cores: int, repeats: int, peers: str) -> dict[tuple[str, int], Contestant]:
    """All rounds."""
    entered = [Contestant("bare-decoder", 1), Contestant("stream", 1)]
    if cores > 1:
        entered += [Contestant("bare-decoder", cores), Contestant("stream", cores)]
    entered += [Contestant("stream-cached", 1, passes=8), Contestant("numpy-copy", 1, passes=8)]
    if cores > 1:
        entered.append(Contestant("stream-cached", cores, passes=8))
    entered += [Contestant("bare-tiff", 1, passes=3), Contestant("stream-tiff", 1, passes=3)]
    if cores > 1:
        entered += [Contestant("bare-tiff", cores, passes=3), Contestant("stream-tiff", cores, passes=3)]
    entered.append(Contestant("stream-float", cores))
    entered += [Contestant(name, cores, python=peers) for name in ("webdataset-usual", *PEERS)]
    try:
        for contestant in entered:
            contestant.start(folder)
        for contestant in entered:
            contestant.warm_up()
        for number in range(1, repeats + 1):
            for contestant in entered:
                contestant.ask(number, memory=False)
        for contestant in entered:
            contestant.ask(repeats + 1, memory=True)
    finally:
        for contestant in entered:
            contestant.stop()
    return {(contestant.name, contestant.workers): contestant for contestant in entered}


def first_batches(folder: Path, cores: int, repeats: int) -> list[float]:
    """Seconds to the first batch, of as many processes."""
    command = [sys.executable, "-c", FIRST_BATCH, str(folder), str(HERE), str(cores)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(repeats)]
    return [float(run.stdout) for run in runs]


def rates_of(contestant: Contestant) -> list[str]:
    """Median and range of images/s, for a row."""
    if not contestant.rates:
        return ["-", "-"]
    low, high = min(contestant.rates), max(contestant.rates)
    return [f"{statistics.median(contestant.rates):,.0f}", f"{low:,.0f} to {high:,.0f}"]


def ratio(one: Contestant, other: Contestant) -> str:
    """The median over rounds of one's rate by the other's, with its range."""
    if not one.rates or not other.rates:
        return "-"
    found = [a / b for a, b in zip(one.rates, other.rates, strict=False)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def report(found: dict[tuple[str, int], Contestant], firsts: list[float], cores: int, printer: Printer) -> None:
    """All tables."""
    bare, one_core = found["bare-decoder", cores], found["bare-decoder", 1]
    threads = sorted({1, cores})
    pair = ["loader", "threads", "images/s", "range", "of the bare one on as many threads"]

    def rows(bare_name: str, name: str, shown: tuple[str, str]) -> list[list[str]]:
        made = []
        for count in threads:
            base, ours = found[bare_name, count], found[name, count]
            made.append([shown[0], str(count), *rates_of(base), "1"])
            made.append([shown[1], str(count), *rates_of(ours), ratio(ours, base)])
        return made

    title = "First epoch, JPEG to a ready uint8 batch"
    printer.table(title, pair, rows("bare-decoder", "stream", ("simplejpeg, bytes in memory", "stream")))
    copy = found["numpy-copy", 1]
    later = [["NumPy copy of the same bytes", "1", *rates_of(copy), ratio(copy, one_core), "1"]]
    for count in threads:
        cached = found["stream-cached", count]
        later.append(
            ["stream, data.cache=host", str(count), *rates_of(cached), ratio(cached, one_core), ratio(cached, copy)]
        )
    columns = ["loader", "threads", "images/s", "range", "of the bare decoder on one core", "of the copy"]
    printer.table("Later epochs, from the decoded-chip cache", columns, later)
    title = "First epoch, uncompressed 4-band uint16 TIFF to a ready batch"
    printer.table(title, pair, rows("bare-tiff", "stream-tiff", ("read and copy", "stream")))
    usual, ours, prepared = found["webdataset-usual", cores], found["stream", cores], found["stream-float", cores]
    printer.table(
        f"Beside webdataset's usual pipeline, first epoch, {cores} workers",
        ["loader", "batch", "images/s", "range", "of webdataset's"],
        [
            ["webdataset, PIL, torchvision" + _why(usual), "float32 224x224", *rates_of(usual), "1"],
            ["stream", "uint8", *rates_of(ours), ratio(ours, usual)],
            ["stream and augment, all on the CPU", "float32 224x224", *rates_of(prepared), ratio(prepared, usual)],
        ],
    )
    peers = [["stream", "", *rates_of(ours), ratio(ours, bare), f"{ours.private_mib:.0f}"]]
    for name, shown in PEERS.items():
        peer = found[name, cores]
        peers.append([shown + _why(peer), peer.versions, *rates_of(peer), ratio(peer, bare), f"{peer.private_mib:.0f}"])
    no_ffcv = 'ffcv: not installed, its build stops at "Could not find required package: opencv"'
    peers.append([no_ffcv, "", "-", "-", "-", "-"])
    columns = ["loader", "versions", "images/s", "range", "of the bare decoder", "private MiB"]
    printer.table(f"Peers, first epoch, uint8, {cores} workers each", columns, peers)
    cached = found["stream-cached", cores]
    printer.table(
        "Start and memory of the stream",
        ["figure", "value"],
        [
            ["seconds from imports to the first batch, median", f"{statistics.median(firsts):.3f}"],
            ["... range", f"{min(firsts):.3f} to {max(firsts):.3f}"],
            ["private memory beside the batches, MiB", f"{ours.private_mib:.0f}"],
            ["... with data.cache=host", f"{cached.private_mib:.0f}"],
        ],
    )


def _why(contestant: Contestant) -> str:
    return f" (not measured: {contestant.missing})" if contestant.missing else ""


def machine() -> str:
    """What it was measured on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in ("simplejpeg", "numpy", "torch"))
    return (
        f"{names[0] if names else platform.machine()}, {available_cores()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {versions}; load {os.getloadavg()[0]:.1f} at the start"
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of JPEG chips (made chips by default)")
    parser.add_argument("--count", type=int, default=2048, help="number of made chips")
    parser.add_argument("--tiffs", type=int, default=384, help="number of made TIFF chips")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--peers", default=str(HERE.parent / ".venv-bench" / "bin" / "python"), help="their interpreter"
    )
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    started, cores, shown = time.monotonic(), available_cores(), machine()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_data(folder, options.images, options.count, options.tiffs)
        found = compete(folder, cores, options.repeats, options.peers)
        firsts = first_batches(folder, cores, options.repeats)
    print(f"{shown}; medians of {options.repeats} rounds, {time.monotonic() - started:.0f} s in all")
    report(found, firsts, cores, Printer(options.markdown))


if __name__ == "__main__":
    main()
