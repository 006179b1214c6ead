"""The rows of docs/reliability.md: a run is disturbed, started again, and ends as one that never was."""

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from tests.distributed.runs import Run, kill_at_random, same, until
from tests.distributed.zygote import ROOT, Attempt, Zygote, free_port
from tests.processes import gone
from trainer import checkpoint
from trainer.signals import BURST, STOPPED

STEPS, SAVE_EVERY = 24, 4
MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with contextlib.closing(Zygote()) as started:
        yield started


@pytest.fixture(scope="module")
def make(zygote: Zygote, tiny_shards: Path, tiny_backbone: Path) -> MakeRun:
    def run(folder: Path, name: str, ranks: int = 2, **settings: object) -> Run:
        fixed = {
            "data.train": tiny_shards,
            "model.folder": tiny_backbone,
            "train.steps": STEPS,
            "train.tokens": 700,
            "train.save_every": SAVE_EVERY,
            "train.log_every": 1,
            "train.precision": "fp32",
            "train.record": "true",
            "tracking.enabled": "false",
        }
        return Run(zygote, folder, name, ranks, **(fixed | settings))

    return run


@pytest.fixture(scope="module")
def whole(make: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing disturbs."""
    run = make(tmp_path_factory.mktemp("whole"), "whole")
    run.finish()
    return run


def assert_same(run: Run, whole: Run) -> None:
    """Its weights and the samples of every step are those of the undisturbed one."""
    assert same(run.weights(), whole.weights())
    assert run.samples() == whole.samples()


def reach(run: Run, step: int) -> Attempt:
    """Started, and behind this step."""
    attempt = run.start()
    run.wait_for(lambda: run.step >= step, attempt)
    return attempt


def test_kills_at_random(make: MakeRun, whole: Run, tmp_path: Path):
    run, dice = make(tmp_path, "killed"), random.Random(7)
    for _ in range(3):
        print(kill_at_random(run, dice, most=2), run.checkpoints())
    run.finish()
    assert_same(run, whole)


@pytest.mark.long
def test_many_kills_at_random(make: MakeRun, tmp_path: Path):
    settings = {"train.steps": 400, "train.save_every": 2}
    undisturbed = make(tmp_path, "undisturbed", **settings)
    undisturbed.finish()
    run, dice, kills, last = make(tmp_path, "killed", **settings), random.Random(0), 0, 0
    while kills < 50:
        what = kill_at_random(run, dice, most=8)
        kills += 1
        found = run.checkpoints()
        print(f"{kills}: {what}: checkpoints {found}")
        assert max(found, default=0) >= last, "a complete checkpoint was lost"
        last = max(found, default=0)
    run.finish()
    assert_same(run, undisturbed)


def test_signals_save_and_leave_and_the_run_goes_on(make: MakeRun, whole: Run, tmp_path: Path):
    """To one rank, to the other, and to every process there is: the loader's workers too."""
    run = make(tmp_path, "signalled", **{"data.workers": 1})
    everything = {"SIGTERM": lambda pids: pids[1:], "SIGUSR1": lambda pids: pids[:1], "SIGINT": family}
    for number, (name, chosen) in enumerate(everything.items(), 1):
        attempt = reach(run, 5 * number)
        started = time.monotonic()
        for pid in chosen(attempt.pids):
            os.kill(pid, getattr(signal, name))
        assert attempt.wait(30) == [STOPPED, STOPPED], attempt.output
        seconds = time.monotonic() - started
        print(f"{name}: {seconds:.1f} s from the signal to the end")  # shown by pytest -rP
        assert seconds < 20
        assert run.checkpoints()[0] == run.step >= 5 * number
        assert re.search(rf"stopped \(({name}|another rank was asked to)\) after step {run.step}\n", attempt.output)
    run.finish()
    assert_same(run, whole)


def family(pids: list[int]) -> list[int]:
    """These processes and all they have started."""
    return [*pids, *(child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True))]


def test_a_second_signal_leaves_at_once(make: MakeRun, tmp_path: Path):
    """Also where the main thread is in a collective that does not end: the other rank stands still."""
    run = make(tmp_path, "twice")
    attempt = reach(run, 2)
    os.kill(attempt.pids[1], signal.SIGSTOP)
    time.sleep(1)
    os.kill(attempt.pids[0], signal.SIGTERM)
    time.sleep(BURST + 0.5)
    os.kill(attempt.pids[0], signal.SIGTERM)
    assert gone(attempt.pids[:1], 5)
    os.kill(attempt.pids[1], signal.SIGCONT)
    assert attempt.wait(30)[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize("fault", ["SIGTERM to the launcher", "kill -9 of the launcher", "kill -9 of a rank"])
def test_under_the_launcher(make: MakeRun, whole: Run, tmp_path: Path, fault: str):
    run = make(tmp_path, "launched")
    overrides = [f"{key}={value}" for key, value in run.settings.items()]
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", str(free_port())]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*launcher, "trainer/main.py", "configs/quickstart.yaml", *overrides],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": path}, stdout=file, stderr=file,
        )  # fmt: skip
    until(lambda: run.step >= SAVE_EVERY + 1, 180, log.read_text)
    node = psutil.Process(process.pid).children()[0]
    ranks = sorted((one for one in node.children() if "trainer/main.py" in one.cmdline()), key=lambda one: one.pid)
    assert len(ranks) == 2
    if fault == "kill -9 of a rank":
        ranks[1].kill()
    else:
        (process.terminate if "SIGTERM" in fault else node.kill)()
    psutil.wait_procs(ranks, timeout=60)
    assert not any(one.is_running() for one in ranks), "ranks are left behind"
    process.wait(30)
    assert run.step < STEPS
    if fault == "kill -9 of a rank":
        assert f"rank 1 ({os.uname().nodename}, pid {ranks[1].pid}) is gone without a word" in log.read_text()
    else:
        assert run.checkpoints()[0] == run.step, "they save when nobody is left to stop them"
    run.finish()
    assert_same(run, whole)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounts a disk, for which it has to be root: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_fails(make: MakeRun, disk: Path, tmp_path: Path):
    """Full, read-only, and full in the middle of a file of one rank: each costs a checkpoint, and nothing else."""
    run = make(disk, "disk", **{"train.steps": 4000, "train.save_every": 2, "train.keep_last": 1})
    run.logs = tmp_path
    attempt = reach(run, 3)
    filler = disk / "filler"

    def complaints(words: str) -> int:
        return len(re.findall(rf"step_\d+.part: not saved \(.*{words}.*\); training goes on", attempt.output))

    def saves(than: int) -> bool:
        return run.newest > than

    faults: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("GiB are free", lambda: fill(filler), filler.unlink),
        ("Read-only", lambda: make_read_only(run.path / "checkpoints"), lambda: unmount(run.path / "checkpoints")),
        (
            "another rank could not",
            lambda: limit(attempt.pids[1], 2**20),
            lambda: limit(attempt.pids[1], resource.RLIM_INFINITY),
        ),
    ]
    for words, begin, end in faults:
        run.wait_for(lambda: saves(0), attempt)
        kept, before = run.newest, complaints(words)
        begin()
        run.wait_for(lambda words=words, before=before: complaints(words) > before + 1, attempt)  # type: ignore[misc]
        assert run.newest >= kept, "an older checkpoint was lost"
        end()
        kept = run.newest
        run.wait_for(lambda kept=kept: saves(kept), attempt)  # type: ignore[misc]
    fill(filler)
    os.kill(attempt.pids[0], signal.SIGTERM)
    assert attempt.wait(30) == [2, 2]
    assert re.search(r"error: .*disk: step \d+ could not be saved", attempt.output)


def fill(path: Path) -> None:
    with path.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**20))


def make_read_only(folder: Path) -> None:
    """Seen from now on, by whoever opens a file in it."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", folder], check=True)


def limit(pid: int, largest: int) -> None:
    """Of the files that a process writes."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))


def test_damaged_checkpoints_are_passed_over(make: MakeRun, whole: Run, tmp_path: Path):
    run = make(tmp_path, "torn")
    attempt = run.start()
    run.wait_for(lambda: run.newest >= 3 * SAVE_EVERY, attempt)
    os.kill(attempt.pids[0], signal.SIGKILL)
    attempt.wait(60)
    third, second, first = checkpoint.complete(run.path)[:3]
    states = sorted(third.glob("*optim_states.pt"))[1]
    os.truncate(states, states.stat().st_size // 2)
    flip(sorted(second.glob("*optim_states.pt"))[0])
    for age, path in enumerate((first, second, third)):  # by a clock that went backwards
        os.utime(path, (time.time() - 1000 * age,) * 2)
    output = run.finish()
    assert f"{states} has" in output and "is damaged at" in output
    assert f"step {checkpoint.step_of(first)} of {STEPS}" in output
    assert_same(run, whole)
    for path in run.path.glob("checkpoints/step_*/complete.json"):
        (path.parent / "rank_0.json").unlink()
    (run.path / "summary.json").unlink()
    attempt = run.start()
    assert attempt.wait(60) == [2, 2]
    assert "of its checkpoints (3) none is whole" in attempt.output


def flip(path: Path) -> None:
    """One bit in the middle, which torch.load does not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_clock_that_jumps(make: MakeRun, whole: Run, tmp_path: Path):
    """A day forth and two days back: what was logged stays in order, once each, in one MLflow run."""
    run = make(tmp_path, "clock", **{"tracking.enabled": "true"})
    for step, jump in ((5, 86_400), (10, -86_400)):
        attempt = run.start(clock=jump)
        run.wait_for(lambda step=step: run.step >= step, attempt)  # type: ignore[misc]
        os.kill(attempt.pids[1], signal.SIGTERM)
        assert attempt.wait(40) == [STOPPED, STOPPED]
    run.finish()
    assert_same(run, whole)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("amvl").experiment_id])
    history = client.get_metric_history(found.info.run_id, "loss/total")
    assert sorted(metric.step for metric in history) == list(range(1, STEPS + 1))
    assert (found.info.status, found.data.tags["attempt"]) == ("FINISHED", "3")


def test_a_rank_that_stands_still_is_named(make: MakeRun, tmp_path: Path):
    run = make(tmp_path, "stalled", **{"watch.stall_seconds": 10})
    attempt = reach(run, 2)
    os.kill(attempt.pids[1], signal.SIGSTOP)
    stalled = rf"no rank got further for 10 s; rank 1 \(.*, pid {attempt.pids[1]}\) does not answer"
    run.wait_for(lambda: re.search(stalled, attempt.output) is not None, attempt, 60)
    stacks = (run.path / "stacks" / f"step_{run.step + 1}.txt").read_text()
    assert "take_step" in stacks or "all_reduce" in stacks
    assert gone(attempt.pids[:1], 60)
    os.kill(attempt.pids[1], signal.SIGCONT)
    assert attempt.wait(60) == [1, 1]


def test_other_numbers_of_ranks_take_every_sample_once(make: MakeRun, tmp_path: Path):
    run = make(tmp_path, "elastic", **{"train.accumulation": 1})
    for ranks, step in ((2, 6), (1, 12), (3, 18)):
        attempt = run.start(ranks=ranks, **{"run.accept": "[global_batch]"})
        run.wait_for(lambda step=step: run.step >= step, attempt)  # type: ignore[misc]
        os.kill(attempt.pids[-1], signal.SIGTERM)
        assert attempt.wait(60) == [STOPPED] * ranks, attempt.output
    run.finish(ranks=2, **{"run.accept": "[global_batch]"})
    taken = sum(run.samples().values(), Counter())
    assert max(taken.values()) == 1, "a sample was repeated"
    epochs = Counter(name.rpartition(" (")[2] for name in taken)
    assert epochs["epoch 0)"] == 104 and len(epochs) > 2, "a sample was lost"


def test_a_change_of_the_batch_is_refused_with_its_name(make: MakeRun, tmp_path: Path):
    run = make(tmp_path, "refused", **{"train.steps": 12})
    attempt = run.start()
    run.wait_for(lambda: run.step >= 2, attempt)
    os.kill(attempt.pids[0], signal.SIGTERM)
    assert attempt.wait(30) == [STOPPED, STOPPED]
    shutil.copytree(run.path, tmp_path / "before")
    attempt = run.start(ranks=1)
    assert attempt.wait(60) == [2]
    assert "global_batch is 2 in step_" in attempt.output and "run.accept=[global_batch]" in attempt.output
    assert run.start(ranks=1, **{"train.accumulation": 2}).wait(120) == [0], "the same batch needs no word"


def test_two_processes_do_not_train_in_one_folder(make: MakeRun, zygote: Zygote, tmp_path: Path):
    """The second waits for the first, which may be on its last save, and then finds the run as it left it."""
    run = make(tmp_path, "shared", **{"train.steps": 2000})
    attempt = reach(run, 3)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [sys.executable, "trainer/main.py", "configs/quickstart.yaml"]
    command += [f"{key}={value}" for key, value in run.settings.items()]
    second = subprocess.Popen(
        [*command, "train.accumulation=2"],
        cwd=ROOT,
        env=os.environ | {"MASTER_PORT": str(free_port()), "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert second.stdout
    lines = iter(second.stdout.readline, "")
    try:
        assert any("another process still trains here; waiting" in line for line in lines)
        os.kill(attempt.pids[0], signal.SIGTERM)
        assert attempt.wait(30) == [STOPPED, STOPPED]
        stopped = run.step
        assert any(f"1 ranks, step {stopped} of 2000" in line for line in lines)
    finally:
        second.kill()
        second.wait()
