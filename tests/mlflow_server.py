"""A real `mlflow server` that can be killed and started again, and what tests of tracking share."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from mlflow import MlflowClient

from trainer.journal import Journal
from trainer.tracking import Tracker, TrackingConfig

PATIENCE = 120.0  # seconds to its first answer


class MlflowServer:
    """Runs from its start until it is killed, always on the same port of this machine."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.uri = f"http://{self.address}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Have it answer."""
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        artifacts = ["--artifacts-destination", f"{self.folder}/artifacts"]
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, *store, *artifacts],
                env=os.environ | quiet,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"mlflow server did not start:\n{(self.folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End it and its workers at once, as SIGKILL does."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(self.address, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False


def tracker(uri: str | None, run: Path, run_id: str | None = None, patience: float = 60, system: float = 0) -> Tracker:
    """Of this run, in an experiment of its own."""
    config = TrackingConfig(uri=uri, experiment=run.parents[1].name, patience=patience, system_seconds=system)
    (run / "config.yaml").write_text(json.dumps({"tracking": config.model_dump(mode="json")}))
    return Tracker(config, run.parent, run.name, run, run_id)


def history(uri: str, run_id: str | None, key: str = "loss") -> list[tuple[int, float]]:
    """Steps and values as they are in the store: in the order of their insertion."""
    return [(metric.step, metric.value) for metric in MlflowClient(uri).get_metric_history(run_id, key)]


def number_of_runs(uri: str, run: Path) -> int:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(run.parents[1].name)
    return len(client.search_runs([experiment.experiment_id]))


def wait_until_sent(run: Path, events: int, seconds: float = 30) -> None:
    """As many as the journal is to hold then."""
    journal, deadline = Journal(run / "tracking"), time.monotonic() + seconds
    while not journal.path.is_file() or journal.path.read_bytes().count(b"\n") < events or journal.waiting():
        assert time.monotonic() < deadline, f"{journal.waiting()} events wait"
        time.sleep(0.05)


def losses(steps: range) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in steps]


def log_losses(to: Tracker, steps: range) -> None:
    for step, value in losses(steps):
        to.metrics({"loss": value}, step)
