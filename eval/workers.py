"""Processes that share the batches of an evaluation: each has the model on a device of its own and asks for the next.

A process that ends is not the end: another takes its place, and what it had in hand is run in halves, so that what
ended it is found; an item that ends a process by itself is recorded as such.
"""

import contextlib
import multiprocessing
import os
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from data.sample import UserError
from eval.answer import Answerer, Job
from eval.models import Model
from eval.predictions import Prediction
from eval.settings import Settings

DEATHS = 25  # in a row, at most: enough to find one item in the largest batch by halves
PATIENCE = 5  # seconds that a process has to end by itself
IDLE, MORE = "idle", "more"  # what a process asks: a batch when there is one, and another if there is one


class WorkerError(UserError):
    """A process that cannot begin, or cannot go on."""


class Workers:
    """Whoever answers plans on this machine: loads the model when there is something to do, and keeps it for the next.

    In this process where there is one device and no number of processes was asked for.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.answerer: Answerer | None = None
        self.pool: Pool | None = None

    def run(self, plan: list[list[Job]], todo: list[int]) -> Iterator[list[Prediction]]:
        """Predictions of the batches of a plan that are to do (by number), as they come."""
        batches = [plan[number] for number in todo]
        if not batches:
            return
        devices = torch.cuda.device_count()
        if self.settings.processes or devices > 1:
            count = min(self.settings.processes or devices, len(batches))
            self.pool = self.pool or Pool(self.model, self.settings, count)
            self.pool.grow(count)
            yield from self.pool.run(batches)
        else:
            self.answerer = self.answerer or Answerer(self.model, self.settings, _device(0))
            yield from self.answerer.stream(batches)

    def close(self) -> None:
        if self.pool:
            self.pool.close()


def _device(number: int) -> str:
    cards = torch.cuda.device_count()
    return f"cuda:{number % cards}" if cards else "cpu"


@dataclass(eq=False)
class _Worker:
    number: int
    process: Any
    connection: Connection
    given: list[list[Job]] = field(default_factory=list)  # batches it has not answered yet, in order
    ready: bool = False  # it has loaded the model


class Pool:
    """Processes that have loaded the model; hands out batches and takes predictions in."""

    def __init__(self, model: Model, settings: Settings, count: int) -> None:
        self.model, self.settings = model, settings
        self.threads = max(1, len(os.sched_getaffinity(0)) // count)
        self.deaths = 0  # of processes, since one has answered
        self.waiting: deque[list[Job]] = deque()
        self.suspects: set[str] = set()  # ids of jobs that were in hand when a process ended
        self.workers = [self._start(number) for number in range(count)]
        self.idle: list[_Worker] = []

    def _start(self, number: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, self.model, self.settings, _device(number), self.threads)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Worker(number, process, ours)

    def run(self, batches: Iterable[list[Job]]) -> Iterator[list[Prediction]]:
        """Predictions of all batches, as they come. WorkerError when no process can load the model."""
        self.waiting.extend(batches)
        self._wake()
        while self.waiting or any(worker.given for worker in self.workers):
            for worker in self._speaking():
                yield from self._hear(worker)
                self._wake()

    def grow(self, count: int) -> None:
        """To so many processes at least."""
        self.workers += [self._start(number) for number in range(len(self.workers), count)]

    def warm(self) -> None:
        """Wait until every process has loaded the model."""
        while len(self.idle) < len(self.workers):
            for worker in self._speaking():
                for _ in self._hear(worker):
                    pass

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.connection.close()  # it ends when it next asks or answers
        for worker in self.workers:
            worker.process.join(PATIENCE)
            worker.process.kill()
            worker.process.join()

    def _speaking(self) -> list[_Worker]:
        ready = wait([worker.connection for worker in self.workers])
        return [worker for worker in self.workers if worker.connection in ready]

    def _wake(self) -> None:
        while self.idle and self._give(self.idle[0]):
            self.idle.pop(0)

    def _hear(self, worker: _Worker) -> Iterator[list[Prediction]]:
        try:
            said = worker.connection.recv()
        except (EOFError, OSError):  # OSError: it ended in the middle of what it said
            yield from self._lose(worker)
            return
        if isinstance(said, UserError):
            raise said
        if isinstance(said, list):
            worker.given.pop(0)
            self.deaths = 0
            yield said
        elif said == IDLE:
            worker.ready = True
            self.idle.append(worker)
        elif not self._give(worker):
            with contextlib.suppress(ConnectionError):
                worker.connection.send(None)

    def _give(self, worker: _Worker) -> bool:
        """The next batch to a process. Whether there was one for it: suspects are run alone."""
        alone = worker.given and any(map(self._suspect, [*worker.given, *list(self.waiting)[:1]]))
        if alone or not self.waiting:
            return False
        worker.given.append(self.waiting.popleft())
        with contextlib.suppress(ConnectionError):  # it has ended, which is heard of next
            worker.connection.send(worker.given[-1])
        return True

    def _suspect(self, batch: list[Job]) -> bool:
        return any(job.id in self.suspects for job in batch)

    def _lose(self, worker: _Worker) -> Iterator[list[Prediction]]:
        """A process has ended, and another takes its place. What it had in hand goes on in halves, each alone."""
        worker.process.join()
        code = worker.process.exitcode
        why = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        self.deaths += 1
        if not worker.ready or self.deaths > DEATHS:
            when = "while it loaded the model" if not worker.ready else f"as {DEATHS} before it, and none answered"
            raise WorkerError(f"a process ended {why} {when}; lower --processes")
        worker.connection.close()
        self.idle = [other for other in self.idle if other is not worker]
        self.workers[self.workers.index(worker)] = self._start(worker.number)
        if [len(batch) for batch in worker.given] == [1]:
            job = worker.given[0][0]
            yield [Prediction(id=job.id, key=job.sample.key, failed=f"ended the process that ran it ({why})")]
            return
        for batch in reversed(worker.given):
            half = len(batch) // 2
            self.suspects |= {job.id for job in batch}
            self.waiting.extendleft([part for part in (batch[half:], batch[:half]) if part])


def _work(connection: Connection, model: Model, settings: Settings, device: str, threads: int) -> None:
    """One process: asks for batches until the program that started it is gone."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if device != "cpu":
        torch.cuda.set_device(device)  # where kernels run that do not look where their tensors are
    try:
        answerer = Answerer(model, settings, device)
        while True:
            connection.send(IDLE)
            for predictions in answerer.stream(_batches(connection)):
                connection.send(predictions)
    except (EOFError, ConnectionError):
        return
    except UserError as error:
        connection.send(error)
    except Exception as error:  # a fault of ours or of the machine, not of an item
        traceback.print_exc()
        connection.send(WorkerError(f"a process failed ({type(error).__name__}: {error}); its traceback is above"))


def _batches(connection: Connection) -> Iterator[list[Job]]:
    """A first one as soon as there is any, and more as long as there are some: one is prepared while another runs."""
    while batch := connection.recv():
        yield batch
        connection.send(MORE)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    wait([parent.sentinel])
    os._exit(1)
