"""From the training loop to the journal: a bounded queue, and a thread that writes what is in it."""

import importlib.metadata
import logging
import math
import subprocess
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import yaml

from data.sample import UserError
from trainer.journal import Event, History, Journal
from trainer.redact import in_one_line, redact

log = logging.getLogger(__name__)
PACKAGES = ("torch", "transformers", "deepspeed", "pillow", "mlflow")
BATCH = 256  # events written at once
RETRY = 1.0  # seconds until a disk that failed is tried again


class EventQueue:
    """Takes events without waiting, and writes them into a journal that `first` begins."""

    def __init__(self, journal: Journal, first: dict[str, Any], most: int) -> None:
        self.journal, self.first, self.most = journal, _event("run", first), most
        self.dropped = 0
        self._events: deque[Event] = deque()
        self._lines: list[Event] = []  # of the journal, to be written next
        self._history = History()
        self._wake, self._closed, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracking: journal", daemon=True)
        self._thread.start()

    def put(self, kind: str, **content: Any) -> None:
        """Take in an event of now."""
        if self._closed.is_set():
            return
        if len(self._events) >= self.most:
            self.dropped += 1
            return
        self._events.append(_event(kind, content))
        self._wake.set()

    def close(self, patience: float) -> int:
        """Write the rest, within so many seconds. Returns how many events were lost."""
        self._closed.set()
        self._wake.set()
        self._thread.join(patience)
        self._stop.set()
        return self.dropped + len(self._lines) + len(self._events)

    def _run(self) -> None:
        failing = overrun = False
        while not self._stop.is_set():
            closed = self._closed.is_set()  # then all that will come is there
            try:
                self.journal.open(self.first)
                while self._lines or self._events:
                    self._take()
                    self.journal.append(self._lines)
                    self._lines = []
                failing = False
            except OSError as error:
                if not failing:
                    why = in_one_line(error)
                    log.warning(
                        "%s: %s; up to %d events wait until it can be written", self.journal.path, why, self.most
                    )
                failing = True
            if self.dropped and not overrun:
                overrun = True
                log.warning(
                    "%s: more events than tracking.queue=%d waited; some are lost", self.journal.path, self.most
                )
            if failing:
                self._stop.wait(RETRY)
            elif closed:
                break
            else:
                self._wake.wait()
                self._wake.clear()
        self.journal.close()

    def _take(self) -> None:
        """The next events in the journal's form. One that has none is dropped."""
        while self._events and len(self._lines) < BATCH:
            try:
                self._lines += self._form(self._events[0])
            except OSError:
                raise
            except Exception as error:
                self.dropped += 1
                log.warning("%s: an event is lost: %s", self.journal.path, in_one_line(error))
            self._events.popleft()

    def _form(self, event: Event) -> list[Event]:
        match event["kind"]:
            case "attempt":
                return [self._attempt(event)]
            case "parameters":
                return [self._parameters(event)]
            case "metrics":
                values = {key: _number(value) for key, value in event["values"].items() if self._is_new(key, event)}
                return [event | {"values": values}] if values else []
            case "tags":
                return [event | {"values": _texts(redact(event["values"]))}]
            case "artifact":
                path = self._redacted(event["path"]) if event["redacted"] else event["path"]
                return [event | {"path": str(path.absolute())}]
        return [event]

    def _attempt(self, event: Event) -> Event:
        self._history = self.journal.history(event["step"] if event["same"] else None)
        facts = _texts(redact(event["facts"]))
        return event | {"number": self._history.attempts + 1, "facts": facts, "tags": _provenance()}

    def _parameters(self, event: Event) -> Event:
        """MLflow's parameters cannot change: what differs from before is kept apart."""
        given, known = _texts(_flat(redact(event["values"]))), self._history.parameters
        values = {key: value for key, value in given.items() if key not in known}
        changed = {key: value for key, value in given.items() if known.get(key, value) != value}
        known |= given
        return event | {"values": values, "changed": changed}

    def _is_new(self, key: str, event: Event) -> bool:
        """Whether the journal has no value of this step. What the machine did is another thing in every attempt."""
        return (key, event["step"]) not in self._history.metrics or key.startswith("system/")

    def _redacted(self, path: Path) -> Path:
        """A copy of a YAML file without credentials."""
        try:
            content = yaml.safe_load(path.read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{path}: {error}") from error
        copy = self.journal.folder / path.name
        copy.write_text(yaml.safe_dump(redact(content), sort_keys=False))
        return copy


def _event(kind: str, content: dict[str, Any]) -> Event:
    return {"kind": kind, "time": int(time.time() * 1000), **content}


def _provenance() -> dict[str, str]:
    """Versions of what matters, and the git revision where there is one."""
    tags = {f"version.{name}": importlib.metadata.version(name) for name in PACKAGES}
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        revision = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine, or a slow disk
        revision = ""
    return tags | {"git": revision or "unknown"}


def _number(value: float) -> float | str:
    """JSON has no name for what is not finite."""
    return float(value) if math.isfinite(value) else str(float(value))


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
