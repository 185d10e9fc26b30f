"""A run on disk: its folder, and the two logs in it.

RUN/config.toml      the resolved configuration
RUN/metrics.jsonl    the truth, one JSON object a line: functions of data and seed alone
RUN/timing.jsonl     what differs from run to run: rates, waits, times of day
RUN/checkpoints/     planet_dist.checkpoint
RUN/evaluation/      predictions.npz, thresholds.json, metrics.json of the best checkpoint
RUN/bundle/          planet_dist.bundle
RUN/profile/         planet_dist.traces, where one was asked for
RUN/start.json       which start of the run may write here: the newest; and how and where it was started
RUN/stopped.json     why the last start ended before the run did; launchers lose exit codes
RUN/failed.json      the error that ended the last start, if it could say so
RUN/report.html      planet_dist.report
"""

from __future__ import annotations

import contextlib
import json
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from planet_dist.config import Config, parse_config
from shards.errors import PlanetError, RunError
from shards.schema import write_whole

if TYPE_CHECKING:
    from planet_dist.checkpoint import Checkpoint

# What may differ between starts of a run: how it is watched, and on what it runs.
_WATCHING = {"runtime", "tracking", "description"}

Resume = Literal["never", "auto"]


class RunFolder:
    """The paths of a run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.toml"
        self.metrics = root / "metrics.jsonl"
        self.timing = root / "timing.jsonl"
        self.checkpoints = root / "checkpoints"
        self.evaluation = root / "evaluation"
        self.bundle = root / "bundle"
        self.profile = root / "profile"
        self.stopped = root / "stopped.json"
        self.failed = root / "failed.json"
        self.start = root / "start.json"
        self.report = root / "report.html"
        self._number = 0

    def check(self, resume: Resume) -> None:
        """Raises RunError when the folder holds something and resuming was not asked for."""
        if resume == "never" and self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise RunError(
                f"{self.root}: exists already; give another --out, or --resume auto to go on with the run in it"
            )

    def checkpoint(self, resume: Resume, run: dict[str, Any]) -> Checkpoint | None:
        """The checkpoint to go on from, or None to start.

        Args:
            run: what the checkpoint must have been made with (checkpoint.State.run).

        Raises:
            RunError: it was made with something else; the text shows each difference.
        """
        from planet_dist.checkpoint import load_checkpoint, newest  # torch, which listing runs does without

        folder = newest(self.checkpoints) if resume == "auto" else None
        if folder is None:
            return None
        checkpoint = load_checkpoint(folder)
        found = differences(checkpoint.state.run, run)
        if found:
            raise RunError(
                "\n".join(
                    [f"{folder}: made with another configuration, dataset or precision:"]
                    + [f"  {at}: {old!r} in the checkpoint, {new!r} now" for at, old, new in found]
                    + ["resume with the same, or give another --out"]
                )
            )
        return checkpoint

    def create(self, config: Config, about: dict[str, Any] | None = None) -> None:
        """Makes the folder, writes the configuration into it, and takes it over from any earlier start.

        Args:
            about: what start.json keeps of this start (provenance.describe_start).
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for left in self.root.glob(".*.tmp"):  # by a start that was killed while it wrote
                left.unlink(missing_ok=True)
            self.stopped.unlink(missing_ok=True)
            self.failed.unlink(missing_ok=True)
            self._number = self._newest_start() + 1
            write_whole(self.start, (json.dumps({"start": self._number, **(about or {})}) + "\n").encode())
            write_whole(self.config, config.to_toml().encode())
        except OSError as error:
            raise RunError(f"{self.root}: cannot be written ({error}); give another --out") from error

    def join(self) -> None:
        """Makes the newest start, which another rank has begun, this rank's too."""
        self._number = self._newest_start()

    def hold(self) -> None:
        """Raises RunError once a later start has taken the folder over; asked before anything is written.

        A host that was cut off may come back with its start still alive, after another has gone on with the run.
        """
        if self._number and self._newest_start() != self._number:
            raise RunError(
                f"{self.root}: start {self._newest_start()} of this run has taken over from this one, number "
                f"{self._number}; nothing more is written by it. Leave the run to the newer start"
            )

    def _newest_start(self) -> int:
        try:
            return int(json.loads(self.start.read_text())["start"])
        except FileNotFoundError:
            return 0
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.start}: not the number of a start ({error}); remove the file") from error

    def read_config(self, remedy: str) -> Config:
        """The configuration as it was resolved.

        Args:
            remedy: what an error tells to do.

        Raises:
            RunError: it cannot be read.
        """
        try:
            return parse_config(tomllib.loads(self.config.read_text()), str(self.config))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, PlanetError) as error:
            raise RunError(f"{self.config}: cannot be read ({error}); {remedy}") from error

    def is_finished(self, config: Config, dataset_digest: str) -> bool:
        """Whether the folder holds what training with `config` on that dataset would come to.

        Raises:
            RunError: it holds a run of another configuration or dataset, or one that cannot be read.
        """
        bundle = self.bundle / "bundle.json"
        if not bundle.is_file():
            return False
        was = self.read_config(remedy="remove the folder, or give another --out")
        old, new = settings(was), settings(config)
        differing = [key for key in new if old[key] != new[key]]
        if differing:
            raise RunError(
                f"{self.root}: was trained with another configuration ({', '.join(differing)} differ); "
                "give another --out, or remove that folder"
            )
        try:
            trained_on = str(json.loads(bundle.read_bytes())["dataset_digest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{bundle}: cannot be read ({error}); remove the folder, or give another --out") from error
        if trained_on != dataset_digest:
            raise RunError(
                f"{self.root}: was trained on another dataset, of manifest {trained_on[:12]}, and this one has "
                f"{dataset_digest[:12]}; give that dataset, another --out, or remove that folder"
            )
        return True

    def write_stopped(self, reason: str, total_steps: int | None = None) -> None:
        """Leaves word why this start ends before the run does.

        Args:
            total_steps: done and saved; None where nothing could be saved.
        """
        self.hold()
        text = json.dumps({"reason": reason, "step": total_steps, "remedy": "--resume auto"})
        write_whole(self.stopped, f"{text}\n".encode())

    def write_failed(self, error: str) -> None:
        """Leaves word of the error that ends this start, unless a newer one has taken the folder over."""
        if self._number and self._newest_start() == self._number:
            with contextlib.suppress(OSError):  # it may be the full disk that ends the run
                write_whole(self.failed, (json.dumps({"error": error}) + "\n").encode())


def settings(config: Config) -> dict[str, Any]:
    """What a run comes to by, as plain JSON: its configuration without how it is watched and on what it runs.

    Of a teacher, and of a run that it starts from, whether there is one; where it lies may change.
    """
    found = config.model_dump(mode="json", exclude=_WATCHING)
    found["model"]["weights"] = config.model.stated_weights
    found["teacher"] = {"weight": config.teacher.weight} if config.teacher.run else None
    return found


def differences(old: Any, new: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """Where two values of plain JSON differ: the dotted path of each place, with what either has there (or None)."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            found
            for key in sorted(old.keys() | new.keys())
            for found in differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [found for i, (a, b) in pairs for found in differences(a, b, f"{at}.{i}")]
    return [] if old == new else [(at, old, new)]


class JsonLines:
    """A log of one JSON object a line.

    Args:
        path: the file.
        keep_bytes: what to keep of a file that exists; what stands beyond, a torn line too, was undone by a
            restart. None keeps all.
    """

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        self._file = path.open("ab")
        if keep_bytes is not None:
            self._file.truncate(keep_bytes)

    def append(self, record: dict[str, Any]) -> None:
        """Writes one line, whole, at once."""
        os.write(self._file.fileno(), (json.dumps(record) + "\n").encode())

    def size(self) -> int:
        """The file's length in bytes, once it's on disk."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
