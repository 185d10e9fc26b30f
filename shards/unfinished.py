"""The folder of a dataset while it's built: who may write to it, and which shards are already finished.

DATASET/.build/
  build.json            which images and labels it is a build of
  lock                  held while a build runs; its parts share it
  chips-000000.json     one for every finished shard, written after the shard itself
  chips-000001.tar      a shard that is being written; by a part, with a number of its own before the ending
  parts.json            what publishing needs of a build in parts (shards.publish)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.errors import DatasetError, Problem
from shards.moments import Moments
from shards.names import printable
from shards.schema import MANIFEST, Shard, sync_folder, write_whole
from shards.storage import GROUPS

REJECTED = "rejected.csv"
STATE_FOLDER = ".build"
_SHARD_FILE = re.compile(r"chips-[0-9]{6,}\.(tar|idx)")
_LEFTOVER = re.compile(r"\.(manifest\.json|rejected\.csv)\.[0-9]+\.tmp")


@dataclass(frozen=True)
class FinishedShard:
    """What the manifest needs of a shard, and the digest of what it was made from."""

    fingerprint: str
    shard: Shard
    moments: Moments
    problems: list[Problem]

    def to_bytes(self) -> bytes:
        """The bytes of its state file."""
        table = {
            "fingerprint": self.fingerprint,
            "shard": self.shard.model_dump(),
            "moments": asdict(self.moments),
            "problems": [asdict(problem) for problem in self.problems],
        }
        return json.dumps(table).encode()

    @staticmethod
    def from_bytes(data: bytes) -> FinishedShard:
        """Reads a state file. Raises ValueError, KeyError or TypeError for anything else."""
        table = json.loads(data)
        moments = table["moments"]
        return FinishedShard(
            str(table["fingerprint"]),
            Shard.model_validate(table["shard"]),
            Moments(int(moments["pixels"]), tuple(moments["sums"]), tuple(moments["squares"])),
            [Problem(**problem) for problem in table["problems"]],
        )


def check_output(out: Path, images: Path, labels: Path | None) -> None:
    """Raises DatasetError unless `out` is absent, empty, or an unfinished build of the same folder and CSV."""
    if not out.is_dir():
        if out.exists():
            raise DatasetError(f"{out}: a file stands there; give a new folder as --out")
        return
    names = sorted(entry.name for entry in out.iterdir())
    unfinished = STATE_FOLDER in names
    if MANIFEST in names and not unfinished:
        raise DatasetError(f"{out}: already holds a finished dataset; give another --out, or delete that folder first")
    foreign = [name for name in names if not _is_ours(name)]
    if foreign:
        raise DatasetError(
            f"{out}: holds {len(foreign)} other file(s), such as {printable(foreign[0])}; "
            "give a new or empty folder as --out"
        )
    state = out / STATE_FOLDER / "build.json"
    if unfinished and state.is_file():
        found, wanted = state.read_bytes(), _identity(images, labels)
        if found != wanted:
            raise DatasetError(
                f"{out}: holds an unfinished build of other sources: {printable(found.decode(errors='replace'))}; "
                "build from those again to finish it, give another --out, or delete that folder"
            )


def _is_ours(name: str) -> bool:
    fixed = name in (STATE_FOLDER, MANIFEST, REJECTED, GROUPS)
    return fixed or bool(_SHARD_FILE.fullmatch(name)) or bool(_LEFTOVER.fullmatch(name))


def _identity(images: Path, labels: Path | None) -> bytes:
    sources = {"images": str(images.resolve()), "labels": str(labels.resolve()) if labels else None}
    return json.dumps(sources).encode()


class Workplace:
    """The folder of a dataset under construction, entered by `open_workplace`."""

    def __init__(self, out: Path, *, shared: bool = False) -> None:
        self.out = out
        self.state = out / STATE_FOLDER
        # A part that was started twice, or that lives on at a host given up for dead, writes the same bytes into
        # files of its own, and the last to rename them spoils nothing.
        self._writer = f".{int.from_bytes(os.urandom(6))}" if shared else ""

    def draft(self, name: str, ending: str) -> Path:
        """Where this process writes a file of a shard, before `finish` gives it its place."""
        return self.state / f"{name}{self._writer}.{ending}"

    def finished(self, name: str, fingerprint: str) -> FinishedShard | None:
        """The shard of that name, if it was finished from the same inputs and its files are still whole."""
        try:
            done = FinishedShard.from_bytes((self.state / f"{name}.json").read_bytes())
            if done.fingerprint != fingerprint:
                return None
            digests = {"tar": done.shard.sha256, "idx": done.shard.index_sha256} if done.shard.count else {}
            for ending, digest in digests.items():
                with (self.out / f"{name}.{ending}").open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                        return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return done

    def finish(self, done: FinishedShard, index: bytes) -> None:
        """Moves a shard whose tar lies whole as this process's draft to its place, its index and state with it.

        A shard of which every chip was left out has a state alone.
        """
        name = done.shard.name
        if done.shard.count:
            write_whole(self.draft(name, "idx"), index)
            for ending in ("tar", "idx"):
                self.draft(name, ending).rename(self.out / f"{name}.{ending}")
            sync_folder(self.out)
        write_whole(self.state / f"{name}.json", done.to_bytes())

    def complete(self, manifest: bytes, shard_names: set[str], rejected: bytes | None) -> None:
        """Writes the manifest, which makes the dataset whole, after all else is in place."""
        for path in self.out.iterdir():
            leftover = _SHARD_FILE.fullmatch(path.name) and path.stem not in shard_names
            if leftover or _LEFTOVER.fullmatch(path.name) or path.name == REJECTED:
                path.unlink()
        if rejected is not None:
            write_whole(self.out / REJECTED, rejected)
        write_whole(self.out / MANIFEST, manifest)
        self.clear()

    def clear(self) -> None:
        """Removes what only a build needs."""
        if self.state.exists():
            shutil.rmtree(self.state)
        sync_folder(self.out)


@contextmanager
def open_workplace(out: Path, images: Path, labels: Path | None, *, shared: bool = False) -> Iterator[Workplace]:
    """Takes `out` for one build, or for one of its parts; check_output has let it pass.

    Args:
        shared: other parts of the same build may write there at the same time.

    Raises:
        DatasetError: another build is writing there.
        OSError: the folder cannot be written.
    """
    (out / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
    with _held(out, shared=shared, what="planet-shard build") as place:
        # A manifest beside the state folder is of a build that was killed in its last moment.
        (out / MANIFEST).unlink(missing_ok=True)
        write_whole(place.state / "build.json", _identity(images, labels))
        yield place


@contextmanager
def reopen_workplace(out: Path) -> Iterator[Workplace]:
    """Takes an unfinished build whose parts have ended.

    Raises:
        DatasetError: there is none, or a part of it is still at work.
        OSError: the folder cannot be written.
    """
    if not (out / STATE_FOLDER).is_dir():
        raise DatasetError(f"{out}: no build has begun there; run planet-shard build with --part 0/N to N-1/N first")
    with _held(out, shared=False, what="planet-shard build --part") as place:
        yield place


@contextmanager
def _held(out: Path, *, shared: bool, what: str) -> Iterator[Workplace]:
    place = Workplace(out, shared=shared)
    descriptor = os.open(place.state / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, out, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, what)
        yield place
    finally:
        os.close(descriptor)


def _lock(descriptor: int, out: Path, kind: int, what: str) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DatasetError(f"{out}: another {what} is writing there; wait for it, or give another --out") from error
    except OSError:  # a file system without locks: two builds at once are the user's care there
        with suppress(OSError):
            os.utime(descriptor)
