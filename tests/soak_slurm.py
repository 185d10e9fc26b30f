"""Every way in which SLURM can take a job's hosts away, each against a run that was left alone.

    make soak-slurm                       all of them, some twenty minutes on two busy cores
    python -m tests.soak_slurm limit cut  some

A job trains across two hosts of a real SLURM (tests/slurm_cluster.py), which then fail it: a job in a higher partition
preempts it, its time runs out, a slurmd is killed, a network cable is cut. It has to end as a finished job whose
weights, figures and thresholds are, byte by byte, those of an undisturbed run of two ranks on one machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shards.build import BuildOptions, build
from shards.labels import PLANET
from shards.reader import Dataset
from shards.synth import write_chips
from tests.conftest import REPOSITORY, launch
from tests.slurm_cluster import Cluster, missing_for_a_cluster
from tests.test_train import results, words

# Long enough for SLURM to notice a dead host, or the end of the shortest time limit that it knows, a minute.
LONG = ["phases.0.batch_size=4", "phases.0.epochs=60", "runtime.checkpoint_steps=10"]
STEPS_PER_EPOCH = 23


@dataclass(frozen=True)
class Trial:
    """A job that trains, on a cluster of its own."""

    cluster: Cluster
    run: Path
    log: Path
    job: str

    def wait_for_second_epoch(self) -> None:
        """Waits until there is a checkpoint within the second epoch."""
        deadline = time.monotonic() + 180
        while not any(int(path.name[5:]) > STEPS_PER_EPOCH for path in (self.run / "checkpoints").glob("step-*")):
            state = self.cluster.job(self.job)["JobState"]
            assert time.monotonic() < deadline and state in ("PENDING", "RUNNING"), f"{state}: {self.log.read_text()}"
            time.sleep(0.05)

    def wait_for_restart(self) -> None:
        """Waits until SLURM has taken the job off its hosts."""
        deadline = time.monotonic() + 180
        while self.cluster.job(self.job)["Restarts"] == "0":
            assert time.monotonic() < deadline, self.cluster.job(self.job)
            time.sleep(0.2)


def requeued(trial: Trial) -> None:
    """The job is requeued by hand."""
    trial.cluster.slurm("scontrol", "requeue", trial.job)


def preempted(trial: Trial) -> None:
    """A job in a higher partition takes both hosts for a few seconds."""
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 3"]
    taken = trial.cluster.sbatch(*urgent)
    trial.cluster.wait_for(taken, "COMPLETED")
    trial.wait_for_restart()


def out_of_time(trial: Trial) -> None:
    """The job's time limit comes near; the next start has all the time it needs."""
    trial.cluster.slurm("scontrol", "update", f"JobId={trial.job}", "TimeLimit=1")
    trial.wait_for_restart()
    trial.cluster.slurm("scontrol", "update", f"JobId={trial.job}", "TimeLimit=UNLIMITED")


def slurmd_killed(trial: Trial) -> None:
    """The second host's slurmd is killed, and started again once SLURM has given the host up."""
    trial.cluster.kill_slurmd("node1")
    trial.wait_for_restart()
    trial.cluster.start_slurmd("node1")


def cable_cut(trial: Trial) -> None:
    """The second host's cable is cut in a step, and put back once SLURM has given the host up."""
    trial.cluster.cut("node1")
    trial.wait_for_restart()
    trial.cluster.mend("node1")


def first_cable_cut(trial: Trial) -> None:
    """The same with the first host, on which the job's script and rank 0 run."""
    trial.cluster.cut("node0")
    trial.wait_for_restart()
    trial.cluster.mend("node0")


FAULTS: dict[str, Callable[[Trial], None]] = {
    "requeue": requeued,
    "preemption": preempted,
    "limit": out_of_time,
    "slurmd": slurmd_killed,
    "cut": cable_cut,
    "first-cut": first_cable_cut,
}


def try_fault(name: str, dataset: Dataset, expected: dict[str, bytes], folder: Path) -> bool:
    """Trains under a fault; prints a line, and on failure the job's log.

    Returns:
        Whether the job finished with the expected results.
    """
    began = time.monotonic()
    run, log = folder / "run", folder / "job.log"
    with Cluster.start(folder / "cluster") as cluster:
        job = cluster.sbatch(
            *("--nodes=2", f"--chdir={REPOSITORY}", f"--output={log}", "--signal=B:USR1@25", "slurm/train.sbatch"),
            *("--save-seconds", "15", *words(dataset, run), *LONG),
        )
        trial = Trial(cluster, run, log, job)
        trial.wait_for_second_epoch()
        FAULTS[name](trial)
        ended = cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", timeout_seconds=400)
    starts = [json.loads(line) for line in (run / "slurm.jsonl").read_text().splitlines()]
    differing = ["all"] if ended["JobState"] != "COMPLETED" else []
    if not differing:
        found = results(run)
        differing = [file for file in expected if expected[file] != found[file]]
    print(
        f"{name:12} {ended['JobState']:10} {ended['Restarts']:>8} restart(s) {time.monotonic() - began:6.0f} s  "
        f"{'differs: ' + ', '.join(differing) if differing else 'identical'}",
        flush=True,
    )
    for start in starts:
        print(f"    start {start['start']} on {start['host']}: {start['what']}", flush=True)
    if differing:
        print(log.read_text(), file=sys.stderr)
    return not differing


def main(names: list[str]) -> int:
    """Runs the named faults, or all; returns how many did not end as they should."""
    unknown = set(names) - set(FAULTS)
    missing = missing_for_a_cluster()
    if unknown or missing:
        print(missing or f"no fault {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="soak-slurm-") as temporary:
        folder = Path(temporary)
        write_chips(folder / "chips", 120, "jpg", seed=5, size=32, workers=1)
        images, labels = folder / "chips" / "train-jpg", folder / "chips" / "train.csv"
        build(BuildOptions(images, labels, folder / "dataset", PLANET, shard_bytes=64 * 1024))
        dataset = Dataset(folder / "dataset")
        straight = folder / "straight"
        done = launch("planet_dist/train.py", *words(dataset, straight), *LONG)
        assert done.returncode == 0, done.stderr
        expected = results(straight)
        chosen = names or list(FAULTS)
        return sum(not try_fault(name, dataset, expected, folder / name) for name in chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
