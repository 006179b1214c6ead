"""Samples of a stream in its order, read ahead, and worked on in worker processes.

A worker is a function from bytes to a result and knows nothing of the stream, so that neither their number nor the
death of one changes what comes out. The position counts what was handed out; what is underway is simply read again.
"""

import logging
import multiprocessing
import sys
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data.lanes import Ref
from data.reader import Raw, Reader
from data.sample import DataError
from data.source import Source, is_remote
from data.stream import Stream
from data.threads import Threads
from data.transport import Channel
from data.worker import Tasks, Work, alive, end, init_worker, keep_memory, kill, pack

GROUP = 4  # draws that a thread reads, one after the other
MOST = 32  # samples that a worker is handed together at most, and not more groups than reach so many bytes:
ENOUGH = 2**18
TASKS = 2  # of what it is handed together that each worker has before it or done
READERS = 8  # threads
DEATHS = 20  # of workers, after which the machine is to blame and no sample
Task = tuple[Ref, Raw]
T = TypeVar("T", covariant=True)
log = logging.getLogger(__name__)


class Loader(Generic[T]):
    """An endless iterator of (draw, result)."""

    def __init__(self, stream: Stream, work: Work[T], workers: int) -> None:
        self.stream, self.work, self.workers = stream, work, workers
        self.position = stream.position.copy()  # of what was handed out
        self._reader = Reader(stream.sets, stream.source, stream.limits.sample_bytes)
        self._local = not any(is_remote(one.folder) for one in stream.sets)
        self._ready: deque[tuple[Ref, T]] = deque()
        self._underway: deque[Task] = deque()
        self._results: Iterator[Any] | None = None
        self._failure: Exception | None = None  # of the reading: raised when what workers have before it was handed out
        self._marks = torch.zeros(max(1, workers), 2, dtype=torch.int64).share_memory_()  # pid; draw in work, from 1
        self._done = 0  # draws that came back from workers since these were started
        self._channels: list[Channel] = []  # from workers, which end with theirs, also by the end of this process
        self._fallen = 0  # workers that died
        self._deaths: Counter[tuple[int, int, int]] = Counter()  # by set, shard and sample
        keep_memory()
        weakref.finalize(self, _abandon, self._marks, self._channels, stream.source)  # also at the interpreter's exit

    def __iter__(self) -> "Loader[T]":
        return self

    def __next__(self) -> tuple[Ref, T]:
        """The next draw.

        DataError where the source ends or workers keep dying; an error in the work as it is, or as torch tells it.
        """
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
        if self.workers and self._results is not None:
            end(self._results, self._marks)
        _hang_up(self._channels)
        self._results = self._failure = None
        self._ready.clear()
        self._underway.clear()

    def close(self) -> None:
        """End the workers and whatever is being read from afar, for good."""
        self.stop()
        self.stream.source.close()

    def __del__(self, exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        if not exiting():  # then no thread can be started, and the finalizer has killed them
            self.stop()

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
            number, packed = next(self._results)  # type: ignore[arg-type]
            results = self._channels[number].unpack(packed)
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
        self._channels.extend(Channel() for _ in range(self.workers))
        # A server is forked from and no rank, which has threads and perhaps a GPU.
        loader = DataLoader(
            Tasks(self.work, self._marks, self._channels),
            batch_sampler=self._tasks(lost),
            num_workers=self.workers,
            prefetch_factor=TASKS,
            collate_fn=pack,
            multiprocessing_context="forkserver",
            worker_init_fn=init_worker,
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
        numbers = [int(number) for pid, number in self._marks.tolist() if pid and not alive(pid)]
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
                mend = "see the system's log for memory, lower data.workers"
                raise DataError(f"workers died {self._fallen} times, the last {place}; {mend}")
            log.warning("data: a worker died %s; what was underway is done again", place)
        self.stop()
        return True


def _merged(groups: Iterable[list[Task]]) -> Iterator[list[Task]]:
    """Small samples in larger groups: to hand one over costs as much as to decode a thumbnail."""
    held: list[Task] = []
    size = 0
    for group in groups:
        held += group
        size += sum(len(raw.content) for _, raw in group)
        if len(held) >= MOST or size >= ENOUGH:
            yield held
            held, size = [], 0


def _read(group: list[Callable[[], Raw]]) -> list[Raw]:
    return [read() for read in group]


def _abandon(marks: Tensor, channels: list[Channel], source: Source) -> None:
    kill(marks)
    _hang_up(channels)  # for a worker that has not begun, and left no pid: the interpreter would wait for its end
    source.close()


def _hang_up(channels: list[Channel]) -> None:
    for channel in channels:
        channel.close()
    channels.clear()
