"""The same work on many things, here or in processes: results in order, few things at a time in memory."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from data.sample import UserError

AHEAD = 2  # batches per worker that are under way or wait for their turn

Thing = TypeVar("Thing")
Result = TypeVar("Result")


def spread(
    work: Callable[[Thing], Result], things: Iterable[Thing], workers: int, together: int = 1
) -> Generator[Result, None, None]:
    """work(thing) of every thing, in their order. With workers, `together` things go to one at a time."""
    if not workers:
        yield from map(work, things)
        return
    source = iter(things)
    waiting: deque[Future[list[Result]]] = deque()
    # No fork: this process may have threads, and files that a worker must not keep open.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver"), initializer=_prepare)
    try:
        while batch := list(itertools.islice(source, together)):
            waiting.append(pool.submit(_each, work, batch))
            if len(waiting) >= AHEAD * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a worker process died, perhaps for lack of memory; start again with fewer workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _each(work: Callable[[Thing], Result], things: list[Thing]) -> list[Result]:
    return [work(thing) for thing in things]


def _prepare() -> None:
    """A worker ends with the process that started it: when that one is killed nobody else tells it to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for that process
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
