"""MLflow tracking of a run, on rank 0. A step never waits for it: what is tracked goes through a queue into a journal
on the disk (trainer/event_queue.py, trainer/journal.py), and from there to MLflow (trainer/sender.py).

    python -m trainer.tracking RUN [RUN ...]

sends what still waits in the journals of runs that have ended.
"""

import argparse
import logging
import os
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from data.sample import UserError
from trainer.event_queue import EventQueue
from trainer.journal import Journal
from trainer.redact import in_one_line, redact
from trainer.sender import DEFAULTS, Sender

log = logging.getLogger(__name__)


class TrackingError(UserError):
    """A run whose journal cannot be sent."""


class TrackingConfig(BaseModel):
    """Where MLflow keeps the run. The credentials of a server come from the environment, as MLflow documents."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(True, description="false: nothing is tracked")
    uri: str | None = Field(None, description="MLflow tracking URI; default: a SQLite file in run.folder")
    experiment: str = Field("amvl", min_length=1, description="MLflow experiment; made where there is none")
    queue: int = Field(10_000, ge=1, description="events that wait for the disk at most; more are lost, and counted")
    patience: float = Field(10.0, ge=1, description="seconds that the end of a run waits for the server")
    system_seconds: float = Field(30.0, ge=0, description="from one look at CPU, memory and GPUs to the next; 0: none")

    @field_validator("uri")
    @classmethod
    def _holds_no_password(cls, uri: str | None) -> str | None:
        found = urlsplit(uri or "")
        web = found.scheme in ("http", "https")
        if found.password or (web and found.username) or redact(found.query) != found.query:
            raise ValueError(
                "holds a password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
                if web
                else "holds a password; leave it to what the database's driver reads, such as ~/.pgpass or ~/.my.cnf"
            )
        return uri


def store_uri(config: TrackingConfig, runs: Path) -> str:
    """The tracking URI in use."""
    return config.uri or f"sqlite:///{(runs / 'mlflow.db').resolve()}"


class Tracker:
    """One MLflow run over all attempts. No method waits or raises; only `finish` waits, for a while.

    `runs` is the folder of runs, `run` the folder of this one, and `run_id` the MLflow run that a checkpoint remembers:
    it goes on where the folder has no journal. `config.enabled: false` makes a tracker that does nothing.
    """

    def __init__(self, config: TrackingConfig, runs: Path, name: str, run: Path, run_id: str | None = None) -> None:
        self.config, self.run = config, run
        self._step = 0
        self._events: EventQueue | None = None
        self._sender: Sender | None = None
        self._ended = threading.Event()
        if not config.enabled:
            return
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        self.journal = Journal(run / "tracking")
        first = {"key": str(uuid.uuid4()), "name": name, "experiment": config.experiment, "run_id": run_id}
        self._events = EventQueue(self.journal, first, config.queue)
        self._sender = _sender(config, runs, self.journal)
        self._sending = threading.Thread(target=self._sender.run, name="tracking: MLflow", daemon=True)
        self._sending.start()
        if config.system_seconds:
            threading.Thread(target=self._watch_system, name="tracking: system", daemon=True).start()

    @property
    def run_id(self) -> str | None:
        """MLflow's, once a server has answered."""
        return self._sender.state.run_id if self._sender else None

    def begin(self, facts: dict[str, Any], same: bool, step: int) -> None:
        """An attempt, whose facts become tags. `same`: after `step` it repeats what the journal holds, bit for bit."""
        self._step = step
        self._put("attempt", facts=facts, same=same, step=step)

    def parameters(self, values: dict[str, Any], files: list[Path]) -> None:
        """Nested settings as dotted parameters (as tags where an attempt changes them), YAML files as artifacts."""
        self._put("parameters", values=values)
        for file in files:
            self._put("artifact", path=file, folder=None, redacted=True)

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Numbers at a step."""
        self._step = step
        self._put("metrics", values=values.copy(), step=step)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, as it is when it is sent. It must hold no credentials."""
        self._put("artifact", path=path, folder=folder, redacted=False)

    def tags(self, values: dict[str, Any]) -> None:
        """Words about the run."""
        self._put("tags", values=values)

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run with a status of MLflow's; the server has `patience` seconds to take in what waits."""
        if not self._events or not self._sender or self._ended.is_set():
            return
        self._ended.set()
        deadline = time.monotonic() + self.config.patience
        self._put("finish", status=status)
        lost = self._events.close(self.config.patience)
        self._sender.ending.set()
        self._sending.join(max(0.0, deadline - time.monotonic()))
        self._sender.stop.set()
        self._sending.join(0.2)  # it gives up the lock at once, unless it is in a request
        if lost:
            log.warning("%s: %d events were lost on their way to the disk", self.journal.path, lost)
        if waiting := self.journal.waiting():
            why = self._sender.fault or "no answer yet"
            log.warning(
                "%s: %d events wait for MLflow at %s (%s); python -m trainer.tracking %s sends them",
                *(self.journal.path, waiting, self._sender.uri, why, self.run),
            )

    def _put(self, kind: str, **content: Any) -> None:
        if self._events:
            self._events.put(kind, **content)

    def _watch_system(self) -> None:
        from trainer.system_metrics import SystemMetrics  # it imports torch, which the command does without

        measure = SystemMetrics(self.run)
        while not self._ended.wait(self.config.system_seconds):
            try:
                self._put("metrics", values=measure(), step=self._step)
            except Exception as error:
                log.warning("tracking: system metrics end (%s)", in_one_line(error))
                return


def _sender(config: TrackingConfig, runs: Path, journal: Journal) -> Sender:
    return Sender(journal, store_uri(config, runs), None if config.uri else (runs / "mlflow").resolve().as_uri())


def send(run: Path) -> int:
    """Send what waits in a run's journal, and say how that went. Returns how many events still wait."""
    journal = Journal(run / "tracking")
    if not journal.path.is_file():
        raise TrackingError(
            f"{run}: there is no tracking/journal.jsonl in it; name the folder of a run that was tracked"
        )
    path = run / "config.yaml"
    try:
        config = TrackingConfig.model_validate(yaml.safe_load(path.read_text())["tracking"])
    except (OSError, KeyError, TypeError, yaml.YAMLError, ValidationError) as error:
        raise TrackingError(f"{path}: its `tracking` cannot be read ({in_one_line(error)}); put it back") from error
    with journal.lock() as mine:
        if not mine:
            print(f"{run}: another process is sending its events; try again when that has ended")
            return journal.waiting()
        sender = _sender(config, run.resolve().parent, journal)
        for _ in range(2):  # a store that was made anew says at the first try that it does not know the run
            try:
                while sender.step():
                    pass
                fault = ""
                break
            except Exception as error:
                fault = f"; MLflow at {sender.uri}: {in_one_line(error)}"
        waiting = journal.waiting()
        print(f"{run}: {sender.sent} events sent, {waiting} wait{fault}")
        return waiting


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trainer.tracking", description="send what waits in journals")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run")
    arguments = parser.parse_args()
    for variable, value in DEFAULTS.items():
        os.environ.setdefault(variable, value)
    try:
        waiting = [send(run) for run in arguments.runs]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(int(any(waiting)))


if __name__ == "__main__":
    main()
