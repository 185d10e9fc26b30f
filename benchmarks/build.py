"""How fast a build is beside bare decoding and beside tar, in one run.

    python benchmarks/build.py                      made chips
    python benchmarks/build.py --images DIR         any folder of chips

All take the same files in turn, linked under several names up to --least chips, from a warm page cache; the table
gives medians. "decode" reads and decodes each file and does nothing else; "pack" is what a build's workers do, whose
results nobody takes; "build" scans the folder, reads, decodes, checks, measures, hashes, packs and syncs to disk; "tar"
copies bytes and decodes nothing. The clock starts after the builds' interpreters have, and at two workers when the
first chunk comes back.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from printed import wide_console
from rich.table import Table

# Prints the seconds of a whole build, and the images/s from the first chunk that came back to the end.
BUILD = """
import sys, time
from pathlib import Path
from shards.build import BuildOptions, build
from shards.labels import PLANET
if __name__ == "__main__":
    images, out, workers = sys.argv[1:]
    options = BuildOptions(Path(images), None, Path(out), PLANET, int(workers), unlabelled=True)
    started = time.perf_counter()
    first = []
    def progress(done, total):
        if done and not first:
            first.append((time.perf_counter(), done))
    report = build(options, progress)
    ended = time.perf_counter()
    print(ended - started, (report.manifest.count - first[0][1]) / (ended - first[0][0]))
"""

# Prints the seconds of as many threads that pack all, whose results nobody takes.
PACK = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import shards.packing
from shards.build import WHOLE, BuildOptions, _prepare
from shards.labels import PLANET
from shards.packing import pack_chunk
images, out, threads, decoding = sys.argv[1:]
options = BuildOptions(Path(images), None, Path(out), PLANET, int(threads), unlabelled=True)
job = _prepare(options, WHOLE, lambda done, total: None)
chunks = [chunk for plan in job.plans for chunk in job.chunks(plan)]
pack_chunk(chunks[0])
if decoding == "nothing decoded":
    shards.packing._decode = lambda image, chunk, canvas: (canvas, 0)
started = time.perf_counter()
with ThreadPoolExecutor(int(threads)) as pool:
    assert sum(pool.map(lambda chunk: len(pack_chunk(chunk).index), chunks)) == len(job.scan.records)
print(time.perf_counter() - started)
"""

DECODE = """
import sys, time
from pathlib import Path
from shards.pixels import decode
files = sorted(Path(sys.argv[1]).iterdir())
kind = "tif" if files[0].suffix in (".tif", ".tiff") else "jpg"
decode(files[0].read_bytes(), kind)
started = time.perf_counter()
for path in files:
    decode(path.read_bytes(), kind)
print(len(files) / (time.perf_counter() - started))
"""


def time_decode(processes: int) -> Callable[[Path, int], float]:
    """A function that measures the images/s of reading and decoding, every process all files."""

    def measure(images: Path, count: int) -> float:
        command = [sys.executable, "-c", DECODE, str(images)]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        return sum(float(process.communicate()[0]) for process in running)

    return measure


def time_build(workers: int) -> Callable[[Path, int], float]:
    """A function that measures the images/s of a build."""

    def measure(images: Path, count: int) -> float:
        seconds, steady = _run_script(BUILD, images, str(workers))
        # With one worker the whole call counts; worker processes take a moment to start, however long the build.
        return count / seconds if workers == 1 else steady

    return measure


def time_pack(threads: int, decoding: str = "decoding") -> Callable[[Path, int], float]:
    """A function that measures the images/s of what a build's workers do, alone; "nothing decoded" leaves that out."""

    def measure(images: Path, count: int) -> float:
        (seconds,) = _run_script(PACK, images, str(threads), decoding)
        return count / seconds

    return measure


def _run_script(code: str, images: Path, *arguments: str) -> list[float]:
    """The numbers that a script of its own prints, given the images, a folder to build in, and more."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "once.py"  # a file, which worker processes can load anew
        script.write_text(code)
        command = [sys.executable, str(script), str(images), f"{folder}/out", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [float(word) for word in done.stdout.split()]


def time_tar(images: Path, count: int) -> float:
    """Images/s of GNU tar into a file, synced to disk."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        target = f"{folder}/chips.tar"
        subprocess.run(["tar", "-chf", target, "-C", str(images), "."], check=True)
        descriptor = os.open(target, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        return count / (time.perf_counter() - started)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of chips of one kind (made chips by default)")
    parser.add_argument("--count", type=int, default=1000, help="number of made chips")
    parser.add_argument("--least", type=int, default=8000, help="link the chips until there are so many")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = options.images
        if images is None:
            from shards.synth import write_chips

            write_chips(Path(folder), options.count, "jpg", 0, progress=lambda done: None)
            images = Path(folder) / "train-jpg"
        images = linked(images, Path(folder) / "linked", options.least)
        count = sum(1 for _ in images.iterdir())
        measures: dict[str, Callable[[Path, int], float]] = {
            "decode, 1 process": time_decode(1),
            "decode, 2 processes": time_decode(2),
            "pack, 1 thread": time_pack(1),
            "pack, 2 threads": time_pack(2),
            "... nothing decoded, 1 thread": time_pack(1, "nothing decoded"),
            "... nothing decoded, 2 threads": time_pack(2, "nothing decoded"),
            "build, 1 worker": time_build(1),
            "build, 2 workers": time_build(2),
            "tar": time_tar,
        }
        rates: dict[str, list[float]] = {name: [] for name in measures}
        for _ in range(options.repeats):
            for name, measure in measures.items():
                rates[name].append(measure(images, count))
    show(rates, count, options.repeats)


def linked(images: Path, target: Path, least: int) -> Path:
    """A folder of links to all chips, each under as many names as it takes to have `least` of them."""
    files = sorted(images.resolve().iterdir())
    target.mkdir()
    for copy in range(-(-least // len(files))):
        for path in files:
            (target / f"{copy}_{path.name}").symlink_to(path)
    return target


def show(rates: dict[str, list[float]], count: int, repeats: int) -> None:
    """Prints medians, their range, and the share of as many bare decoders."""
    table = Table(title=f"{count} chips, medians of {repeats}")
    for column in ("what", "images/s", "range", "of as many decoders"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, found in rates.items():
        bare = rates["decode, 2 processes" if "2" in name else "decode, 1 process"]
        # Against the decoding of the same round, so that a machine that slows down slows both.
        share = statistics.median(rate / base for rate, base in zip(found, bare, strict=True))
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        table.add_row(name, f"{statistics.median(found):,.0f}", spread, f"{share:.2f}")
    wide_console().print(table)


if __name__ == "__main__":
    main()
