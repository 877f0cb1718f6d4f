"""A Slurm of two nodes on this machine, from installed packages, in a folder of its own: munged, slurmctld, two slurmd.

Needs root: slurmd starts what it is given as the user who submitted it. Nothing outside its folder is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")
PATIENCE_SECONDS = 300  # with what hangs

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
KillWait=20
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=2000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=2000
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def obstacle() -> str | None:
    """Say why there can be no Slurm here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in PROGRAMS if _program(name) is None]
    if missing:
        return f"not installed: {' '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)"
    return None


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def wait_until(is_true: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Look until something is true; AssertionError that names it after so many seconds."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.1)


class Slurm:
    """The commands of a running cluster."""

    def __init__(self, folder: Path) -> None:
        self._environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def __call__(self, *command: str, environment: dict[str, str] | None = None) -> str:
        """Run a command of Slurm and give what it says."""
        result = subprocess.run(
            command,
            env=(environment or dict(os.environ)) | self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def state(self, job: str) -> str:
        """Give the state of a job: PENDING, RUNNING, COMPLETING, COMPLETED, …"""
        shown = self("scontrol", "show", "job", job)
        return shown.split("JobState=")[1].split()[0]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [item.getsockname()[1] for item in sockets]


@contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """Start the cluster, give its commands, and end it with everything that runs in it."""
    controller, first, second = _free_ports(3)
    host = socket.gethostname().partition(".")[0]
    (folder / "state").mkdir()
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o400)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            folder=folder, host=host, controller=controller, first=first, second=second
        )
    )
    names = ("socket", "pid", "log", "seed")
    munge = {"pid": "--pid-file", "log": "--log-file", "seed": "--seed-file", "socket": "--socket"}
    daemons = {
        "munged": [
            *("--foreground", "--force", "--key-file", f"{folder}/key"),
            *(f"{munge[name]}={folder}/munge.{name}" for name in names),
        ],
        "slurmctld": ["-D"],
        "slurmd n1": ["-D", "-N", "n1"],
        "slurmd n2": ["-D", "-N", "n2"],
    }
    environment = dict(os.environ) | {"SLURM_CONF": str(folder / "slurm.conf")}
    processes: list[subprocess.Popen[bytes]] = []
    slurm = Slurm(folder)
    try:
        for name, options in daemons.items():
            program = _program(name.split()[0])
            assert program is not None
            with (folder / f"{name}.out").open("wb") as output:
                processes.append(
                    subprocess.Popen(
                        [program, *options], env=environment, stdout=output, stderr=output
                    )
                )
            if name == "munged":
                wait_until((folder / "munge.socket").exists, "munged")
        wait_until(lambda: slurm("sinfo", "-h", "-o", "%T %D") == "idle 2\n", "two idle nodes")
        yield slurm
    finally:
        _end(slurm, processes)


def _end(slurm: Slurm, processes: list[subprocess.Popen[bytes]]) -> None:
    """Cancel what runs, then end the daemons, those that serve others last."""
    try:
        slurm("scancel", "--user", "root")
        wait_until(lambda: slurm("squeue", "-h") == "", "all jobs ended", seconds=40)
    except (AssertionError, subprocess.TimeoutExpired):
        pass  # it never came up, or it lost a node: what it left is ended with the daemons
    for process in reversed(processes):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
