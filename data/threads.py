"""Threads for reading ahead. No exit of the process waits for them, as it would for those of concurrent.futures."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")
Task = tuple[Future[Any], Callable[[], Any]]


class Threads:
    """Takes actions, and does them in the order they came."""

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        for number in range(count):
            Thread(target=_work, args=(self._tasks,), name=f"{name}_{number}", daemon=True).start()

    def submit(self, action: Callable[[], T]) -> Future[T]:
        """What the action is going to return, or to raise."""
        future: Future[T] = Future()
        self._tasks.put((future, action))
        return future

    def close(self) -> None:
        """Give up what has not begun. What has begun ends by itself, and the threads with it."""
        with contextlib.suppress(Empty):
            while True:
                self._tasks.get_nowait()
        for _ in range(self.count):
            self._tasks.put(None)


def _work(tasks: SimpleQueue[Task | None]) -> None:
    while task := tasks.get():
        future, action = task
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)
        del task, future, action  # or they would be held while this waits
