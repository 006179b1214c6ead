"""The loader: the same results in the same order for any number of workers, which may fail, die or be left behind."""

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from data import loader as loading
from data.loader import GROUP, MOST, TASKS, Loader
from data.sample import DataError
from data.stream import DataConfig, Stream
from data.worker import Work
from tests.data.work import Arrays, Dies, Fails, Names, Slow, write_numbered
from tests.processes import gone

ROOT = Path(__file__).parents[2]
SAMPLES = 50


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbered(tmp_path_factory.mktemp("numbered") / "set", SAMPLES, 7)


def loader_of(folder: Path, work: Work, workers: int, seed: int = 0) -> Loader:
    return Loader(Stream(DataConfig(train=folder, lanes=5, piece=3, shuffle=6), 0, 1, seed), work, workers)


def results(loader: Loader, count: int) -> list:
    return [result for _, result in itertools.islice(loader, count)]


def worker_pids(loader: Loader) -> list[int]:
    return [pid for pid in loader._marks[:, 0].tolist() if pid]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_neither_order_nor_results(folder: Path, workers: int) -> None:
    alone, helped = loader_of(folder, Names(), 0), loader_of(folder, Names(), workers)
    wanted = list(itertools.islice(alone, 3 * SAMPLES))
    assert list(itertools.islice(helped, 3 * SAMPLES)) == wanted
    assert Counter(result for _, result in wanted) == Counter((str(n), e) for n in range(SAMPLES) for e in range(3))
    assert helped.position == alone.position
    helped.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_arrays_come_whole(folder: Path, workers: int) -> None:
    """Also when results are kept while many others come, and when they are written to."""
    loader = loader_of(folder, Arrays(), workers)
    kept = results(loader, 2 * SAMPLES)
    for item in kept:
        key = item["key"]
        assert torch.equal(item["large"], torch.full((300, 70), float(key))) and item["small"].tolist() == [key]
        assert item["none"].shape == (0, 3) and np.array_equal(item["n"], np.arange(key))
        item["large"].add_(1)
        item["small"].add_(1)
    assert all((item["large"] == item["key"] + 1).all() for item in kept)
    loader.close()


def test_memory_that_is_used_again_holds_what_came_last(folder: Path) -> None:
    """Of some results a part is kept, and of most nothing."""
    loader = loader_of(folder, Arrays(), 2)
    kept: list[tuple[int, torch.Tensor]] = []
    for number, (_, item) in enumerate(itertools.islice(loader, 6 * SAMPLES)):
        kept.append((item["key"], item["large"][number % 300 :]))
        kept = kept[-9:]
        assert all(bool((part == float(key)).all()) for key, part in kept)
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_position_is_what_was_handed_out(folder: Path, workers: int) -> None:
    """Not what was read ahead: restored anywhere, nothing is left out."""
    wanted = results(loader_of(folder, Names(), 0), 70)
    loader, found = loader_of(folder, Names(), workers), []
    for count in (0, 1, 6, 13, 50):
        found += results(loader, count)
        state = json.dumps(loader.stream.state(loader.position))
        results(loader, 5)
        loader.restore([json.loads(state)])
    assert found == wanted
    loader.close()


def test_a_closed_loader_goes_on(folder: Path) -> None:
    wanted = results(loader_of(folder, Names(), 0), 40)
    loader, found = loader_of(folder, Names(), 2), []
    for count in (11, 0, 29):
        found += results(loader, count)
        pids = worker_pids(loader)
        loader.close()
        assert gone(pids, 5)
    assert found == wanted


def test_a_fault_of_the_work_is_not_swallowed(folder: Path) -> None:
    for workers in (0, 2):
        loader = loader_of(folder, Fails("20"), workers)
        with pytest.raises(RuntimeError, match="a fault of the work") as caught:
            results(loader, SAMPLES)
        if workers:  # from another process: the text says where
            assert "000002.tar: 20" in str(caught.value) and "in __call__" in str(caught.value)
        loader.close()


def test_a_worker_that_dies_is_named_and_replaced(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was underway is done again, in the same order."""
    loader = loader_of(folder, Dies(["20", "33"], 1, tmp_path), 2)
    with caplog.at_level(logging.WARNING):
        found = results(loader, 2 * SAMPLES)
    assert found == results(loader_of(folder, Names(), 0), 2 * SAMPLES)
    lines = sorted(record.getMessage() for record in caplog.records)
    assert [line.split(" at ")[1].split(";")[0] for line in lines] == [
        f"{folder}/000002.tar: 20",
        f"{folder}/000004.tar: 33",
    ]
    loader.close()


def test_a_sample_that_kills_workers_is_given_up(folder: Path, tmp_path: Path) -> None:
    """After two of them, for the rest of the run."""
    loader = loader_of(folder, Dies(["20"], 1000, tmp_path), 2)
    found = results(loader, 3 * SAMPLES)
    wanted = results(loader_of(folder, Names(), 0), 3 * SAMPLES)
    assert found == [("20: workers died at it twice", epoch) if key == "20" else (key, epoch) for key, epoch in wanted]
    assert len(list(tmp_path.iterdir())) == 2
    loader.close()


def test_workers_that_keep_dying_end_the_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "DEATHS", 2)
    loader = loader_of(folder, Dies([str(n) for n in range(SAMPLES)], 1, tmp_path), 1)
    with pytest.raises(
        DataError, match=r"workers died 3 times, the last at .*\.tar: \d+; .*lower data\.workers"
    ) as caught:
        results(loader, SAMPLES)
    assert "\n" not in str(caught.value)


def test_little_is_underway(folder: Path) -> None:
    """However slowly results are taken, workers do not run ahead without bound."""
    loader = loader_of(folder, Slow(0), 2)
    for _ in range(10):
        next(loader)
        time.sleep(0.05)
        assert len(loader._underway) <= 2 * TASKS * (MOST + GROUP)
    loader.close()


def test_no_descriptor_is_left_open(folder: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    loader = loader_of(folder, Arrays(), 2)
    results(loader, 40)
    loader.close()
    before = opened()
    for _ in range(3):
        results(loader, 200)
        loader.close()
    assert opened() <= before + 5  # open shards


RANK = """
import signal, sys, time
from data.loader import Loader
from data.stream import DataConfig, Stream
from tests.data.work import Slow

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    loader = Loader(Stream(DataConfig(train=sys.argv[1]), 0, 1, 0), Slow(float(sys.argv[2])), 2)
    for _ in range(12):
        next(loader)
    print(*loader._marks[:, 0].tolist(), flush=True)
    if sys.argv[3] == "draw":
        while True:
            next(loader)
    if sys.argv[3] == "unmarked":  # as workers are that have only just been started
        loader._marks.zero_()
    if sys.argv[3] in ("leave", "unmarked"):
        sys.exit(4)
    holders = [loader]  # at the end of the interpreter it is still held, and in a cycle
    holders.append(holders)
"""


class Rank:
    """A process of its own that draws with two workers."""

    def __init__(self, script: Path, folder: Path, seconds: float, then: str) -> None:
        script.write_text(RANK)
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(folder), str(seconds), then],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        assert self.process.stdout
        self.workers = [int(pid) for pid in self.process.stdout.readline().split()]
        assert len(self.workers) == 2 and all(self.workers)

    def all(self) -> list[int]:
        """The rank and whatever it started."""
        return [p.pid for p in psutil.process_iter() if os.getpgid(p.pid) == self.process.pid]


@pytest.mark.parametrize(
    ("then", "blow", "to_all", "code"),
    [
        ("draw", signal.SIGKILL, False, -9),
        ("draw", signal.SIGTERM, False, 3),
        ("draw", signal.SIGTERM, True, 3),
        ("leave", None, False, 4),
        ("unmarked", None, False, 4),
        ("end", None, False, 0),
    ],
)
def test_no_process_outlives_its_rank(
    folder: Path, tmp_path: Path, then: str, blow: signal.Signals | None, to_all: bool, code: int
) -> None:
    rank = Rank(tmp_path / "rank.py", folder, 0.01, then)
    started = rank.all() if blow else rank.workers
    if blow:
        (os.killpg if to_all else os.kill)(rank.process.pid, blow)
    _, errors = rank.process.communicate(timeout=20)
    assert rank.process.returncode == code, errors
    assert "Traceback" not in errors
    assert gone([pid for pid in started if pid != rank.process.pid], 8)


def test_workers_leave_signals_to_their_rank(folder: Path) -> None:
    """A signal sent to a whole process group stops no sample that the rank still wants."""
    loader = loader_of(folder, Slow(0.002), 2)
    found = results(loader, 10)
    for pid in worker_pids(loader):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            os.kill(pid, number)
    found += results(loader, 40)
    assert found == results(loader_of(folder, Names(), 0), 50) and loader._fallen == 0
    loader.close()


def test_a_worker_stuck_at_the_end_is_not_waited_for(folder: Path) -> None:
    loader = loader_of(folder, Slow(0), 2)
    results(loader, 12)
    for pid in worker_pids(loader):
        os.kill(pid, signal.SIGSTOP)
    pids, start = worker_pids(loader), time.monotonic()
    loader.close()
    assert gone(pids, 1) and time.monotonic() - start < 15
