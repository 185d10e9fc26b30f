"""Sending what was logged offline: all starts of a run as one W&B run, or a fresh run made of metrics.jsonl.

A file that is sent twice would stand at W&B twice, so what was sent is remembered, and only what came since is sent.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from planet_dist.config import Config, parse_config
from planet_dist.runfolder import RunFolder
from planet_dist.tracking import bundle_artifact, group_of, logged_in, server, server_answers, shown_config
from planet_dist.tracking_files import read_records, write_records
from planet_dist.tracking_log import RunLog, define
from planet_dist.tracking_merge import has_news, merge, truth_of
from planet_dist.tracking_names import results
from planet_dist.tracking_starts import Sent, Start, read_sent, read_starts, write_sent
from shards.errors import RunError

Line = dict[str, Any]
Send = Callable[[Path], None]


def check_service() -> None:
    """Raises RunError where nothing could be sent: without a key, or where the server does not answer in seconds."""
    if not logged_in():
        raise RunError(f"no key for {server()}: log in (wandb login), or set WANDB_API_KEY, and run the command again")
    if not server_answers():
        raise RunError(
            f"{server()} does not answer; run the command again where it can be reached, or set WANDB_BASE_URL"
        )


def send_run(root: Path, send: Send) -> str | None:
    """Sends what a run has logged offline and has not sent yet.

    Args:
        root: the run's folder.
        send: takes a folder with one .wandb file to W&B; send_folder, or what stands for it.

    Returns:
        The run's id at W&B; None where there is nothing new.

    Raises:
        RunError: there is nothing that could be sent, a file is damaged, or sending failed.
    """
    run = RunFolder(root)
    starts = read_starts(run)
    lines = _lines(run.metrics)
    truth = truth_of(lines, _timing(run))
    sent = read_sent(run)
    sent_step = max(sent.step, *(step for start in starts if not start.offline for step in start.steps()), -1)
    everything = {start.folder.name: len(start.records) for start in starts}
    if not has_news(
        [start.records for start in starts], truth, sent=[sent.count(start) for start in starts], sent_step=sent_step
    ):
        return None
    run_id = starts[0].run_id
    made = _fresh_folder(run, run_id)
    try:
        known = set(range(sent_step + 1)).union(*(start.steps() for start in starts))
        lost = [line for line in lines if line["kind"] == "detail" and line["step"] not in known]
        if lost:
            starts.insert(1, _tables_anew(run, run_id, lost, made / "tables"))
        counts = [sent.count(start) for start in starts]
        merged = merge([start.records for start in starts], truth, sent=counts, sent_step=sent_step)
        _gather_files(starts, run, merged, made)
        write_records(made / f"run-{run_id}.wandb", merged)
        last = max(truth.rows, default=-1)
        write_sent(run, Sent(last, everything, whole=False))
        send(made)
        write_sent(run, Sent(last, everything))
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return run_id


def rebuild_run(root: Path, send: Send) -> str:
    """Makes a fresh W&B run of a run's own logs, and sends it.

    Its numbers, tables and bundle are there; pictures of chips and the machine's load are not.

    Args:
        root, send: as of send_run.

    Returns:
        The fresh run's id at W&B.

    Raises:
        RunError: the logs cannot be read, or sending failed.
    """
    run = RunFolder(root)
    lines, timing = _lines(run.metrics), _timing(run)
    run_id = secrets.token_hex(4)
    made = _fresh_folder(run, run_id)
    try:
        send(_log_anew(run, run_id, made, lines, timing, whole=True))
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return run_id


def _tables_anew(run: RunFolder, run_id: str, lines: Sequence[Line], made: Path) -> Start:
    """The tables of epochs that W&B's files lost: of a killed process they lack up to the last 32 KiB."""
    made.mkdir()
    folder = _log_anew(run, run_id, made, lines, [], whole=False)
    records = []
    for record in read_records(folder / f"run-{run_id}.wandb"):
        if record.HasField("history"):  # whose clock is today's
            items = [item for item in record.history.item if item.nested_key[0] not in ("_runtime", "_timestamp")]
            del record.history.item[:]
            record.history.item.extend(items)
        if record.WhichOneof("record_type") in ("history", "artifact", "files"):
            records.append(record)
    return Start(folder, run_id, True, records)


def _log_anew(
    run: RunFolder, run_id: str, made: Path, lines: Sequence[Line], timing: Sequence[Line], *, whole: bool
) -> Path:
    """Logs lines of a run's own logs with W&B, offline; `whole` says that they are all, with what the run came to.

    Returns:
        W&B's folder of it, under `made`.
    """
    import wandb

    config = _config(run)
    before = {name: os.environ.get(name) for name in ("WANDB_SILENT", "WANDB_ERROR_REPORTING", "WANDB_DATA_DIR")}
    os.environ |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_DATA_DIR": str(made)}
    try:
        settings = wandb.Settings(disable_git=True, console="off", x_disable_stats=True, x_disable_meta=True)
        logged = wandb.init(
            project=config.tracking.project,
            id=run_id,
            name=f"{run.root.resolve().name}-rebuilt",
            group=group_of(config),
            mode="offline",
            dir=str(made),
            config=shown_config(config),
            settings=settings,
        )
        _replay(logged, lines, timing)
        if whole and (run.evaluation / "metrics.json").exists() and (run.bundle / "bundle.json").exists():
            summary = results(json.loads((run.evaluation / "metrics.json").read_text()))
            logged.summary.update(summary)
            logged.log_artifact(bundle_artifact(run.bundle, run_id, summary), aliases=["best"])
        logged.finish()
        wandb.teardown()  # W&B's own process still holds the end of its file, and writes it when it's asked to end
    finally:
        for name, value in before.items():
            del os.environ[name]
            os.environ |= {} if value is None else {name: value}
    (folder,) = (made / "wandb").glob(f"offline-run-*-{run_id}")
    if not any(record.HasField("exit") for record in read_records(folder / f"run-{run_id}.wandb")):
        raise RunError(f"{folder}: W&B's own process ended before it had written all; run the command again")
    return folder


def _replay(logged: Any, lines: Sequence[Line], timing: Sequence[Line]) -> None:
    details = [line for line in lines if line["kind"] == "detail"]
    labels = details[-1]["cooccurrence"]["labels"] if details else []
    define(logged, labels, list(details[-1]["confusion"]) if details else [])
    log = RunLog(lambda row, step: logged.log(row, step=step, commit=True), picture=None)
    times = {line["step"]: line for line in timing if line["kind"] == "train"}
    for line in lines:
        log.record(line)
        if line["kind"] == "train" and line["step"] in times:
            log.time(times[line["step"]])
    log.commit()


def send_folder(folder: Path) -> None:
    """Sends a folder with one .wandb file by W&B's own command, which says what it does.

    Raises:
        RunError: it failed.
    """
    (file,) = folder.glob("*.wandb")
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", str(file)],
        check=False,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"WANDB_ERROR_REPORTING": "false"},
    )
    # W&B's command ends with status 0 after most failures; it marks what it has sent.
    if done.returncode or not file.with_suffix(".wandb.synced").exists():
        raise RunError(
            f"{folder}: W&B did not take all of it, for the reason printed above; part of it may be there. "
            "planet-dist sync --rebuild sends all numbers as a fresh run"
        )


def _timing(run: RunFolder) -> list[Line]:
    return _lines(run.timing) if run.timing.exists() else []


def _lines(path: Path) -> list[Line]:
    try:
        text = path.read_text()
        # A line without an end is being written, or was when the run was killed.
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); give the folder of a run of planet_dist/train.py") from error


def _config(run: RunFolder) -> Config:
    try:
        return parse_config(tomllib.loads(run.config.read_text()), str(run.config))
    except (OSError, ValueError) as error:
        raise RunError(f"{run.config}: cannot be read ({error}); give the folder of a run") from error


def _fresh_folder(run: RunFolder, run_id: str) -> Path:
    try:
        made = (run.root / "wandb" / f"offline-sync-{run_id}-{secrets.token_hex(4)}").resolve()
        made.mkdir(parents=True)
        return made
    except OSError as error:
        raise RunError(f"{run.root / 'wandb'}: cannot be written ({error}); sync a copy of the run") from error


def _gather_files(starts: Sequence[Start], run: RunFolder, records: Sequence[Any], made: Path) -> None:
    """Puts all starts' files where W&B looks for them, and finds those of artifacts again in a run that was moved."""
    for start in starts:
        for path in (start.folder / "files").rglob("*"):
            if path.is_file() and path.name != "output.log":  # W&B writes that one anew, of what was printed
                link = made / "files" / path.relative_to(start.folder / "files")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(path.resolve())
    for record in records:
        if record.HasField("artifact"):
            for entry in record.artifact.manifest.contents:
                if entry.local_path and not Path(entry.local_path).exists():
                    entry.local_path = str(_moved(entry.local_path, run))


def _moved(path: str, run: RunFolder) -> Path:
    for part in ("wandb/artifacts", "bundle"):
        _, found, rest = path.rpartition(f"/{part}/")
        if found and (run.root / part / rest).exists():
            return (run.root / part / rest).resolve()
    raise RunError(f"{path}: an artifact's file is gone; planet-dist sync --rebuild sends all numbers without it")
