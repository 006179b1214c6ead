"""A real MLflow server that fails, hangs, is killed and comes back: all that is tracked arrives, in order, once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.data.faulty_server import CUT, RESET, STALL, FaultyServer, before
from tests.mlflow_server import MlflowServer, history, log_losses, losses, number_of_runs, tracker, wait_until_sent
from trainer.journal import Journal
from trainer.tracking import send

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server: MlflowServer) -> Iterator[FaultyServer]:
    """Before the server; hangs for half a minute when it is told to."""
    found = before(server.address, stall=30)
    yield found
    found.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    return folder


def test_errors_and_lost_answers(proxy: FaultyServer, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was committed before its answer was lost is there once."""
    one = tracker(proxy.url, run)
    one.begin({}, same=False, step=0)
    log_losses(one, range(1, 4))
    wait_until_sent(run, 5)
    proxy.choose = lambda method, path: path.endswith("log-batch")
    proxy.fail(CUT, "500", RESET)
    for step, value in losses(range(4, 300)):
        one.metrics({"loss": value, "other": value, "norm": float("nan")}, step)
    wait_until_sent(run, 5 + 296, 60)
    faults = [request.fault for request in proxy.requests if request.path.endswith("log-batch")]
    assert faults[:3] == [CUT, "500", RESET] and len(faults) > 3
    one.finish()
    assert history(proxy.url, one.run_id) == losses(range(1, 300))
    assert history(proxy.url, one.run_id, "other") == losses(range(4, 300))
    assert [step for step, _ in history(proxy.url, one.run_id, "norm")] == list(range(4, 300))
    said = [text for text in caplog.messages if proxy.url in text]
    assert len(said) == 2, said
    assert "what is tracked waits in" in said[0] and said[1].endswith("is back: 296 events sent")


def test_all_sent_twice_is_there_once(server: MlflowServer, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without state.json the run is found by its key, and everything is sent again."""
    first = tracker(server.uri, run)
    first.begin({"host": "a"}, same=False, step=0)
    first.parameters({"a": 1}, [run / "config.yaml"])
    log_losses(first, range(1, 1200))
    first.finish()
    client = MlflowClient(server.uri)
    before = client.get_run(first.run_id).to_dictionary()
    (run / "tracking" / "state.json").unlink()
    assert send(run) == 0
    assert capsys.readouterr().out == f"{run}: 1204 events sent, 0 wait\n"
    assert client.get_run(first.run_id).to_dictionary() == before
    assert history(server.uri, first.run_id) == losses(range(1, 1200))
    assert number_of_runs(server.uri, run) == 1


def test_a_server_down_at_first_killed_in_the_middle_and_down_at_the_end(
    server: MlflowServer, run: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    server.kill()
    one = tracker(server.uri, run, patience=2)
    one.begin({}, same=False, step=0)
    one.parameters({"a": 1}, [run / "config.yaml"])
    log_losses(one, range(1, 101))
    assert one.run_id is None
    time.sleep(3)
    server.start()
    wait_until_sent(run, 104, 70)
    for step, value in losses(range(101, 400)):
        one.metrics({"loss": value}, step)
        if step == 300:
            server.kill()
        time.sleep(0.005)
    started = time.monotonic()
    one.finish()
    assert time.monotonic() - started < 2.5
    waiting = Journal(run / "tracking").waiting()
    assert 100 <= waiting <= 300
    end = f"python -m trainer.tracking {run} sends them"
    assert sum(f"{waiting} events wait for MLflow at" in text and text.endswith(end) for text in caplog.messages) == 1
    capsys.readouterr()
    assert send(run) == waiting
    down = capsys.readouterr().out
    assert down.startswith(f"{run}: 0 events sent, {waiting} wait; MLflow at {server.uri}: ")
    assert down.count("\n") == 1 and "Connection refused" in down
    server.start()
    assert send(run) == 0
    assert capsys.readouterr().out == f"{run}: {waiting} events sent, 0 wait\n"
    assert history(server.uri, one.run_id) == losses(range(1, 400))
    assert MlflowClient(server.uri).get_run(one.run_id).info.status == "FINISHED"
    assert number_of_runs(server.uri, run) == 1


HANGING = """
import sys, time
from pathlib import Path
from trainer.tracking import Tracker, TrackingConfig

run = Path(sys.argv[2])
tracker = Tracker(TrackingConfig(uri=sys.argv[1], patience=2, system_seconds=0), run.parent, run.name, run)
tracker.begin({}, False, 0)
sys.stdin.readline()
started = time.perf_counter()
for step in range(2000):
    tracker.metrics({f"loss/{n}": n / 7 for n in range(30)}, step)
called = time.perf_counter() - started
started = time.perf_counter()
tracker.finish()
print(called / 2000, time.perf_counter() - started, time.time())
"""


def test_a_server_that_hangs_holds_up_nothing(proxy: FaultyServer, run: Path) -> None:
    """Neither a call, nor the end of the run beyond its patience, nor the end of the process."""
    proxy.fail(always=STALL)
    arguments = [sys.executable, "-c", HANGING, proxy.url, str(run)]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    with subprocess.Popen(arguments, text=True, cwd=ROOT, **pipes) as process:  # type: ignore[call-overload]
        while not proxy.requests:
            assert process.poll() is None
            time.sleep(0.05)
        said, warned = process.communicate("it hangs\n")
    per_call, finish, ended = map(float, said.split())
    assert per_call < 1e-3
    assert 1.9 < finish < 2.5
    assert time.time() - ended < 2
    assert [request.fault for request in proxy.requests] == [STALL]
    assert Journal(run / "tracking").waiting() == 2003
    (line,) = warned.splitlines()
    assert "2003 events wait for MLflow" in line


ENDLESS = """
import itertools, sys, time
from pathlib import Path
from trainer.tracking import Tracker, TrackingConfig

run = Path(sys.argv[2])
config = TrackingConfig(uri=sys.argv[1], experiment=sys.argv[3], system_seconds=0)
tracker = Tracker(config, run.parent, run.name, run)
tracker.begin({"host": "a"}, False, 0)
tracker.parameters({"a": 1}, [])
for step in itertools.count(1):
    tracker.metrics({"loss": 1 / step, "other": 2 / step}, step)
    print(step, flush=True)
    time.sleep(0.005)
"""


def test_killed_with_sigkill_and_resumed(proxy: FaultyServer, run: Path) -> None:
    """While answers are being lost; the journal is torn, too. Every step is there once, in one run of two attempts."""
    journal = Journal(run / "tracking")
    proxy.choose = lambda method, path: path.endswith(("log-batch", "runs/create"))
    proxy.fail(CUT, None, CUT)
    arguments = [sys.executable, "-c", ENDLESS, proxy.url, str(run), run.parents[1].name]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        for line in process.stdout:
            if int(line) >= 500 and journal.state().sent:
                break
        last = int(line)
        os.kill(process.pid, signal.SIGKILL)
    assert journal.waiting() > 0
    with journal.path.open("ab") as file:
        file.write(b'{"kind": "metrics", "ti')
    again = tracker(proxy.url, run)
    assert again.run_id == journal.state().run_id
    again.begin({"host": "b"}, same=True, step=400)  # the checkpoint that it goes on from
    for step in range(401, last + 200):
        again.metrics({"loss": 1 / step, "other": 2 / step}, step)
    again.finish()
    assert journal.waiting() == 0
    assert history(proxy.url, again.run_id) == losses(range(1, last + 200))
    assert [step for step, _ in history(proxy.url, again.run_id, "other")] == list(range(1, last + 200))
    kept = MlflowClient(proxy.url).get_run(again.run_id)
    assert {"attempt": "2", "attempt.1.host": "a", "attempt.2.host": "b"}.items() <= kept.data.tags.items()
    assert (number_of_runs(proxy.url, run), kept.data.params) == (1, {"a": "1"})


def test_the_run_of_a_checkpoint_goes_on_without_its_folder(server: MlflowServer, run: Path) -> None:
    first = tracker(server.uri, run)
    first.begin({"host": "a"}, same=False, step=0)
    log_losses(first, range(1, 4))
    first.finish()
    (run / "tracking").rename(run / "gone")
    again = tracker(server.uri, run, first.run_id)
    again.begin({"host": "b"}, same=True, step=3)
    log_losses(again, range(4, 6))
    again.finish()
    (run / "tracking" / "state.json").unlink()  # which knew how many attempts there were before
    assert send(run) == 0
    assert again.run_id == first.run_id and number_of_runs(server.uri, run) == 1
    assert history(server.uri, first.run_id) == losses(range(1, 6))
    tags = MlflowClient(server.uri).get_run(first.run_id).data.tags
    assert {"attempt": "2", "attempt.1.host": "a", "attempt.2.host": "b"}.items() <= tags.items()


def test_what_a_server_refuses_is_put_aside_alone(
    proxy: FaultyServer, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A name that it does not allow, a file that is not there, and one that its store cannot keep."""
    one = tracker(proxy.url, run)
    one.begin({}, same=False, step=0)
    wait_until_sent(run, 2)
    for step in (1, 2):
        one.metrics({"loss": 1 / step, "bad?name": 0.5, "other": 1.0}, step)
    one.parameters({f"p{n}": n for n in range(150)} | {"bad?": 1}, [])
    one.artifact(run / "nowhere")
    proxy.choose = lambda method, path: method == "PUT"
    proxy.fail(always="500")
    one.artifact(run / "config.yaml")
    log_losses(one, range(3, 5))
    one.finish()
    client = MlflowClient(proxy.url)
    assert history(proxy.url, one.run_id) == losses(range(1, 5))
    assert history(proxy.url, one.run_id, "other") == [(1, 1.0), (2, 1.0)]
    assert len(client.get_run(one.run_id).data.params) == 150
    assert client.get_run(one.run_id).info.status == "FINISHED"
    lines = [json.loads(line) for line in (run / "tracking" / "rejected.jsonl").read_text().splitlines()]
    found = [(line["what"].get("key") or Path(line["what"]["path"]).name, line["what"].get("step")) for line in lines]
    assert sorted(found, key=str) == sorted(
        [("bad?name", 1), ("bad?name", 2), ("bad?", 0), ("nowhere", None), ("config.yaml", None)], key=str
    )
    assert all(line["why"] for line in lines)
    assert sum("rejected.jsonl" in text for text in caplog.messages) == 1


@pytest.mark.parametrize("status", ["401", "404"])
def test_a_server_that_lets_nobody_in_is_an_outage(proxy: FaultyServer, run: Path, status: str) -> None:
    """Nothing is put aside as refused: a user mends the password, or the address, and all is sent."""
    proxy.fail(always=status)
    one = tracker(proxy.url, run, patience=3)
    one.begin({}, same=False, step=0)
    log_losses(one, range(1, 4))
    one.finish()
    assert Journal(run / "tracking").waiting() == 6
    proxy.fail()
    assert send(run) == 0
    assert history(proxy.url, Journal(run / "tracking").state().run_id) == losses(range(1, 4))
    assert not (run / "tracking" / "rejected.jsonl").exists()
