"""What is tracked, on disk until the server has it.

runs/NAME/tracking/journal.jsonl    one event a line, in order, kept for good; the first names the run
runs/NAME/tracking/state.json       the MLflow run, and up to which byte of the journal the server has everything
runs/NAME/tracking/rejected.jsonl   what the server refused for good, and why
runs/NAME/tracking/lock             held by the process that sends
"""

import contextlib
import fcntl
import itertools
import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer.redact import redact

Event = dict[str, Any]  # kind, time (ms since 1970), and what the kind brings along
CHUNK = 1 << 18  # bytes of the journal that are sent before the state is written


@dataclass
class State:
    """How far the server is. Lost, all is sent again, and what the server has stays as it is."""

    key: str | None = None  # of the journal that this is about
    run_id: str | None = None
    sent: int = 0  # bytes
    earlier: int = 0  # attempts on the MLflow run that this journal does not know


@dataclass
class History:
    """What a journal holds already."""

    attempts: int = 0
    parameters: dict[str, str] = field(default_factory=dict)
    metrics: set[tuple[str, int]] = field(default_factory=set)  # of the steps that are taken again


class Journal:
    """The files of one run. One process appends, one sends; each may be killed at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "journal.jsonl"
        self._file: Any = None
        self._size = 0

    def open(self, first: Event) -> None:
        """Make it ready to append to. `first` begins a new one; a line torn by a kill is cut off an old one."""
        if self._file:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+b", buffering=0)
        try:
            whole = _whole(file.fileno())
            self._size = self._size if 0 < self._size <= whole else whole
            os.truncate(file.fileno(), self._size)
        except OSError:
            file.close()
            raise
        self._file = file
        if not self._size:
            self.append([first])

    def append(self, events: list[Event]) -> None:
        """Write all of them, or none and raise OSError."""
        left = memoryview("".join(json.dumps(event) + "\n" for event in events).encode())
        try:
            size = self._size + len(left)
            while left:
                left = left[self._file.write(left) :]  # a disk that fills up takes a part
            self._size = size
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self._file.fileno(), self._size)
            self._file.close()
            self._file = None  # opened again, it is cut again
            raise

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def read(self, start: int, most: int = CHUNK) -> list[tuple[Event, int]]:
        """What stands from a byte on in whole lines, each with its end. A damaged line comes as an event `damaged`."""
        with self.path.open("rb") as file:
            file.seek(start)
            found = file.read(most)
            while found and b"\n" not in found and (more := file.read(most)):
                found += more
        lines = found[: found.rfind(b"\n") + 1].splitlines(keepends=True)
        ends = itertools.accumulate(map(len, lines), initial=start)
        return list(zip(map(_event, lines), itertools.islice(ends, 1, None), strict=True))

    def first(self) -> Event:
        """The event that names the run."""
        with self.path.open("rb") as file:
            return _event(file.readline())

    def history(self, after: int | None) -> History:
        """What it holds: metrics of later steps than `after`, or none of them."""
        found = History()
        with self.path.open("rb") as file:
            for event in map(_event, file):
                if event["kind"] == "attempt":
                    found.attempts += 1
                elif event["kind"] == "parameters":
                    found.parameters |= event["values"] | event["changed"]
                elif event["kind"] == "metrics" and after is not None and event["step"] > after:
                    found.metrics |= {(key, event["step"]) for key in event["values"]}
        return found

    def waiting(self) -> int:
        """Events that the server has not got."""
        start, count = self.state().sent, 0
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            file.seek(start)
            while found := file.read(1 << 20):
                count += found.count(b"\n")
        return count

    def state(self) -> State:
        """The one last saved, if it is of this journal."""
        try:
            state = State(**json.loads((self.folder / "state.json").read_text()))
            return state if state.key == self.first()["key"] else State()
        except (OSError, ValueError, TypeError, KeyError):
            return State()

    def save(self, state: State) -> None:
        part = self.folder / "state.json.part"
        part.write_text(json.dumps(asdict(state)))
        part.replace(self.folder / "state.json")

    def reject(self, what: Any, why: str) -> None:
        """Put aside what the server refuses."""
        with (self.folder / "rejected.jsonl").open("a") as file:
            file.write(json.dumps({"why": redact(why), "what": what}) + "\n")

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Whether this process alone sends, for as long as the context lasts."""
        with (self.folder / "lock").open("a") as file:
            mine = True
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                mine = False
            except OSError:  # a file system without locks; what is sent twice is kept once
                pass
            yield mine


def _event(line: bytes) -> Event:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    known = isinstance(event, dict) and "kind" in event
    return event if known else {"kind": "damaged", "line": line.decode(errors="replace")}


def _whole(file: int) -> int:
    """Bytes up to the end of the last whole line."""
    if not os.fstat(file).st_size:
        return 0
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as content:
        return content.rfind(b"\n") + 1
