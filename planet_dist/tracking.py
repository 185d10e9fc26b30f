"""The run at Weights & Biases, through Accelerate's tracker: the same numbers as metrics.jsonl.

What is logged under which name, axis and summary, planet_dist.tracking_names says; docs/tracking.md lists it.

Training does not depend on a network: without a login, or where the server doesn't answer, a run is logged
offline, into RUN/wandb, to be sent later.
"""

from __future__ import annotations

import hashlib
import json
import netrc
import os
import re
import secrets
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import click
import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from planet_dist.config import Config, TrackingConfig
from planet_dist.data import Data
from planet_dist.display import displayed
from planet_dist.git_state import git_state
from planet_dist.runfolder import RunFolder, settings
from planet_dist.tracking_log import RunLog, define
from planet_dist.tracking_names import key_part, key_parts
from shards.errors import RunError
from shards.reader import Dataset
from shards.schema import write_whole

_SERVER_SECONDS = 5.0  # W&B itself would wait for minutes, and then end the run


def tracking_mode(config: TrackingConfig) -> str:
    """ "online", "offline" or "disabled", found without asking anybody."""
    if config.wandb != "auto":
        return {"off": "disabled"}.get(config.wandb, config.wandb)
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    return "online" if logged_in() else "offline"


def logged_in() -> bool:
    """Whether there is a key for the server, in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = server().split("//")[-1].rstrip("/")
    try:
        path = os.environ.get("NETRC")
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def server() -> str:
    """W&B's address, or that of a server of one's own."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def server_answers() -> bool:
    """Whether anything answers there, within seconds."""
    try:
        with urllib.request.urlopen(server(), timeout=_SERVER_SECONDS):
            return True
    except HTTPError:
        return True  # an answer all the same
    except (OSError, HTTPException):
        return False


def shown_config(config: Config) -> dict[str, Any]:
    """A configuration as W&B shows it: with a column for every value of a phase, which a list would not have."""
    shown = config.model_dump(mode="json")
    shown["phases"] = {str(number): phase for number, phase in enumerate(shown["phases"])}
    return shown


def _id_file(run: RunFolder) -> Path:
    return run.root / "wandb" / "run-id.txt"


def _kept_id(run: RunFolder) -> str | None:
    """The id under which earlier starts of a run logged: a run killed before its first checkpoint goes on with it."""
    try:
        return _id_file(run).read_text().strip() or None
    except OSError:
        return None


def _id_of_a_sweep() -> str | None:
    return os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None


def group_of(config: Config) -> str | None:
    """The group that a run stands in: the one asked for, or the other folds of a cross-validation."""
    fold = re.fullmatch(r"(kfold|kfold-grouped):(\d+)/\d+", config.data.split)
    if config.tracking.group or fold is None:
        return config.tracking.group or None
    alike = settings(config)
    del alike["data"]["split"]
    digest = hashlib.sha256(json.dumps(alike, sort_keys=True).encode()).hexdigest()
    return f"{config.model.name}-{fold[2]}-{'grouped-' * (fold[1] == 'kfold-grouped')}folds-{digest[:6]}"


class Tracker:
    """Logs to W&B, or nowhere.

    Args:
        accelerator: whose tracker it is; only rank 0 logs.
        run: the run's folder; W&B's own files lie under it.
        run_id: of the run that is resumed, or None for a new one, whose id a sweep's agent may have chosen.

    Raises:
        RunError: W&B refuses the run.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: Config,
        run: RunFolder,
        *,
        name: str,
        run_id: str | None,
    ) -> None:
        self.run_id = run_id or _kept_id(run) or _id_of_a_sweep() or secrets.token_hex(4)
        self._accelerator = accelerator
        self._log: RunLog | None = None
        mode = tracking_mode(config.tracking)
        self._on = accelerator.is_main_process and mode != "disabled"
        if not self._on:
            return
        if mode == "online" and not server_answers():
            click.echo(f"note: {server()} does not answer, so W&B's log stays in {run.root / 'wandb'}", err=True)
            mode = "offline"
        if mode == "offline":
            # Even offline W&B reports its own use, and waits seconds for a network that swallows packets.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # What tables show would wait for its sending in the home folder, which may be another where it is sent.
        os.environ.setdefault("WANDB_DATA_DIR", str((run.root / "wandb").resolve()))
        (run.root / "wandb").mkdir(exist_ok=True)
        write_whole(_id_file(run), f"{self.run_id}\n".encode())
        state = git_state()
        settings = {
            "dir": str(run.root),
            "id": self.run_id,
            "name": name,
            "mode": mode,
            "resume": "allow",
            "group": group_of(config),
            # W&B's own look at the repository would send along what is not committed.
            "settings": {"disable_git": True, "git_commit": state["commit"] if state else None},
        }
        self._start(shown_config(config) | {"git": state}, config.tracking.project, settings)

    def _start(self, config: dict[str, Any], project: str, settings: dict[str, Any]) -> None:
        from wandb.errors import Error

        try:
            self._quietly(self._accelerator.init_trackers, project, config=config, init_kwargs={"wandb": settings})
        except Error as error:
            raise RunError(
                f"W&B refuses to track this run: {error}; log in anew (wandb login), or set tracking.wandb=offline"
            ) from error

    def describe(self, data: Data) -> None:
        """Says what the run trains on, and what its keys mean; comes before anything is logged."""
        if not self._on:
            return
        manifest = data.dataset.manifest
        run = self._wandb_run()
        define(run, data.labels, [group.name for group in manifest.exclusive])
        accelerator = self._accelerator
        run.config.update(
            {
                "dataset": {
                    "location": data.dataset.shown,
                    "digest": data.dataset.digest,
                    "train": len(data.split.train_ids),
                    "validate": len(data.split.val_ids),
                },
                "label_keys": {part: label for label, part in key_parts(data.labels).items()},
                "processes": accelerator.num_processes,
                "device": accelerator.device.type,
                "precision": str(accelerator.mixed_precision),
            },
            allow_val_change=True,
        )
        run.log_artifact(dataset_artifact(data.dataset))
        self._log = RunLog(self._send, _pictures(data.dataset))

    def record(self, line: Mapping[str, Any]) -> None:
        """Logs a line of metrics.jsonl."""
        if self._log is not None:
            self._log.record(line)

    def time(self, line: Mapping[str, Any]) -> None:
        """Logs a line of timing.jsonl that is about a training step."""
        if self._log is not None:
            self._log.time(line)

    def commit(self) -> None:
        """Sends all that was logged; called before a checkpoint is written, after which it wouldn't be logged again."""
        if self._log is not None:
            self._log.commit()

    def conclude(self, summary: dict[str, Any], bundle: Path) -> None:
        """Logs what the run came to, and its bundle.

        Args:
            summary: by key.
            bundle: the folder.
        """
        if not self._on:
            return
        self.commit()
        run = self._wandb_run()
        run.summary.update(summary)
        run.log_artifact(bundle_artifact(bundle, self.run_id, summary), aliases=["best"])

    def close(self) -> None:
        """Flushes what is not yet written."""
        if self._on:
            self.commit()
            for tracker in self._accelerator.trackers:
                self._quietly(tracker.finish)

    def _wandb_run(self) -> Any:
        return self._accelerator.get_tracker("wandb", unwrap=True)

    def _send(self, row: dict[str, Any], step: int) -> None:
        self._accelerator.log(row, step=step, log_kwargs={"wandb": {"commit": True}})

    def _quietly(self, call: Any, *args: Any, **kwargs: Any) -> None:
        # W&B prints banners to the terminal that the live line is on.
        before = os.environ.get("WANDB_SILENT")
        os.environ["WANDB_SILENT"] = "true"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(*args, **kwargs)
        finally:
            if before is None:
                del os.environ["WANDB_SILENT"]
            else:
                os.environ["WANDB_SILENT"] = before


def dataset_artifact(dataset: Dataset) -> Any:
    """A wandb.Artifact that names a dataset by its place and digest, and holds nothing of it."""
    import wandb

    manifest = dataset.manifest
    place = dataset.shown if "://" in dataset.shown else Path(dataset.shown).resolve().as_uri()
    facts = {
        "location": dataset.shown,
        "digest": dataset.digest,
        "chips": manifest.count,
        "labels": dict(zip(manifest.labels, manifest.label_counts, strict=True)),
        "image": manifest.image.model_dump(mode="json"),
    }
    name = key_part(dataset.shown.rstrip("/").split("/")[-1])
    artifact = wandb.Artifact(f"dataset-{name}", "dataset", metadata=facts)
    # Of a scheme that it doesn't know W&B asks no server; the digest in it makes a changed dataset another version.
    reference = f"planet-dist+{place.rstrip('/')}/manifest.json#sha256={dataset.digest}"
    artifact.add_reference(reference, name="manifest.json", checksum=False)
    return artifact


def bundle_artifact(bundle: Path, run_id: str, facts: dict[str, Any]) -> Any:
    """A wandb.Artifact of a bundle's files, where they lie."""
    import wandb

    artifact = wandb.Artifact(f"bundle-{run_id}", "model", metadata=facts)
    for path in sorted(bundle.resolve().iterdir()):
        artifact.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)
    return artifact


def _pictures(dataset: Dataset) -> Callable[[int], NDArray[np.uint8]]:
    def picture(chip_id: int) -> NDArray[np.uint8]:
        return displayed(dataset.pixels(chip_id), dataset.manifest.image)

    return picture
