"""A process that has imported everything and forks ranks of it, so that a run starts in a second and not in twenty.

python -m tests.distributed.zygote: takes one JSON line {arguments, ranks, clock, port, log} per run on its input,
answers with the ranks' process ids, and with their exit codes (negative: killed by that signal) when all have ended.
As launchers do, it kills the ranks that are left some time after one has failed.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
SHARED_MEMORY = Path("/dev/shm")
PATIENCE = 30.0  # seconds, as DeepSpeed's launcher has


class Attempt:
    """Ranks of a run on their way."""

    def __init__(self, zygote: "Zygote", pids: list[int], log: Path) -> None:
        self.zygote, self.pids, self.log = zygote, pids, log

    def wait(self, seconds: float) -> list[int]:
        """The ranks' exit codes. Fails when they are not there in time."""
        codes: list[int] = self.zygote.answer(seconds, self.log)
        return codes

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")


class Zygote:
    """The other side of the process."""

    def __init__(self) -> None:
        self.runs = 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.zygote"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, folder: Path, ranks: int, *arguments: object, clock: float = 0) -> Attempt:
        """Ranks with the arguments of trainer/main.py, their clock set so many seconds off; they print into a file."""
        self.runs += 1
        log = folder / f"log_{self.runs}.txt"
        order = {"arguments": list(map(str, arguments)), "ranks": ranks, "log": str(log), "clock": clock}
        order["port"] = free_port()
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        return Attempt(self, self.answer(60, log), log)

    def answer(self, seconds: float, log: Path) -> Any:
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        assert ready, f"nothing for {seconds:.0f} s; {log.read_text(errors='replace')[-5000:] if log.exists() else ''}"
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    """One that nothing listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what imports print
    import mlflow  # noqa: F401

    import trainer.run  # noqa: F401

    while line := sys.stdin.readline():
        order = json.loads(line)
        pids = [_fork(order, rank, answers) for rank in range(order["ranks"])]
        answers.write(json.dumps(pids).encode() + b"\n")
        codes = _codes(pids)
        for left in SHARED_MEMORY.glob(f"deepspeed_*_{order['port']}_*"):
            left.unlink()  # 66 MiB a rank, which DeepSpeed leaves behind
        answers.write(json.dumps(codes).encode() + b"\n")


def _codes(pids: list[int]) -> list[int]:
    codes: dict[int, int] = {}
    deadline = None
    while len(codes) < len(pids):
        for pid in [pid for pid in pids if pid not in codes]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
                deadline = deadline or (time.monotonic() + PATIENCE if codes[pid] else None)
            elif deadline and time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def _fork(order: dict[str, Any], rank: int, answers: IO[bytes]) -> int:
    pid = os.fork()
    if pid:
        return pid
    answers.close()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(order["ranks"])}
    os.environ |= {"LOCAL_SIZE": str(order["ranks"]), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(order["port"])}
    real = time.time
    time.time = lambda: real() + order["clock"]
    sys.argv = ["trainer/main.py", *order["arguments"]]
    from trainer.main import main as train

    train()
    os._exit(0)


if __name__ == "__main__":
    main()
