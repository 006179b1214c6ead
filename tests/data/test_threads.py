"""Threads: what is asked is done in order, and whoever asked learns how it ended."""

import threading

import pytest

from data.threads import Threads


def test_results_and_errors_come_back() -> None:
    threads = Threads(3, "test")
    futures = [threads.submit(lambda n=n: 60 // n) for n in (1, 2, 0, 3)]
    assert [future.result(5) for future in futures if future is not futures[2]] == [60, 30, 20]
    with pytest.raises(ZeroDivisionError):
        futures[2].result(5)
    threads.close()


def test_closed_threads_end_after_what_they_have_begun() -> None:
    gate, begun, done = threading.Event(), threading.Event(), []
    threads = Threads(1, "closed")

    def wait() -> None:
        begun.set()
        gate.wait()

    first = threads.submit(wait)
    threads.submit(lambda: done.append(1))
    (thread,) = [one for one in threading.enumerate() if one.name == "closed_0"]
    assert begun.wait(5) and thread.daemon
    threads.close()
    gate.set()
    thread.join(5)
    assert first.done() and not thread.is_alive() and not done
