"""A worker process: what it does with the tasks it is handed, and when it ends."""

import contextlib
import os
import signal
import socket
import threading
from typing import Any, Protocol, TypeVar

from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torch.utils.data._utils.worker import WorkerInfo

from data.reader import Raw
from data.transport import Channel

T_co = TypeVar("T_co", covariant=True)
PATIENCE = 2.0  # seconds
MAPPED = 31 * 2**20  # bytes; glibc learns from what is below 32 MiB


class Work(Protocol[T_co]):
    """What is done with each sample; it must be picklable."""

    def __call__(self, raw: Raw) -> T_co: ...

    def lost(self, raw: Raw, why: str) -> T_co:
        """The result for a sample that could not be worked on."""


class Tasks(Dataset):
    """The work, as torch's DataLoader asks for it."""

    def __init__(self, work: Work[Any], marks: Tensor, channels: list[Channel]) -> None:
        self.work, self.marks, self.channels = work, marks, channels

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


def pack(results: list[Any]) -> tuple[int, Any]:
    """(worker, results as its channel takes them)."""
    number, tasks = _worker().id, _worker().dataset
    assert isinstance(tasks, Tasks)
    return number, tasks.channels[number].pack(results)


def ignore_signals() -> None:
    """Of those that end a run gently: the rank decides when it needs no more samples."""
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(one, signal.SIG_IGN)


def keep_memory() -> None:
    """Have pictures put where others were, and no new pages mapped for each, which takes a fifth of decoding.

    glibc maps what is larger than the largest piece that was mapped and freed so far (mallopt(3), M_MMAP_THRESHOLD).
    """
    bytearray(MAPPED)


def init_worker(number: int) -> None:
    """In a new worker: end with the rank, and not by signals that are meant for it."""
    ignore_signals()
    keep_memory()
    tasks = _worker().dataset
    assert isinstance(tasks, Tasks)
    threading.Thread(target=_end_with, args=(tasks.channels[number].line,), daemon=True).start()
    tasks.marks[number, 0] = os.getpid()


def _end_with(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.recv(1)  # nothing is ever sent this way
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
