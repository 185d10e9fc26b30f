"""The folder of a dataset while it's built: who may write to it, and which shards are already finished.

DATASET/.build/
  build.json            which images and labels it is a build of
  lock                  held while a build runs
  chips-000000.json     one for every finished shard, written after the shard itself
  chips-000001.tar      a shard that is being written
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
    fixed = name in (STATE_FOLDER, MANIFEST, REJECTED)
    return fixed or bool(_SHARD_FILE.fullmatch(name)) or bool(_LEFTOVER.fullmatch(name))


def _identity(images: Path, labels: Path | None) -> bytes:
    sources = {"images": str(images.resolve()), "labels": str(labels.resolve()) if labels else None}
    return json.dumps(sources).encode()


class Workplace:
    """The folder of a dataset under construction, entered by `open_workplace`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.state = out / STATE_FOLDER

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
        """Moves a shard whose tar lies whole in the state folder to its place, its index and state with it.

        A shard of which every chip was left out has a state alone.
        """
        name = done.shard.name
        if done.shard.count:
            write_whole(self.state / f"{name}.idx", index)
            for ending in ("tar", "idx"):
                (self.state / f"{name}.{ending}").rename(self.out / f"{name}.{ending}")
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
        shutil.rmtree(self.state)
        sync_folder(self.out)


@contextmanager
def open_workplace(out: Path, images: Path, labels: Path | None) -> Iterator[Workplace]:
    """Takes `out` for one build; check_output has let it pass.

    Raises:
        DatasetError: another build is writing there.
        OSError: the folder cannot be written.
    """
    place = Workplace(out)
    place.state.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place.state / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, out)
        # A manifest beside the state folder is of a build that was killed in its last moment.
        (out / MANIFEST).unlink(missing_ok=True)
        write_whole(place.state / "build.json", _identity(images, labels))
        yield place
    finally:
        os.close(descriptor)


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DatasetError(
            f"{out}: another planet-shard build is writing there; wait for it, or give another --out"
        ) from error
    except OSError:  # a file system without locks: two builds at once are the user's care there
        with suppress(OSError):
            os.utime(descriptor)
