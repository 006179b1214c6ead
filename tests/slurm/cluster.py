"""A real Slurm with two nodes on this host: munged, slurmctld and two slurmd in a folder and on ports of their own."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from string import Template

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "setpriv")
NODES = ("n1", "n2")
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"  # a user's has no daemons
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}


def missing() -> str | None:
    """Why there can be no cluster here, or None."""
    absent = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    return f"needs {', '.join(absent)}: apt-get install slurm-wlm munge" if absent else None


class Cluster:
    """Its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = ("SLURM", "SBATCH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")  # Slurm and the scripts say these
        outside = {key: value for key, value in os.environ.items() if not key.startswith(own)}
        self.environment = outside | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def submit(self, folder: Path, *command: str, **environment: str) -> str:
        """The id of a job that a command, sbatch or a script which calls it, submits."""
        variables = self.environment | environment
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.split()[-1]

    def job(self, job: str) -> dict[str, str]:
        """What Slurm says of a job, by its own names."""
        words = self.ask("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def ended(self, job: str, seconds: float = 60) -> dict[str, str]:
        """The same, once the job has ended."""
        self.until(lambda: self.job(job)["JobState"] in ENDED, seconds, lambda: str(self.job(job)))
        return self.job(job)

    def idle(self) -> bool:
        """Whether all nodes are there and have nothing to do."""
        states = self.ask("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").split()
        return states == ["idle"] * len(NODES)

    def until(self, true: Callable[[], object], seconds: float, otherwise: Callable[[], str]) -> None:
        """Wait until something is true, or fail."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"not within {seconds} s: {otherwise()}"
            time.sleep(0.1)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start one in a folder; in the end stop it and its jobs.

    It shares nothing with another Slurm or munge of this host. Its daemons end when this process does, be it killed.
    """
    ports = dict(zip(("control_port", "first_port", "second_port"), map(str, _free_ports(3)), strict=True))
    host = {"host": socket.gethostname().split(".")[0], "user": getpass.getuser(), "folder": str(folder)}
    template = Template(Path(__file__).with_name("slurm.conf").read_text())
    (folder / "slurm.conf").write_text(template.substitute(host | ports))
    for name in ("state", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "gres.conf").write_text(f"NodeName={','.join(NODES)} Name=gpu File=/dev/null,/dev/zero\n")
    key, socket_path = folder / "munge.key", folder / "munge.socket"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    files = {"key-file": key, "socket": socket_path} | {
        f"{kind}-file": folder / f"munge.{kind}" for kind in ("pid", "log", "seed")
    }
    found = Cluster(folder)
    with ExitStack() as daemons:
        daemons.enter_context(
            _daemon(found, "munged", "--foreground", "--force", *(f"--{k}={v}" for k, v in files.items()))
        )
        found.until(socket_path.exists, 20, lambda: _logs(folder))
        daemons.enter_context(_daemon(found, "slurmctld", "-D"))
        for node in NODES:
            daemons.enter_context(_daemon(found, "slurmd", "-D", "-N", node))
        ping = ("scontrol", "ping")
        found.until(lambda: not subprocess.call(ping, env=found.environment, stdout=subprocess.DEVNULL), 30, str)
        found.until(found.idle, 30, lambda: _logs(folder))
        try:
            yield found
        finally:
            found.ask("scancel", "--user", getpass.getuser())
            found.until(found.idle, 60, lambda: found.ask("squeue"))


@contextmanager
def _daemon(cluster: Cluster, *command: str) -> Iterator[None]:
    """Run a daemon in the foreground of its own; it is killed when this process is."""
    with (cluster.folder / f"{command[0]}.out").open("a") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command], env=cluster.environment, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in bound]


def _logs(folder: Path) -> str:
    return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(folder.glob("*.out")))
