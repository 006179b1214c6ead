"""A worker process: what it does with the tasks it is handed, and when it ends."""

import contextlib
import os
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torch.utils.data._utils.worker import WorkerInfo

from data.reader import Raw

T_co = TypeVar("T_co", covariant=True)
PATIENCE = 2.0  # seconds


class Work(Protocol[T_co]):
    """What is done with each sample; it must be picklable."""

    def __call__(self, raw: Raw) -> T_co: ...

    def lost(self, raw: Raw, why: str) -> T_co:
        """The result for a sample that could not be worked on."""


class Tasks(Dataset):
    """The work, as torch's DataLoader asks for it."""

    def __init__(self, work: Work[Any], marks: Tensor, lifeline: Connection) -> None:
        self.work, self.marks, self.lifeline = work, marks, lifeline

    def __getitems__(self, tasks: list[tuple[int, Raw, bool]]) -> list[Any]:
        mark = self.marks[_worker().id]
        results: list[Any] = []
        for number, raw, sound in tasks:
            mark[1] = number
            try:
                results.append(self.work(raw) if sound else self.work.lost(raw, "workers died at it twice"))
            except Exception as error:
                error.add_note(f"at {raw.place}")
                raise
            mark[1] = 0
        return results


def ignore_signals() -> None:
    """Of those that end a run gently: the rank decides when it needs no more samples."""
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(one, signal.SIG_IGN)


def init_worker(number: int) -> None:
    """End with the rank, and with nothing else."""
    ignore_signals()
    tasks = _worker().dataset
    assert isinstance(tasks, Tasks)
    threading.Thread(target=_end_with, args=(tasks.lifeline,), daemon=True).start()
    tasks.marks[number, 0] = os.getpid()


def _end_with(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()  # nothing is ever sent
    os._exit(0)


def _worker() -> WorkerInfo:
    found = get_worker_info()
    assert found is not None, "not in a worker process"
    return found


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill(marks: Tensor) -> None:
    """End the workers whose marks these are, at once."""
    for pid in marks[:, 0].tolist():
        if pid and alive(pid):
            os.kill(pid, signal.SIGKILL)
    marks.zero_()


def end(results: Any, marks: Tensor) -> None:
    """End the workers behind an iterator of torch's DataLoader, gently first.

    One that is killed may hold a lock which the iterator then waits for, without end: so that is done by a thread,
    which is left behind if need be.
    """
    shutdown = threading.Thread(target=results._shutdown_workers, daemon=True)  # what its own `__del__` does
    shutdown.start()
    shutdown.join(PATIENCE)
    kill(marks)
    shutdown.join(PATIENCE)
