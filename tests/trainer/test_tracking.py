"""What a tracked run leaves in the default store, the command that sends the rest, and the settings."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from pydantic import ValidationError

from tests.mlflow_server import history, log_losses, losses, number_of_runs, tracker, wait_until_sent
from trainer import event_queue, system_metrics
from trainer.journal import Journal
from trainer.tracking import Tracker, TrackingConfig, store_uri

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    return folder


def command(*runs: Path) -> subprocess.CompletedProcess[str]:
    """`python -m trainer.tracking`."""
    arguments = [sys.executable, "-m", "trainer.tracking", *map(str, runs)]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)


def test_a_run_is_kept_and_continued(run: Path) -> None:
    """In the SQLite file that is the default."""
    first = tracker(None, run)
    first.begin({"ranks": 2, "host": "a"}, same=False, step=0)
    first.parameters({"train": {"lr": 1e-3, "steps": 5}, "hub_token": "abc"}, [run / "config.yaml"])
    first.metrics({"loss": 2.0, "norm": float("nan")}, step=1)
    (run / "notes.txt").write_text("as it is")
    first.artifact(run / "notes.txt", "notes")
    first.finish("FAILED")
    uri = store_uri(TrackingConfig(), run.parent)
    client = MlflowClient(uri)
    assert (run.parent / "mlflow.db").is_file() and first.run_id
    kept = client.get_run(first.run_id)
    assert (kept.info.status, kept.info.run_name) == ("FAILED", "one")
    assert kept.data.params == {"train.lr": "0.001", "train.steps": "5", "hub_token": "[redacted]"}

    again = tracker(None, run, "0" * 32)  # the folder knows better than a checkpoint
    again.begin({"ranks": 4, "host": "b"}, same=False, step=1)
    again.parameters({"train": {"lr": 2e-3, "steps": 5}, "hub_token": "abc"}, [])
    again.metrics({"loss": 1.5}, step=2)
    again.tags({"note": "second"})
    wait_until_sent(run, 11)
    assert client.get_run(first.run_id).info.status == "RUNNING"
    again.finish()
    kept = client.get_run(first.run_id)
    assert again.run_id == first.run_id and number_of_runs(uri, run) == 1
    assert kept.info.status == "FINISHED"
    assert kept.data.params == {"train.lr": "0.001", "train.steps": "5", "hub_token": "[redacted]"}
    assert history(uri, first.run_id) == [(1, 2.0), (2, 1.5)]
    assert str(history(uri, first.run_id, "norm")) == "[(1, nan)]"
    wanted = {
        "attempt": "2",
        "attempt.1.ranks": "2",
        "attempt.1.host": "a",
        "attempt.2.ranks": "4",
        "attempt.2.host": "b",
        "changed.train.lr": "0.002",
        "note": "second",
    }
    assert wanted.items() <= kept.data.tags.items()
    assert {f"version.{name}" for name in event_queue.PACKAGES} | {"git"} <= set(kept.data.tags)
    assert {file.path for file in client.list_artifacts(first.run_id)} == {"config.yaml", "notes"}
    assert [file.path for file in client.list_artifacts(first.run_id, "notes")] == ["notes/notes.txt"]


def test_a_store_made_anew_gets_everything(run: Path, tmp_path: Path) -> None:
    """Deleted while a run goes on it is an outage; the next attempt makes the run again, from the journal."""
    first = tracker(None, run, patience=1)
    first.begin({}, same=False, step=0)
    log_losses(first, range(1, 6))
    wait_until_sent(run, 7)
    (run.parent / "mlflow.db").rename(tmp_path / "elsewhere")
    log_losses(first, range(6, 11))
    first.finish()
    assert Journal(run / "tracking").waiting() == 6
    done = command(run)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    uri = f"sqlite:///{run.parent}/../runs/mlflow.db"  # under its own name this process still has the old one open
    run_id = Journal(run / "tracking").state().run_id
    assert run_id != first.run_id and history(uri, run_id) == losses(range(1, 11))


def test_the_command(run: Path, tmp_path: Path) -> None:
    """A folder that was not tracked, a run without its config, and one whose journal is being sent."""
    nothing = command(run)
    assert (nothing.returncode, nothing.stdout) == (2, "")
    (line,) = nothing.stderr.splitlines()
    assert line.startswith(f"error: {run}: there is no tracking/journal.jsonl in it")
    journal = Journal(run / "tracking")
    journal.open({"kind": "run", "key": "k"})
    journal.close()
    without = command(run)
    (line,) = without.stderr.splitlines()
    assert without.returncode == 2 and line.startswith(f"error: {run / 'config.yaml'}: its `tracking` cannot be read")
    (run / "config.yaml").write_text("tracking: {}")
    with journal.lock():
        taken = command(run)
    assert (taken.returncode, taken.stderr) == (1, "")
    assert taken.stdout == f"{run}: another process is sending its events; try again when that has ended\n"


def test_disabled_it_does_nothing(run: Path) -> None:
    threads = threading.active_count()
    off = Tracker(TrackingConfig(enabled=False), run.parent, run.name, run)
    off.begin({}, same=False, step=0)
    off.parameters({"a": 1}, [run / "nowhere"])
    off.metrics({"loss": 1.0}, 1)
    off.artifact(run / "nowhere")
    off.tags({"a": "b"})
    assert threading.active_count() == threads
    off.finish()
    assert off.run_id is None and list(run.iterdir()) == [] and list(run.parent.iterdir()) == [run]


def test_what_the_machine_does_is_tracked(run: Path) -> None:
    uri = store_uri(TrackingConfig(), run.parent)
    one = tracker(None, run, system=0.2)
    one.begin({}, same=False, step=7)
    time.sleep(0.5)
    one.metrics({"loss": 1.0}, 8)
    time.sleep(0.5)
    one.finish()
    found = MlflowClient(uri).get_run(one.run_id).data.metrics
    assert 0 < found["system/process/memory_bytes"] < found["system/memory_bytes"]
    assert 0 <= found["system/cpu_percent"] <= 100 and found["system/process/cpu_percent"] >= 0
    assert found["system/disk_free_bytes"] > 0
    steps = [step for step, _ in history(uri, one.run_id, "system/cpu_percent")]
    assert steps[0] == 7 and steps[-1] == 8 and steps == sorted(steps)


@pytest.mark.gpu
def test_what_the_gpu_does_is_measured(tmp_path: Path) -> None:
    kept = torch.ones(1 << 20, device="cuda")
    found = system_metrics.SystemMetrics(tmp_path)()
    assert found["system/gpu_0/allocated_bytes"] >= kept.nbytes
    for name, least in (("memory_bytes", kept.nbytes), ("utilization_percent", 0)):
        assert found.get(f"system/gpu_0/{name}", least) >= least  # not there without pynvml


@pytest.mark.parametrize(
    ("uri", "mend"),
    [
        ("https://me:pw@host/mlflow", "MLFLOW_TRACKING_PASSWORD"),
        ("https://token@host", "MLFLOW_TRACKING_PASSWORD"),
        ("https://host/?token=abc", "MLFLOW_TRACKING_PASSWORD"),
        ("postgresql://me:pw@host/db", "~/.pgpass"),
    ],
)
def test_a_password_in_the_address_is_refused(uri: str, mend: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrackingConfig(uri=uri)
    (fault,) = caught.value.errors()
    assert "holds a password; " in fault["msg"] and mend in fault["msg"]


@pytest.mark.parametrize(
    "uri", ["https://host:5000/mlflow", "postgresql://me@host/db?sslmode=require", "sqlite:///a.db"]
)
def test_an_address_without_one_is_taken(uri: str) -> None:
    assert store_uri(TrackingConfig(uri=uri), Path("runs")) == uri
