"""Rank 0's side of the watch: tells all ranks to end when one has, and says which rank keeps the others waiting."""

import collections
import contextlib
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any

TICK = 0.5  # seconds between two looks
GATHER = 2.0  # seconds that more ends are waited for: the first to be seen need not be the first to have happened
ANSWER = 10.0  # seconds that ranks have to send their stacks
UNTIMED = ("start", "save", "end")  # phases that may take as long as they take
KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4}  # a machine is missed after 30 s
COLLECTIVE = ("torch/distributed/", "deepspeed/comm/")


@dataclass
class Rank:
    """What is known of one rank."""

    number: int
    host: str
    pid: int
    at: tuple[int, str] = (0, "start")
    failure: str | None = None
    stacks: dict[str, str] = field(default_factory=dict)  # by the name of the thread, the main thread's first

    @property
    def main(self) -> str:
        """The main thread's stack, if it has answered."""
        return next(iter(self.stacks.values()), "")

    def __str__(self) -> str:
        return f"rank {self.number} ({self.host}, pid {self.pid})"


class Monitor:
    """A thread that listens to all ranks."""

    def __init__(self, ranks: int, key: bytes, stall_seconds: float, folder: Path) -> None:
        self.stall_seconds, self.folder = stall_seconds, folder
        self._listener = Listener(("", 0), backlog=ranks, authkey=key)
        self.port: int = self._listener.address[1]
        self._ranks: dict[Connection, Rank] = {}
        self._missing: list[Rank] = []
        self._trouble: float | None = None  # when the first was noticed
        self._further = time.monotonic()  # when a rank last got further
        self._asked: float | None = None  # when stacks were asked for
        self._stalled: str | None = None
        self._thread = threading.Thread(target=self._run, args=(ranks,), daemon=True, name="monitor")
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Until every rank has said that it ends, but not for longer."""
        self._thread.join(seconds)

    def _run(self, ranks: int) -> None:
        while len(self._ranks) < ranks:
            with contextlib.suppress(AuthenticationError, EOFError, OSError):  # strangers
                line: Connection = self._listener.accept()
                keep_alive(line)
                self._ranks[line] = Rank(*line.recv())
        self._listener.close()
        while self._ranks:
            for line in self._ready():
                try:
                    self._take(line, *line.recv())
                except (EOFError, OSError):
                    self._missing.append(self._ranks.pop(line))
                    self._trouble = self._trouble or time.monotonic()
            if self._trouble:
                self._end_all()
            else:
                self._look_for_stall()

    def _ready(self) -> list[Connection]:
        return [line for line in wait(list(self._ranks), TICK) if isinstance(line, Connection)]

    def _take(self, line: Connection, kind: str, content: Any) -> None:
        rank = self._ranks[line]
        if kind == "at":
            rank.at, self._further, self._asked, self._stalled = content, time.monotonic(), None, None
        elif kind == "failed":
            rank.failure = content
            self._trouble = self._trouble or time.monotonic()
        elif kind == "stacks":
            rank.stacks = content
        elif kind == "bye":
            del self._ranks[line]

    def _end_all(self) -> None:
        assert self._trouble is not None
        if time.monotonic() - self._trouble < GATHER:
            return
        failed = [rank for rank in (*self._missing, *self._ranks.values()) if rank.failure]
        silent = [rank for rank in self._missing if not rank.failure]
        if silent:
            reason = f"{_names(silent)} is gone without a word: killed, or out of memory?"
        else:
            reason = f"{failed[0]} failed: {failed[0].failure}" if failed else str(self._stalled)
        self._tell_all("end", reason)
        self._trouble = float("inf")  # said once

    def _tell_all(self, kind: str, content: str = "") -> None:
        for line in list(self._ranks):
            with contextlib.suppress(OSError):  # it ended meanwhile
                line.send((kind, content))

    def _look_for_stall(self) -> None:
        now, waited = time.monotonic(), time.monotonic() - self._further
        if waited < self.stall_seconds or any(rank.at[1] in UNTIMED for rank in self._ranks.values()):
            return
        if self._asked is None:
            self._asked = now
            for rank in self._ranks.values():
                rank.stacks = {}
            self._tell_all("stacks?")
        elif self._stalled is None and (now - self._asked > ANSWER or all(r.stacks for r in self._ranks.values())):
            self._stalled = self._report(list(self._ranks.values()))
            print(f"watch: {self._stalled}", flush=True)
        elif waited > 2 * self.stall_seconds and self._stalled:
            self._trouble = now - GATHER

    def _report(self, ranks: list[Rank]) -> str:
        """Write the stacks, once for ranks whose main threads are at the same place, and say who is waited for."""
        late, why = suspects(ranks)
        alike = collections.defaultdict(list)
        for rank in ranks:
            alike[rank.main].append(rank)
        path = self.folder / f"step_{ranks[0].at[0]}.txt"
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(f"===== {_names(same)}\n{_text(same[0].stacks)}" for same in alike.values()))
        return f"no rank got further for {self.stall_seconds:.0f} s; {_names(late)} {why}; stacks of all: {path}"


def keep_alive(line: Connection) -> None:
    """Have the system find out when the machine at the other end is gone."""
    with socket.socket(fileno=os.dup(line.fileno())) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def suspects(ranks: list[Rank]) -> tuple[list[Rank], str]:
    """The ranks that the others wait for, as far as can be told, and what tells them apart."""
    first = min(rank.at for rank in ranks)
    tests = [
        ([rank for rank in ranks if not rank.stacks], "does not answer: stopped, or busy outside Python"),
        ([rank for rank in ranks if rank.at == first], f"is still at step {first[0]}, {first[1]}"),
        ([rank for rank in ranks if not _waits(rank)], "is not in a collective, as the others are"),
    ]
    for late, why in tests:
        if 0 < len(late) < len(ranks):
            return late, why
    return ranks, "are all at the same place"


def _waits(rank: Rank) -> bool:
    return any(part in line for line in rank.main.splitlines()[-6:] for part in COLLECTIVE)


def _text(stacks: dict[str, str]) -> str:
    return "\n".join(f"{name}:\n{stack}" for name, stack in stacks.items()) or "no answer\n"


def _names(ranks: list[Rank]) -> str:
    return ", ".join(map(str, ranks[:4])) + (f" and {len(ranks) - 4} more" if ranks[4:] else "")
