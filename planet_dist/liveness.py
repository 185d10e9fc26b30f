"""Ranks that died or hang: found by the others, named, and no reason to wait any longer.

Every rank counts its beats (steps, validation batches, saves), all ranks alike. A thread of each writes the count into
the launcher's key-value store, some ten times within the time that a run may stand still, and reads those of the
others. When no count has moved for that long, the others wait for the ranks whose thread has fallen silent too, or
else for those with the lowest count. One of the others says so, and the launcher then ends them all.

A rank that dies takes its connections along, which its peers notice at once as an error of their own; lost() finds out
whose death that was.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from types import TracebackType
from typing import Self

import click
import psutil
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

_STORE_SECONDS = 20.0
_LOOKS = 10  # into the store, within the time that a run may stand still
_MOST_SECONDS_BETWEEN_LOOKS = 15.0
_SECONDS_FOR_WORD = 3.0  # that the ranks of another host get, to say which of them died
_SECONDS_FOR_REPORT = 5.0  # that the rank which reports a standstill gets, before the others end too
_UNREACHABLE = (DistError, RuntimeError)  # what the store raises once its host is gone
_DIED = "has died"


@dataclass(frozen=True)
class Pulse:
    """What a rank says of itself.

    Attributes:
        rank: its number.
        host: its host's name.
        pid: its process on that host.
        born: when that process began, in seconds since 1970, lest another one bear its number later.
        beats: how far it got.
        place: where that is, for people.
        looks: how often its thread has looked at the others.
        ended: why it ends by its own will, or "".
    """

    rank: int
    host: str
    pid: int
    born: float
    beats: int
    place: str
    looks: int = 0
    ended: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


def at_fault(then: Sequence[Pulse], now: Sequence[Pulse]) -> list[Pulse]:
    """Those that the others wait for.

    Args:
        then: when a count last moved.
        now: the same ranks' pulses, some looks later.

    Returns:
        Those that have fallen silent; where all speak, those with the fewest beats; none where all have as many.
    """
    silent = [pulse for pulse, before in zip(now, then, strict=True) if pulse.looks == before.looks]
    fewest = min(pulse.beats for pulse in now)
    found = silent or [pulse for pulse in now if pulse.beats == fewest]
    return found if len(found) < len(now) else []


def standstill(still: Sequence[Pulse], pulses: Sequence[Pulse], seconds: float) -> str:
    """The sentence for people: who stands still, where, and what to do."""
    if not still:
        hosts = ", ".join(sorted({pulse.host for pulse in pulses}))
        return (
            f"all {len(pulses)} ranks have waited for each other for {seconds:.0f} s, at {pulses[0].place}: the "
            f"network between them ({hosts}) has failed, or a device hangs. Look at the hosts' own logs; start again "
            "with --resume auto"
        )
    names = "; ".join(f"{pulse}, last heard of at {pulse.place}" for pulse in still[:8])
    more = f" and {len(still) - 8} more" if len(still) > 8 else ""
    return (
        f"the run has stood still for {seconds:.0f} s, for the others wait for {names}{more}. Look there (dmesg, "
        "nvidia-smi, storage); start again with --resume auto, or raise runtime.timeout_minutes"
    )


class Watch:
    """A rank's own pulse, and its look at the others'.

    Args:
        rank, num_ranks: of the run.
        timeout_seconds: that a run may stand still.
        report: called once with the sentence for people, by the lowest rank that is not at fault.
    """

    def __init__(self, rank: int, num_ranks: int, timeout_seconds: float, report: Callable[[str], None]) -> None:
        self.num_ranks, self.timeout_seconds = num_ranks, timeout_seconds
        self._report = report
        self._rank, self._host = rank, socket.gethostname()
        self._pid, self._born = os.getpid(), psutil.Process().create_time()
        self._at = (0, "its start")  # one object, since the main thread writes it and the other reads it
        self._looks = 0
        self._ended = ""
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._store: TCPStore | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to publish and to look; every rank must call it, before all wait for each other once."""
        if self.num_ranks == 1:
            return
        self._store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=_STORE_SECONDS),
            wait_for_workers=False,
        )
        self._publish()
        self._thread = threading.Thread(target=self._look, name="liveness", daemon=True)
        self._thread.start()

    def beat(self, place: str) -> None:
        """Says that this rank got further; all ranks must beat alike."""
        self._at = (self._at[0] + 1, place)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Tells the others that this rank ends. An error that is another rank's death is told as that, and ends it."""
        if self._store is None:
            return
        text = self.lost() if isinstance(error, RuntimeError) else None
        self._done.set()
        ended = "" if error is None else str(text or error or kind)
        self._ended = (ended.splitlines() or ["done"])[0]
        speaks = text is not None and self._speaks()
        with suppress(*_UNREACHABLE):
            self._publish()
        if text is not None:
            if speaks:
                click.echo(f"Error: {text}", err=True)
            sys.stdout.flush()
            os._exit(1)  # an orderly end would wait for the rank that is gone
        assert self._thread is not None
        # An interpreter that ends while a thread asks the store aborts the process. The store has answered by then.
        self._thread.join(2 * _STORE_SECONDS)

    def lost(self) -> str | None:
        """Which other rank has died or ended, once this one has lost its connection to it; None if none has."""
        deadline = time.monotonic() + _SECONDS_FOR_WORD
        while self._store is not None:
            try:
                pulses = self._pulses()
            except _UNREACHABLE:
                return "the launcher of rank 0 has ended, and this rank with it; start again with --resume auto"
            for pulse in pulses:
                if pulse.rank != self._rank and (reason := self._reason_of_end(pulse)):
                    where = f"last heard of at {pulse.place}"
                    return f"{pulse} {reason}, {where}; the run ends here. Start again with --resume auto"
            if time.monotonic() > deadline:
                return None
            time.sleep(0.1)
        return None

    def _speaks(self) -> bool:
        """Whether this is the lowest rank of its host that is left."""
        try:
            here = [pulse for pulse in self._pulses() if pulse.host == self._host]
        except _UNREACHABLE:
            return True
        return self._rank == min(pulse.rank for pulse in here if _lives(pulse))

    def _reason_of_end(self, pulse: Pulse) -> str:
        if pulse.ended:
            return _DIED if pulse.ended == _DIED else f"has ended ({pulse.ended})"
        if pulse.host != self._host or _lives(pulse):
            return ""
        # Those on other hosts cannot see it.
        self._set(replace(pulse, ended=_DIED))
        return _DIED

    def _look(self) -> None:
        interval = min(self.timeout_seconds / _LOOKS, _MOST_SECONDS_BETWEEN_LOOKS)
        then: list[Pulse] = []
        since = time.monotonic()
        while not self._done.wait(interval):
            self._looks += 1
            now: list[Pulse] = []
            try:
                self._publish()
                now = self._pulses()
            except _UNREACHABLE:
                if self._done.is_set():
                    return
            if now and [pulse.beats for pulse in now] != [pulse.beats for pulse in then]:
                then, since = now, time.monotonic()
            elif time.monotonic() - since >= self.timeout_seconds:
                self._end(then, now)

    def _end(self, then: list[Pulse], now: list[Pulse]) -> None:
        """Ends this process, whatever its main thread is waiting for."""
        if not now:
            click.echo(
                f"Error: {self._pulse()}: the launcher of rank 0 has not answered for {self.timeout_seconds:.0f} s: "
                "its host or the network has failed; start again with --resume auto",
                err=True,
            )
            os._exit(1)
        still = at_fault(then, now)
        others = {pulse.rank for pulse in now} - {pulse.rank for pulse in still}
        if self._rank == min(others):
            text = standstill(still, now, self.timeout_seconds)
            click.echo(f"Error: {text}", err=True)
            self._report(text)
        else:
            time.sleep(_SECONDS_FOR_REPORT)
        os._exit(1)

    def _pulse(self) -> Pulse:
        return Pulse(self._rank, self._host, self._pid, self._born, *self._at, self._looks, self._ended)

    def _publish(self) -> None:
        self._set(self._pulse())

    def _set(self, pulse: Pulse) -> None:
        assert self._store is not None
        with self._lock:
            self._store.set(f"planet-dist/pulse/{pulse.rank}", json.dumps(asdict(pulse)))

    def _pulses(self) -> list[Pulse]:
        assert self._store is not None
        with self._lock:
            values = self._store.multi_get([f"planet-dist/pulse/{rank}" for rank in range(self.num_ranks)])
        return [Pulse(**json.loads(value)) for value in values]


def _lives(pulse: Pulse) -> bool:
    """Whether a process of this host still runs; one that nobody has buried yet doesn't."""
    try:
        process = psutil.Process(pulse.pid)
        return abs(process.create_time() - pulse.born) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
