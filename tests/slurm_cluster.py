"""A real SLURM cluster on one Linux machine: each host has its own network, host name, mounts and processes.

    with Cluster.start(folder, hosts=2) as cluster:
        job = cluster.sbatch("--nodes", "2", "job.sbatch")
        cluster.slurm("scontrol", "requeue", job)
        cluster.cut("node1")

The hosts are sets of namespaces joined by a bridge in a further one, which is the machine that users log in to:
slurmctld and munged run there, and so do the commands. They share the file system, as a cluster shares its project
folder. Nothing is changed outside of them, and all of it ends with the process that started it: each set has an
init process of its own that dies with that process, and everything in the set with the init.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

PACKAGES = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "munged": "munge", "ip": "iproute2"}
CORES_PER_HOST = 4  # what SLURM believes; the hosts share the machine's

_CONFIGURATION = """\
ClusterName=hosts
SlurmctldHost=login(10.77.0.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={cred_expire_seconds}
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MpiDefault=none
JobRequeue=1
KillWait=5
SlurmdTimeout=15
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=5 OverTimeLimit=0
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""
# As a host's init it takes in the processes whose parents have died, which `sleep` alone would leave as zombies.
_INIT = """
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/nsswitch.conf" /etc/nsswitch.conf
while :; do sleep 3600 & wait $!; done
"""


def missing_for_a_cluster() -> str:
    """Why no cluster can be started on this machine, or an empty string."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a SLURM cluster of network namespaces needs Linux and root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = sorted({package for name, package in PACKAGES.items() if shutil.which(name, path=path) is None})
    if missing:
        return f"SLURM is not installed: apt-get install -y {' '.join(missing)}"
    tried = subprocess.run(["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "true"], check=False)
    return "" if tried.returncode == 0 else "this machine does not let root make network namespaces"


class Host:
    """A set of namespaces that lives as long as this process, or until `stop`.

    Args:
        names: the folder with the files `hosts` and `nsswitch.conf`, which this host sees in /etc.
    """

    def __init__(self, name: str, names: Path) -> None:
        self.name = name
        spaces = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._unshare = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, "bash", "-c", _INIT, "init", name, str(names)]
        )
        deadline = time.monotonic() + 10
        while not (children := psutil.Process(self._unshare.pid).children()):
            assert time.monotonic() < deadline and self._unshare.poll() is None, f"{name} did not start"
            time.sleep(0.01)
        self.pid = children[0].pid
        while not Path(f"/proc/{self.pid}/cmdline").read_bytes().startswith(b"bash"):
            assert time.monotonic() < deadline, f"{name} did not start"
            time.sleep(0.01)
        self.run("ip", "link", "set", "lo", "up")

    def inside(self, *words: str) -> list[str]:
        """The words that run `words` on this host, in the current folder."""
        spaces = ["--net", "--mount", "--uts", "--ipc", "--pid"]
        return ["nsenter", f"--target={self.pid}", *spaces, f"--wd={Path.cwd()}", "--", *words]

    def run(self, *words: str) -> str:
        """What a command on this host prints; a failure is an AssertionError that shows its errors."""
        done = subprocess.run(self.inside(*words), capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{self.name}: {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def stop(self) -> None:
        """Ends all that runs on this host; its network goes with it."""
        self._unshare.kill()
        self._unshare.wait()


class Cluster:
    """The hosts, and SLURM's commands as on the machine that users log in to."""

    def __init__(self, folder: Path, hosts: int, cred_expire_seconds: int) -> None:
        self.folder = folder
        for name in ("state", "munge"):
            (folder / name).mkdir(parents=True)
        names = [f"node{number}" for number in range(hosts)]
        known = ["127.0.0.1 localhost", "10.77.0.254 login"]
        known += [f"10.77.0.{number + 1} {name}" for number, name in enumerate(names)]
        (folder / "hosts").write_text("\n".join(known) + "\n")
        # No host has a way out, and asking a name server that nobody reaches takes seconds each time.
        (folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        nodes = [
            f"NodeName={name} NodeAddr=10.77.0.{number + 1} CPUs={CORES_PER_HOST} RealMemory=1024"
            for number, name in enumerate(names)
        ]
        self.configuration = folder / "slurm.conf"
        self.configuration.write_text(
            _CONFIGURATION.format(folder=folder, nodes="\n".join(nodes), cred_expire_seconds=cred_expire_seconds)
        )
        self.login = Host("login", folder)
        self.hosts = {name: Host(name, folder) for name in names}
        for number, host in enumerate(self.hosts.values()):
            self._connect(host, number)

    @staticmethod
    def start(folder: Path, hosts: int = 2, *, cred_expire_seconds: int = 5) -> Cluster:
        """A cluster whose hosts all wait for jobs.

        Args:
            folder: for its state and logs; made here.
            cred_expire_seconds: how long a requeued job waits for its credential to run out; a real cluster's 120.
        """
        cluster = Cluster(folder, hosts, cred_expire_seconds)
        try:
            cluster._start_daemons()
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the hosts and all that runs on them."""
        for host in [*self.hosts.values(), self.login]:
            host.stop()

    def slurm(self, *words: str) -> str:
        """What a SLURM command prints on the login host."""
        return self.login.run("env", f"SLURM_CONF={self.configuration}", *words)

    def sbatch(self, *words: str) -> str:
        """Submits a script; returns the job's number."""
        return self.slurm("sbatch", "--parsable", *words).strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, Reason and more."""
        shown = self.slurm("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def wait_for(self, number: str, *states: str, timeout_seconds: float = 120) -> dict[str, str]:
        """Waits until a job is in one of the states; returns what is said of it then."""
        deadline = time.monotonic() + timeout_seconds
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < deadline, f"job {number} is {job['JobState']} ({job['Reason']}), not {states}"
            time.sleep(0.2)
        return job

    def cut(self, name: str) -> None:
        """Takes a host's network cable out."""
        self.login.run("ip", "link", "set", f"to-{name}", "down")

    def mend(self, name: str) -> None:
        """Puts a host's network cable back."""
        self.login.run("ip", "link", "set", f"to-{name}", "up")

    def kill_slurmd(self, name: str) -> None:
        """Ends a host's slurmd as a crash does; the processes of its jobs live on."""
        self.hosts[name].run("kill", "-9", (self.folder / f"slurmd-{name}.pid").read_text().strip())

    def start_slurmd(self, name: str) -> None:
        """Starts a host's slurmd."""
        self.hosts[name].run("env", f"SLURM_CONF={self.configuration}", "slurmd", "-N", name)

    def _connect(self, host: Host, number: int) -> None:
        if number == 0:
            self.login.run("ip", "link", "add", "bridge", "type", "bridge")
            self.login.run("ip", "addr", "add", "10.77.0.254/24", "dev", "bridge")
            self.login.run("ip", "link", "set", "bridge", "up")
        cable = f"to-{host.name}"
        # Made here and moved, as the login host's process ids mean nothing to the host's network.
        far = f"v{secrets.token_hex(5)}"
        near = f"w{far[1:]}"
        subprocess.run(["ip", "link", "add", near, "type", "veth", "peer", "name", far], check=True)
        for end, owner, name in ((near, self.login, cable), (far, host, "eth0")):
            subprocess.run(["ip", "link", "set", end, "netns", str(owner.pid)], check=True)
            owner.run("ip", "link", "set", end, "name", name)
        self.login.run("ip", "link", "set", cable, "master", "bridge", "up")
        host.run("ip", "addr", "add", f"10.77.0.{number + 1}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "route", "add", "default", "via", "10.77.0.254")

    def _start_daemons(self) -> None:
        munge = self.folder / "munge"
        key = munge / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        files = {"key-file": key, "pid-file": munge / "pid", "log-file": munge / "log", "seed-file": munge / "seed"}
        self.login.run(
            "munged", "--force", f"--socket={munge / 'socket'}", *(f"--{name}={path}" for name, path in files.items())
        )
        self.login.run("env", f"SLURM_CONF={self.configuration}", "slurmctld")
        for name in self.hosts:
            self.start_slurmd(name)
        deadline = time.monotonic() + 30
        while self._idle_hosts() != len(self.hosts):
            assert time.monotonic() < deadline, f"the hosts did not come up; see the logs in {self.folder}"
            time.sleep(0.1)

    def _idle_hosts(self) -> int:
        done = subprocess.run(
            self.login.inside(
                "env", f"SLURM_CONF={self.configuration}", "sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D"
            ),
            capture_output=True,
            text=True,
            check=False,
        )
        return int(done.stdout.strip() or 0) if done.returncode == 0 else 0
