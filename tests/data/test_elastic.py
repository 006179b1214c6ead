"""Exactness: whatever the history of stops, kills and changed worlds, each epoch holds every sample once.

The spine of the data path. A history is a list of worlds (ranks and workers); in each, every rank draws some samples
after its last saved state that are lost with it, as a kill would do.
"""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.pack import Packs
from data.pipeline import packs_of
from data.processor import Processor
from data.stream import DataConfig
from model.batch import cost
from model.objective import RECIPES
from tests.data.work import World, rank_that_saves, start, write_numbered

ROOT = Path(__file__).parents[2]
SAMPLES = 41
worlds = st.tuples(st.integers(1, 4), st.sampled_from([0, 0, 0, 1, 2]))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbered(tmp_path_factory.mktemp("elastic") / "set", SAMPLES, 9)


def check(folder: Path, seen: Counter, states: list[dict]) -> None:
    """Draw what is missing of the epochs begun, and compare with the set."""
    epochs = 1 + max((epoch for _, epoch in seen), default=0)
    (last,) = start(folder, 1, 0, states)
    ends = {lane.number: epochs * lane.size for lane in last.stream.lanes[0]}
    while any(last.position.lanes[number] < end for number, end in ends.items()):
        seen[next(last)[1]] += 1
    found = {draw: n for draw, n in seen.items() if draw[1] < epochs}
    assert found == {(str(n), epoch): 1 for n in range(SAMPLES) for epoch in range(epochs)}


@given(history=st.lists(worlds, min_size=1, max_size=4), random_=st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_history_of_worlds_is_exact(folder: Path, history: list[World], random_: random.Random) -> None:
    seen: Counter = Counter()
    states: list[dict] = []
    for ranks, workers in history:
        saved = []
        for loader in start(folder, ranks, workers, states):
            seen.update(result for _, result in islice(loader, random_.randrange(30)))
            saved.append(json.loads(json.dumps(loader.stream.state(loader.position))))
            list(islice(loader, random_.randrange(5)))  # lost
            loader.close()
        states = saved
    check(folder, seen, states)


@pytest.mark.parametrize("seed", range(20))
def test_killed_at_any_moment(folder: Path, tmp_path: Path, seed: int) -> None:
    """Real processes, and SIGKILL to all of them in the midst of drawing and saving."""
    rng = random.Random(seed)
    seen: Counter = Counter()
    states = [loader.stream.state(loader.position) for loader in start(folder, 1, 0, [])]
    for phase in range(3):
        ranks = rng.randint(1, 4)
        outs = [tmp_path / f"{phase}_{rank}.json" for rank in range(ranks)]
        fork = multiprocessing.get_context("fork")
        started: list[BaseProcess] = []
        for rank, out in enumerate(outs):
            started.append(fork.Process(target=rank_that_saves, args=(folder, rank, (ranks, 0), states, out)))
            started[-1].start()
        wait_for(outs, started)
        time.sleep(rng.random() * 0.05)
        for process in started:
            assert process.pid
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        saved = [json.loads(out.read_text()) for out in outs]
        seen.update(tuple(result) for results, _ in saved for result in results)
        states = [state for _, state in saved]
    check(folder, seen, states)


def wait_for(outs: list[Path], started: list[BaseProcess]) -> None:
    deadline = time.monotonic() + 60
    while not all(out.exists() for out in outs):
        assert all(process.is_alive() for process in started) and time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("worlds", [((2, 2), (1, 1), (3, 2)), ((1, 2), (2, 0), (1, 1))])
def test_killed_with_its_workers(folder: Path, tmp_path: Path, worlds: tuple[World, ...]) -> None:
    """The same with worker processes, each rank a program of its own."""
    seen: Counter = Counter()
    states = [loader.stream.state(loader.position) for loader in start(folder, 1, 0, [])]
    for phase, world in enumerate(worlds):
        outs = [tmp_path / f"{phase}_{rank}.json" for rank in range(world[0])]
        code = "import json, sys; from pathlib import Path; from tests.data.work import rank_that_saves as run\n"
        code += "if __name__ == '__main__': a = json.loads(sys.argv[1]); run(Path(a[0]), a[1], a[2], a[3], Path(a[4]))"
        script = tmp_path / "rank.py"
        script.write_text(code)
        started = []
        for rank, out in enumerate(outs):
            arguments = json.dumps([str(folder), rank, world, states, str(out)])
            command = [sys.executable, str(script), arguments]
            started.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}))
        deadline = time.monotonic() + 120
        while not all(out.exists() for out in outs):
            assert all(p.poll() is None for p in started) and time.monotonic() < deadline
            time.sleep(0.01)
        for process in started:
            process.kill()
            process.wait()
        saved = [json.loads(out.read_text()) for out in outs]
        seen.update(tuple(result) for results, _ in saved for result in results)
        states = [state for _, state in saved]
    check(folder, seen, states)


def bits(packs: Packs, count: int) -> Iterator[list[tuple]]:
    """All that the next packs hold."""
    for pack in islice(packs, count):
        parts = [(item.prompt, item.answer, item.pixels, item.grids) for item in pack]
        yield [
            (item.sample.key, item.sample.epoch, *[(p.shape, p.numpy().tobytes()) for p in part])
            for item, part in zip(pack, parts, strict=True)
        ]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_same_world_goes_on_bit_by_bit(tiny_shards: Path, processor: Processor, ranks: int) -> None:
    """Real batches of every rank, over stops, and with another number of workers each time."""
    price = partial(cost, recipe=RECIPES["amvl"], slots=3)

    def fresh(rank: int, workers: int) -> Packs:
        config = DataConfig(train=tiny_shards, workers=workers, window=16, lanes=7, piece=3, shuffle=6)
        return packs_of(config, processor.encode, price, 500, seed=0, rank=rank, ranks=ranks)

    wanted = [list(bits(fresh(rank, 0), 12)) for rank in range(ranks)]
    found: list[list] = [[] for _ in range(ranks)]
    states: list[dict] = []
    for workers, count in ((2, 3), (0, 1), (1, 5), (2, 3)):
        world = [fresh(rank, workers) for rank in range(ranks)]
        for rank, packs in enumerate(world):
            if states:
                packs.restore(states, rank, ranks)
            packs.prime()
            found[rank] += bits(packs, count)
        states = json.loads(json.dumps([packs.state() for packs in world]))
        for packs in world:
            packs.loader.close()
    assert found == wanted
