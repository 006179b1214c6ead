"""Sends a journal to MLflow: in order, again after every failure, and so that what comes twice is kept once.

MLflow's stores ignore a metric that they hold with the same step, value and time, and a parameter with the same value.
The journal's times are those of the events, so a batch whose answer was lost is sent again as it was.
"""

import itertools
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from trainer.journal import Event, Journal, State
from trainer.redact import in_one_line

log = logging.getLogger(__name__)
KEY = "amvl.key"  # the tag by which a run is found that was made just before the process was killed
EARLIER = "amvl.earlier"  # the tag that counts the attempts before this journal, where an older one was lost
GONE = "RESOURCE_DOES_NOT_EXIST"
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")  # what no later try would change
ALONE = ("attempt", "artifact", "finish")  # events that are requests of their own
MOST = {"params": 100, "tags": 100, "metrics": 1000}  # MLflow's limits of one batch
LONGEST = {"params": 6000, "tags": 8000}  # characters of a value
PAUSE = 1.0  # seconds between two batches, also where many wait: with more of them, training would feel the work
FIRST_DELAY, LAST_DELAY = 1.0, 60.0  # seconds from a failure to the next try
ARTIFACT_TRIES = 3  # before an artifact that fails while the server answers is put aside
# For those that the user has not set: the journal is what waits, not MLflow. And nothing is sent to MLflow's makers.
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Item(NamedTuple):
    """One entity of MLflow's."""

    kind: str  # params, tags or metrics
    key: str
    value: Any
    time: int = 0
    step: int = 0


class Sender:
    """Sends one journal to one store. `place` is where a new experiment keeps artifacts, if not where MLflow would."""

    def __init__(self, journal: Journal, uri: str, place: str | None) -> None:
        self.journal, self.uri, self.place = journal, uri, place
        self.state = journal.state()
        self.sent = 0  # events, by this object
        self.fault = ""  # of the last try, in one line
        self.ending = threading.Event()  # nothing more is written: send the rest without pauses
        self.stop = threading.Event()  # begin nothing more
        self._client: Any = None
        self._failed_artifact = 0  # tries
        self._rejected = False

    def run(self) -> None:
        """Send until the end: the body of a thread."""
        while not os.path.isfile(self.journal.path):
            if self.ending.is_set():
                return
            self.ending.wait(0.1)
        while not self.stop.is_set():
            try:
                with self.journal.lock() as mine:
                    if mine:
                        self.state = self.journal.state()
                        return self._run()
                self.fault = "another process is sending"
            except OSError as error:
                self.fault = in_one_line(error)
            self._wait(PAUSE)

    def _run(self) -> None:
        delay, failures, before = FIRST_DELAY, 0, 0
        while not self.stop.is_set():
            ending = self.ending.is_set()
            try:
                more = self.step()
            except Exception as error:
                failures += 1
                self.fault = in_one_line(error)
                if failures == 1:
                    before = self.sent
                if failures == 2:  # one alone may be a connection that had been idle for too long
                    log.warning(
                        "MLflow at %s: %s; what is tracked waits in %s", self.uri, self.fault, self.journal.path
                    )
                self._wait(delay)
                delay = min(2 * delay, LAST_DELAY)
                continue
            if not more:
                if failures > 1:
                    log.warning("MLflow at %s is back: %d events sent", self.uri, self.sent - before)
                failures, self.fault = 0, ""
                if ending:
                    return
            delay = FIRST_DELAY
            if not ending:
                self._wait(PAUSE)

    def _wait(self, seconds: float) -> None:
        if self.ending.is_set():
            self.stop.wait(min(seconds, FIRST_DELAY))
        else:
            self.ending.wait(seconds)

    def step(self) -> bool:
        """Send the next events, and say whether there are more. Raises what MLflow raises."""
        size = self.journal.path.stat().st_size  # what comes meanwhile is left for the next time
        found = self.journal.read(self.state.sent)
        if not found:
            return False
        # Those that go together, or one that goes alone: after a failure nothing else is sent again.
        together = list(itertools.takewhile(lambda pair: pair[0]["kind"] not in ALONE, found)) or found[:1]
        self._connect()
        try:
            self._send([event for event, _ in together])
        except Exception as error:
            if _code(error) == GONE:  # another store, or this one made anew: it gets everything
                self.state = State(self.journal.first()["key"])
                self.journal.save(self.state)
            raise
        self.state.sent = together[-1][1]
        self.journal.save(self.state)
        self.sent += len(together)
        return self.state.sent < size

    def _connect(self) -> None:
        """Have a client, and a run on the server."""
        from mlflow import MlflowClient

        if self._client is None:
            # One line of ours says what several tracebacks of theirs would.
            for name in ("mlflow", "alembic"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            self._client = MlflowClient(self.uri)
        if self.state.run_id is None:
            self.state = self._run_of(self.journal.first())
            self.journal.save(self.state)

    def _run_of(self, first: Event) -> State:
        """Find the journal's run, or the one that a checkpoint remembers, or make one."""
        from mlflow.entities import RunTag

        client, key = self._client, first["key"]
        experiment = client.get_experiment_by_name(first["experiment"])
        number = experiment.experiment_id if experiment else client.create_experiment(first["experiment"], self.place)
        if found := client.search_runs([number], f"tags.`{KEY}` = '{key}'", max_results=1):
            return State(key, found[0].info.run_id, earlier=int(found[0].data.tags.get(EARLIER, 0)))
        if run := self._remembered(first["run_id"]):
            earlier = int(run.data.tags.get("attempt", 0))
            client.log_batch(run.info.run_id, tags=[RunTag(KEY, key), RunTag(EARLIER, str(earlier))])
            return State(key, run.info.run_id, earlier=earlier)
        run = client.create_run(number, first["time"], {KEY: key}, run_name=first["name"])
        return State(key, run.info.run_id)

    def _remembered(self, run_id: str | None) -> Any:
        try:
            return self._client.get_run(run_id) if run_id else None
        except Exception as error:
            if _code(error) == GONE:
                return None
            raise

    def _send(self, events: list[Event]) -> None:
        for kind, most in MOST.items():
            items = [item for event in events for item in self._items(event) if item.kind == kind]
            if kind == "tags":
                items = list({item.key: item for item in items}.values())  # the last one holds
            for start in range(0, len(items), most):
                self._batch(kind, items[start : start + most])
        for event in events:
            if event["kind"] in ("attempt", "finish"):
                self._status(event)
            elif event["kind"] == "artifact":
                self._artifact(event)
            elif event["kind"] == "damaged":
                self._reject(event["line"], ValueError("a damaged line of the journal"))

    def _items(self, event: Event) -> list[Item]:
        match event["kind"]:
            case "metrics":
                time, step = event["time"], event["step"]
                return [Item("metrics", key, float(value), time, step) for key, value in event["values"].items()]
            case "parameters":
                changed = {f"changed.{key}": value for key, value in event["changed"].items()}
                return [Item("params", *pair) for pair in event["values"].items()] + _tags(changed)
            case "attempt":
                number = self.state.earlier + event["number"]
                facts = {f"attempt.{number}.{name}": fact for name, fact in event["facts"].items()}
                return _tags({"attempt": number} | facts | event["tags"])
            case "tags":
                return _tags(event["values"])
        return []

    def _batch(self, kind: str, items: list[Item]) -> None:
        """One request. When it is refused its halves are tried, until those at fault are found and put aside."""
        from mlflow.entities import Metric, Param, RunTag

        make: Callable[[Item], Any] = {
            "metrics": lambda item: Metric(item.key, item.value, item.time, item.step),
            "params": lambda item: Param(item.key, str(item.value)[: LONGEST[kind]]),
            "tags": lambda item: RunTag(item.key, str(item.value)[: LONGEST[kind]]),
        }[kind]
        try:
            self._client.log_batch(self.state.run_id, **{kind: [make(item) for item in items]})
        except Exception as error:
            if len(items) == 1 or _code(error) not in REFUSED:
                self._refused(items[0]._asdict(), error)
            else:
                half = len(items) // 2
                self._batch(kind, items[:half])
                self._batch(kind, items[half:])

    def _refused(self, what: Any, error: Exception) -> None:
        """Put aside what the server refuses for good, so that it is not in the way of what comes after it."""
        if _code(error) not in REFUSED:
            raise error
        self._client.get_run(self.state.run_id)  # fails where it is no MLflow that answers so: then all have to wait
        self._reject(what, error)

    def _status(self, event: Event) -> None:
        try:
            if event["kind"] == "attempt":
                self._client.update_run(self.state.run_id, "RUNNING")
            else:
                self._client.set_terminated(self.state.run_id, event["status"], event["time"])
        except Exception as error:
            self._refused(event, error)

    def _artifact(self, event: Event) -> None:
        """Upload a file. Its store may fail on its own: metrics do not wait for that for long."""
        path = Path(event["path"])
        try:
            if path.is_file():
                self._client.log_artifact(self.state.run_id, str(path), event["folder"])
            else:
                self._reject(event, FileNotFoundError(f"{path}: no such file"))
        except Exception as error:
            self._client.get_run(self.state.run_id)
            self._failed_artifact += 1
            if self._failed_artifact < ARTIFACT_TRIES:
                raise
            self._reject(event, error)
        self._failed_artifact = 0

    def _reject(self, what: Any, error: Exception) -> None:
        why = in_one_line(error)
        if not self._rejected:
            self._rejected = True
            log.warning("MLflow at %s refuses: %s; it goes to %s/rejected.jsonl", self.uri, why, self.journal.folder)
        self.journal.reject(what, why)


def _code(error: Exception) -> str | None:
    return getattr(error, "error_code", None)


def _tags(values: dict[str, Any]) -> list[Item]:
    return [Item("tags", key, value) for key, value in values.items()]
