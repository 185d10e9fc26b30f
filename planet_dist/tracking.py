"""The run at Weights & Biases, through Accelerate's tracker: the same numbers as metrics.jsonl.

Training does not depend on a network: without a login, or where the server doesn't answer, a run is logged
offline, into RUN/wandb, to be sent later.
"""

from __future__ import annotations

import netrc
import os
import secrets
import urllib.request
import warnings
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError

import click
from accelerate import Accelerator

from planet_dist.config import Config, TrackingConfig
from planet_dist.runfolder import RunFolder
from shards.errors import RunError

_SERVER_SECONDS = 5.0  # W&B itself would wait for minutes, and then end the run


def tracking_mode(config: TrackingConfig) -> str:
    """ "online", "offline" or "disabled", found without asking anybody."""
    if config.wandb != "auto":
        return {"off": "disabled"}.get(config.wandb, config.wandb)
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    return "online" if _logged_in() else "offline"


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = _server().split("//")[-1].rstrip("/")
    try:
        path = os.environ.get("NETRC")
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def _server_answers() -> bool:
    try:
        with urllib.request.urlopen(_server(), timeout=_SERVER_SECONDS):
            return True
    except HTTPError:
        return True  # an answer all the same
    except (OSError, HTTPException):
        return False


class Tracker:
    """Logs to W&B, or nowhere.

    Args:
        accelerator: whose tracker it is; only rank 0 logs.
        run: the run's folder; W&B's own files lie under it.
        run_id: of the run that is resumed, or None for a new one.

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
        self.run_id = run_id or secrets.token_hex(4)
        self._accelerator = accelerator
        mode = tracking_mode(config.tracking)
        self._on = accelerator.is_main_process and mode != "disabled"
        if not self._on:
            return
        if mode == "online" and not _server_answers():
            click.echo(f"note: {_server()} does not answer, so W&B's log stays in {run.root / 'wandb'}", err=True)
            mode = "offline"
        if mode == "offline":
            # Even offline W&B reports its own use, and waits seconds for a network that swallows packets.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        (run.root / "wandb").mkdir(exist_ok=True)
        settings = {
            "dir": str(run.root),
            "id": self.run_id,
            "name": name,
            "mode": mode,
            "resume": "allow",
            "group": config.tracking.group or None,
        }
        self._start(config, settings)

    def _start(self, config: Config, settings: dict[str, Any]) -> None:
        from wandb.errors import Error

        try:
            self._quietly(
                self._accelerator.init_trackers,
                config.tracking.project,
                config=config.model_dump(mode="json"),
                init_kwargs={"wandb": settings},
            )
        except Error as error:
            raise RunError(
                f"W&B refuses to track this run: {error}; log in anew (wandb login), or set tracking.wandb=offline"
            ) from error

    def log(self, values: dict[str, float], step: int) -> None:
        """Logs numbers at an optimizer step."""
        if self._on:
            self._accelerator.log(values, step=step)

    def close(self) -> None:
        """Flushes what is not yet written."""
        if self._on:
            for tracker in self._accelerator.trackers:
                self._quietly(tracker.finish)

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
