"""Samples of a stream in its order, read ahead by threads, and worked on in worker processes.

A worker is a function from bytes to a result and knows nothing of the stream, so that neither their number nor the
death of one changes what comes out. The position counts what was handed out; what is underway is simply read again.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils.worker import WorkerInfo

from data.lanes import Ref
from data.reader import Raw, Reader
from data.sample import DataError
from data.source import Source, is_remote
from data.stream import Stream
from data.threads import Threads
from data.transport import pack, unpack

GROUP = 4  # samples that are read together
MOST = 32  # samples that a worker is handed together at most, and not more groups than reach so many bytes:
ENOUGH = 2**18
TASKS = 2  # groups that each worker has before it or done
READERS = 8  # threads
DEATHS = 20  # of workers, after which the machine is to blame and no sample
T = TypeVar("T", covariant=True)
log = logging.getLogger(__name__)


class Work(Protocol[T]):
    """What is done with each sample; it must be picklable."""

    def __call__(self, raw: Raw) -> T: ...

    def lost(self, raw: Raw, why: str) -> T:
        """The result for a sample that could not be worked on."""


class Loader(Generic[T]):
    """An endless iterator of (draw, result)."""

    def __init__(self, stream: Stream, work: Work[T], workers: int) -> None:
        self.stream, self.work, self.workers = stream, work, workers
        self.position = stream.position.copy()  # of what was handed out
        self._reader = Reader(stream.sets, stream.source, stream.limits.sample_bytes)
        self._local = not any(is_remote(one.folder) for one in stream.sets)
        self._ready: deque[tuple[Ref, T]] = deque()
        self._underway: deque[tuple[Ref, Raw]] = deque()
        self._results: Iterator[Any] | None = None
        self._failure: Exception | None = None  # of the reading: raised when the draws before it were handed out
        self._marks = torch.zeros(max(1, workers), 2, dtype=torch.int64).share_memory_()  # pid; draw in work, from 1
        self._done = 0  # draws that came back from workers since these were started
        self._lifeline: Connection | None = None  # workers end when it is closed, also by the end of this process
        self._fallen = 0  # workers that died
        self._deaths: Counter[tuple[int, int, int]] = Counter()  # by set, shard and sample
        self._end = weakref.finalize(self, _end, self._marks, stream.source)  # also at the interpreter's exit

    def __iter__(self) -> "Loader[T]":
        return self

    def __next__(self) -> tuple[Ref, T]:
        """The next draw. DataError where the source ends or workers keep dying; a worker's own error as it is."""
        while not self._ready:
            try:
                self._ready.extend(self._results_of_workers() if self.workers else [self._own_result()])
            except BaseException:
                self.stop()  # the next call begins again behind what was handed out
                raise
        ref, result = self._ready.popleft()
        self.position.advance(ref)
        return ref, result

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Go on from the states of all ranks."""
        self.stop()
        self.stream.restore(states)
        self.position = self.stream.position.copy()

    def stop(self) -> None:
        """End the workers. The loader can go on afterwards."""
        _kill(self._marks)  # they hold nothing that could be lost
        self._results = self._failure = None
        self._ready.clear()
        self._underway.clear()

    def close(self) -> None:
        """End the workers and whatever is being read from afar, for good."""
        self.stop()
        self.stream.source.close()

    def _own_result(self) -> tuple[Ref, T]:
        if self._results is None:
            self.stream.position = self.position.copy()
            self._results = (self._now if self._local else self._ahead)()
        (ref, raw), *_ = next(self._results)
        return ref, self.work(raw)

    def _results_of_workers(self) -> Iterable[tuple[Ref, T]]:
        if self._results is None:
            self._start()
        try:
            results = unpack(next(self._results))  # type: ignore[arg-type]
        except StopIteration:
            assert self._failure is not None, "a stream has no end"
            raise self._failure from None
        except RuntimeError:
            if not self._bury():
                raise  # not a death, but an error in the work
            return []
        self._done += len(results)
        return [(self._underway.popleft()[0], result) for result in results]

    def _start(self) -> None:
        """Start workers, which begin with the first draw that was not handed out."""
        self.stream.position, self._done = self.position.copy(), 0
        self._marks.zero_()
        lost = {place for place, deaths in self._deaths.items() if deaths > 1}
        multiprocessing.set_forkserver_preload(["data.forkserver"])
        lifeline, self._lifeline = multiprocessing.Pipe(duplex=False)
        # A server is forked from and no rank, which has threads and perhaps a GPU.
        loader = DataLoader(
            _Tasks(self.work, self._marks, lifeline),
            batch_sampler=self._tasks(lost),
            num_workers=self.workers,
            prefetch_factor=TASKS,
            collate_fn=pack,
            multiprocessing_context="forkserver",
            worker_init_fn=_init_worker,
        )
        self._results = iter(loader)

    def _tasks(self, lost: set[tuple[int, int, int]]) -> Iterator[list[tuple[int, Raw, bool]]]:
        """(running number from 1, bytes, whether it is worked on) of groups of draws."""
        issued = 0
        try:
            for group in _merged(self._ahead()):
                self._underway.extend(group)
                yield [(issued + n + 1, raw, ref.place not in lost) for n, (ref, raw) in enumerate(group)]
                issued += len(group)
        except Exception as error:  # in the midst of torch's DataLoader, where it would leave queues half made
            self._failure = error

    def _now(self) -> Iterator[list[tuple[Ref, Raw]]]:
        """Draws read when they are asked for."""
        for ref in self.stream:
            yield [(ref, self._reader.later(ref)())]

    def _ahead(self) -> Iterator[list[tuple[Ref, Raw]]]:
        """Groups of draws, the next ones read meanwhile."""
        size = GROUP if self.workers else 1
        pool = Threads(READERS, "reader")
        groups: deque[tuple[list[Ref], Future[list[Raw]]]] = deque()
        try:
            while True:
                while len(groups) < 2 * READERS:
                    refs = [next(self.stream) for _ in range(size)]
                    groups.append((refs, pool.submit(partial(_read, [self._reader.later(ref) for ref in refs]))))
                refs, future = groups.popleft()
                yield list(zip(refs, future.result(), strict=True))
        finally:
            pool.close()

    def _bury(self) -> bool:
        """After an error: whether workers died. Says at which samples, and starts others."""
        numbers = [int(number) for pid, number in self._marks.tolist() if pid and not _alive(pid)]
        if not numbers:
            return False
        self._fallen += len(numbers)
        for number in numbers:
            place = "between two samples"
            if number:
                ref, raw = self._underway[number - self._done - 1]
                self._deaths[ref.place] += 1
                place = f"at {raw.place}"
            if self._fallen > DEATHS:
                mend = "see the system's log for memory or a full /dev/shm, lower data.workers"
                raise DataError(f"workers died {self._fallen} times, the last {place}; {mend}")
            log.warning("data: a worker died %s; what was underway is done again", place)
        self.stop()
        return True


class _Tasks(Dataset):
    """The work, as torch's DataLoader asks for it."""

    def __init__(self, work: Work[Any], marks: Tensor, lifeline: Connection) -> None:
        self.work, self.marks, self.lifeline = work, marks, lifeline

    def __getitems__(self, tasks: list[tuple[int, Raw, bool]]) -> list[Any]:
        mark = self.marks[_worker().id]
        results = []
        for number, raw, sound in tasks:
            mark[1] = number
            try:
                results.append(self.work(raw) if sound else self.work.lost(raw, "workers died at it twice"))
            except Exception as error:
                error.add_note(f"at {raw.place}")
                raise
            mark[1] = 0
        return results


def _merged(groups: Iterable[list[tuple[Ref, Raw]]]) -> Iterator[list[tuple[Ref, Raw]]]:
    """Small samples in larger groups: to hand one over costs as much as to decode a thumbnail."""
    held: list[tuple[Ref, Raw]] = []
    for group in groups:
        held += group
        if len(held) >= MOST or sum(len(raw.content) for _, raw in held) >= ENOUGH:
            yield held
            held = []


def _read(group: list[Callable[[], Raw]]) -> list[Raw]:
    return [read() for read in group]


def _init_worker(number: int) -> None:
    """End with the rank, and not by signals that are meant for it."""
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)
    tasks = _worker().dataset
    assert isinstance(tasks, _Tasks)
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


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _end(marks: Tensor, source: Source) -> None:
    _kill(marks)
    source.close()


def _kill(marks: Tensor) -> None:
    for pid in marks[:, 0].tolist():
        if pid and _alive(pid):
            os.kill(pid, signal.SIGKILL)
    marks.zero_()
