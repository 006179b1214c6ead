"""Processes that share the items: the same predictions as one, and none lost with a process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from data import shards
from data.sample import UserError
from eval.answer import Answerer, Job, Planner
from eval.benchmarks.item import sample_of
from eval.benchmarks.shards import PROMPTS, item_of
from eval.models import Model, find_model
from eval.predictions import Prediction
from eval.settings import Settings
from eval.workers import Pool, WorkerError, Workers
from tests.processes import gone

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(export_of: Callable[[str], Path]) -> Model:
    return find_model(export_of("amvl"))


@pytest.fixture(scope="module")
def settings(model: Model) -> Settings:
    return model.effective(Settings(tokens=400, max_new_tokens=5))


@pytest.fixture(scope="module")
def batches(model: Model, settings: Settings, tiny_shards: Path) -> list[list[Job]]:
    """Of forty items with 0 to 3 pictures."""
    planner, prompt = Planner(model, settings), PROMPTS["amvl"]
    items = [item_of(sample) for sample in list(shards.read_set(tiny_shards))[:40]]
    made = planner.batches(planner.job(sample_of(item, prompt), ()) for item in items)
    assert len(made) > 6
    return made


@pytest.fixture(scope="module")
def whole(model: Model, settings: Settings, batches: list[list[Job]]) -> dict[str, Prediction]:
    """Predictions of one process, in this one."""
    return ran(Workers(model, settings), batches, range(len(batches)))


def ran(workers: Workers, batches: list[list[Job]], todo: Iterable[int]) -> dict[str, Prediction]:
    return {p.id: p for predictions in workers.run(batches, list(todo)) for p in predictions}


@pytest.fixture(scope="module")
def one_pool(model: Model, settings: Settings) -> Iterator[Pool]:
    with closing(Pool(model, settings, 2)) as made:
        yield made


@pytest.fixture
def pool(one_pool: Pool) -> Pool:
    """Two processes that have loaded the model; those that a test ended are replaced."""
    one_pool.warm()
    return one_pool


def collected(pool: Pool, batches: list[list[Job]], at: int = -1, then: Callable[[], None] = lambda: None) -> dict:
    """Predictions by id. After so many batches something happens."""
    found = {}
    for number, predictions in enumerate(pool.run(batches)):
        found |= {p.id: p for p in predictions}
        if number == at:
            then()
    return found


def test_processes_share_the_items(pool: Pool, batches: list[list[Job]], whole: dict[str, Prediction]) -> None:
    """Both work, twice over, and say what one process says."""
    for _ in range(2):
        pids = {worker.process.pid for worker in pool.workers}
        before = {pid: sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids}
        assert collected(pool, batches) == whole
        assert all(sum(psutil.Process(pid).cpu_times()[:2]) > before[pid] for pid in pids)


def test_the_command_takes_as_many_processes_as_asked(model, settings, batches, whole) -> None:
    """At most one per batch, and they stay for what is asked next."""
    with closing(Workers(model, settings.model_copy(update={"processes": 2}))) as workers:
        few = ran(workers, batches, [0])
        assert workers.pool and len(workers.pool.workers) == 1
        first = workers.pool.workers[0].process.pid
        assert few | ran(workers, batches, range(1, len(batches))) == whole
        assert len(workers.pool.workers) == 2 and workers.pool.workers[0].process.pid == first
    assert not any(worker.process.is_alive() for worker in workers.pool.workers)


def test_batches_that_are_done_are_left_out(model, settings, batches, whole) -> None:
    workers = Workers(model, settings)
    assert ran(workers, batches, []) == {} and workers.answerer is None, "nothing is loaded for nothing"
    assert set(ran(workers, batches, [1, 3])) == {job.id for number in (1, 3) for job in batches[number]}
    loaded = workers.answerer
    ran(workers, batches, [0])
    assert loaded and workers.answerer is loaded, "once"


def test_a_killed_process_loses_nothing(pool: Pool, batches: list[list[Job]], whole: dict[str, Prediction]) -> None:
    victim = pool.workers[0].process

    def kill() -> None:
        os.kill(victim.pid, signal.SIGKILL)

    assert collected(pool, batches, 0, kill) == whole
    assert len(pool.workers) == 2 and not victim.is_alive()


def test_an_item_that_ends_its_process_is_found(pool: Pool, batches, whole, monkeypatch) -> None:
    """Whenever a process gets it, it ends. All other items are answered, also those that were in its company."""
    poison = batches[2][len(batches[2]) // 2]
    company: list[int] = []

    def watched(worker) -> bool:
        there = Pool._give(pool, worker)
        if there and any(job.id == poison.id for job in worker.given[-1]):
            company.append(sum(map(len, worker.given)))
            os.kill(worker.process.pid, signal.SIGKILL)
        return there

    monkeypatch.setattr(pool, "_give", watched)
    found = collected(pool, batches)
    assert found.pop(poison.id).failed == "ended the process that ran it (by signal 9)"
    assert found == {name: p for name, p in whole.items() if name != poison.id}
    assert len(company) > 2 and company[-1] == 1


def test_processes_that_were_all_killed_are_replaced(pool: Pool, batches, whole: dict[str, Prediction]) -> None:
    def kill() -> None:
        for worker in pool.workers:
            os.kill(worker.process.pid, signal.SIGKILL)

    assert collected(pool, batches, 0, kill) == whole
    assert all(worker.process.is_alive() for worker in pool.workers)


def test_a_process_that_cannot_begin(model: Model, settings: Settings, batches) -> None:
    with closing(Pool(model, settings, 1)) as pool:
        os.kill(pool.workers[0].process.pid, signal.SIGKILL)
        with pytest.raises(WorkerError) as caught:
            collected(pool, batches)
    assert str(caught.value) == "a process ended by signal 9 while it loaded the model; lower --processes"


def test_what_is_wrong_with_the_model_is_said(model: Model, settings: Settings, batches, tmp_path: Path) -> None:
    """By every process, in one line."""
    broken = Model(tmp_path, model.id, None, None)
    with closing(Pool(broken, settings, 2)) as pool, pytest.raises(Exception, match="no tokenizer or image processor"):
        collected(pool, batches)


def test_a_fault_that_is_no_items_ends_the_evaluation(model: Model, settings: Settings, batches) -> None:
    """With its traceback, and no item is blamed for it."""
    broken = [replace(batches[0][0], settings=settings.model_copy(update={"latents": "nonsense"}))]
    with closing(Pool(model, settings, 1)) as pool, pytest.raises(UserError) as caught:
        collected(pool, [broken])
    assert "nonsense" in str(caught.value)
    wrong = [[replace(batches[0][0], sample=None)]]  # type: ignore[arg-type]
    with closing(Pool(model, settings, 1)) as pool, pytest.raises(WorkerError) as failed:
        collected(pool, wrong)
    assert str(failed.value).startswith("a process failed (AttributeError: 'NoneType' object has no attribute")


def test_processes_end_with_the_program(model: Model, settings: Settings, tmp_path: Path) -> None:
    """Also when it is killed."""
    script = tmp_path / "program.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from eval.models import find_model\n"
        "from eval.settings import Settings\n"
        "from eval.workers import Pool\n"
        "if __name__ == '__main__':\n"
        "    model = find_model(Path(sys.argv[1]))\n"
        "    pool = Pool(model, model.effective(Settings(max_new_tokens=5)), 2)\n"
        "    pool.warm()\n"
        "    print(*(worker.process.pid for worker in pool.workers), flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, script, model.folder]
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}
    )
    assert program.stdout
    pids = [int(pid) for pid in program.stdout.readline().split()]
    assert len(pids) == 2 and all(map(psutil.pid_exists, pids))
    program.kill()
    program.wait()
    assert gone(pids, 10)


def test_a_warm_answerer_waits_for_no_one(model: Model, settings: Settings, batches: list[list[Job]]) -> None:
    """While the model runs a batch, the next one's pictures are decoded: encoding begins before the answer ends."""
    answerer, times = Answerer(model, settings, "cpu"), []
    encode, answer = answerer.encode, answerer.answer

    def slow_encode(batch):
        times.append(("encode", time.monotonic()))
        return encode(batch)

    def slow_answer(batch):
        time.sleep(0.1)
        found = answer(batch)
        times.append(("answered", time.monotonic()))
        return found

    answerer.encode, answerer.answer = slow_encode, slow_answer  # type: ignore[method-assign]
    assert sum(len(found) for found in answerer.stream(batches[:4])) == sum(map(len, batches[:4]))
    order = [name for name, _ in sorted(times, key=lambda pair: pair[1])]
    assert order[:3] == ["encode", "encode", "answered"] and order[-1] == "answered"
