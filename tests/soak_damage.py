"""Damages small datasets at random, many times over, and holds reading and checking to what they must notice.

    python tests/soak_damage.py --count 1000 --seed 1

Each of `count` mutations damages a sound copy by accident (bits flipped, ranges lost, files cut, swapped, missing), and
every fourth by forgery (absurd values under digests that follow). Prints a table, and ends with status 1 if one
accident is silent, one outcome of reading and check disagrees, or anything raises, hangs or takes memory unbounded.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path
from types import FrameType

from tests.mutations import ACCIDENTS, FORGERIES, content, damaged, fingerprint, judge, make_dataset

SECONDS = 20
ADDRESS_SPACE = 3 * 2**30


class _Hung(BaseException):
    """A mutation took too long."""


def _ring(number: int, frame: FrameType | None) -> None:
    raise _Hung


def soak(count: int, seed: int, folder: Path) -> int:
    """Runs mutations in this process, whose memory is limited. Returns the number of defects."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    signal.signal(signal.SIGALRM, _ring)
    sound = [make_dataset(folder, "jpg"), make_dataset(folder, "tif")]
    expected = {root: (content(root), fingerprint(root)) for root in sound}
    base_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    slowest, defects = 0.0, 0
    for number in range(count):
        forged = number % 4 == 3
        pool = FORGERIES if forged else ACCIDENTS
        root, damage = sound[number % 2], pool[number // 4 % len(pool) if forged else number % len(pool)]
        mutation = damaged(root, folder / "work", damage, seed + number)
        started = time.monotonic()
        signal.alarm(SECONDS)
        try:
            outcome = judge(folder / "work", mutation, *expected[root])
            fault = outcome.fault()
            if forged and outcome.read != "refused":
                fault = None  # a consistent dataset of other content, as good as one that was built so
            table[damage.__name__][f"read: {outcome.read}, check: {outcome.checked}"] += 1
            table[damage.__name__]["unchanged"] += not outcome.changed
        except _Hung:
            fault = f"still at it after {SECONDS} seconds"
        except BaseException:
            fault = traceback.format_exc()
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.monotonic() - started)
        if fault:
            defects += 1
            print(f"DEFECT {mutation}: {fault}", flush=True)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _print(table)
    print(
        f"{count} mutations, {defects} defect(s); slowest {slowest:.2f} s; "
        f"peak memory {peak_kib / 1024:.0f} MiB, {base_kib / 1024:.0f} MiB before the first"
    )
    return defects


def _print(table: dict[str, Counter[str]]) -> None:
    columns = [f"read: {read}, check: {check}" for read in ("refused", "same", "other") for check in ("found", "sound")]
    print(
        f"{'damage':20}" + "".join(f"{column.replace('read: ', '').replace('check: ', ''):>16}" for column in columns)
    )
    for name, counts in table.items():
        print(f"{name:20}" + "".join(f"{counts[column]:16}" for column in columns) + f"  {counts['unchanged']} no-op")


def main() -> None:
    """Runs the mutations in a child, so that one that kills the process is a defect like any other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(min(soak(given.count, given.seed, Path(folder)), 1))
    words = ["--child", "--count", str(given.count), "--seed", str(given.seed)]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, *words], check=False, env=environment)
    if done.returncode not in (0, 1):
        print(f"DEFECT: the process ended with status {done.returncode}")
    sys.exit(done.returncode and 1)


if __name__ == "__main__":
    main()
