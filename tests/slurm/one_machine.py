"""A whole SLURM on this machine, of this user, for as long as a block runs: munged, slurmctld and one slurmd.

Nothing of it lies outside its folder, and it has ports of its own; a SLURM that is here already is not touched. The
node has two cores, and two terminals stand for GPUs, so that a task can be given one.
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scontrol", "scancel")
CORES = 2

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
JobRequeue=0
KillWait=10
SchedulerParameters=sched_interval=2,bf_interval=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} Gres=gpu:2
PartitionName=plain Nodes={host} Default=YES
PartitionName=other Nodes={host}
"""


def found(program: str) -> str | None:
    """Its path; the daemons are in folders that only root searches."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextlib.contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which SLURM's programs find it; its jobs, its daemons and their folder go with the block."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as daemons:
        folder, host, user = Path(name), socket.gethostname().partition(".")[0], getpass.getuser()
        folder.chmod(0o711)  # munged insists
        for part in ("state", "spool"):
            (folder / part).mkdir()
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        controller, daemon = free_ports(2)
        words = {"controller": controller, "daemon": daemon, "host": host, "user": user, "folder": folder}
        (folder / "slurm.conf").write_text(CONF.format(cores=CORES, **words))
        (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/tty[1-2]\n")
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

        def shown(*command: str) -> str:
            return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

        def start(*command: str) -> None:
            daemons.enter_context(running(command, folder / f"{command[0]}.log", environment))

        files = (("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("seed-file", "seed"))
        try:
            start("munged", "--foreground", *(f"--{what}={folder}/munge.{end}" for what, end in files))
            until((folder / "munge.socket").exists, 30)
            start("slurmctld", "-D")
            start("slurmd", "-D")
            until(lambda: shown("sinfo", "--noheader", "--format=%t") == "idle\n", 60)
        except TimeoutError:
            logs = "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in folder.glob("*.log"))
            raise RuntimeError(f"SLURM did not start\n{logs}") from None
        try:
            yield environment
        finally:
            shown("scancel", f"--user={user}")
            until(lambda: not shown("squeue", "--noheader"), 60)


@contextlib.contextmanager
def running(command: tuple[str, ...], log: Path, environment: dict) -> Iterator[None]:
    """A daemon in the foreground, until the block ends."""
    with log.open("wb") as out:
        program = [found(command[0]), *command[1:]]
        process = subprocess.Popen(program, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def until(holds, seconds: float) -> None:
    """Waits for it to hold; TimeoutError."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"not in {seconds} s")
        time.sleep(0.3)
