"""Rank 0's side of the watch: tells all ranks to end when one has, and says which rank keeps the others waiting."""

import collections
import contextlib
import json
import resource
import socket
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

TICK = 0.5  # seconds between two looks
CONNECT = 120.0  # seconds in which all ranks must have connected
GATHER = 2.0  # seconds that more ends are waited for: the first to be seen need not be the first to have happened
ANSWER = 10.0  # seconds that ranks have to send their stacks
PHASES = ("start", "data", "rollout", "measure", "reference", "step", "save", "end")  # in their order
UNTIMED = ("start", "save", "end")  # may take as long as they take
KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4}  # a machine is missed after 30 s
COLLECTIVE = ("torch/distributed/", "deepspeed/comm/")


@dataclass
class Rank:
    """What is known of one rank."""

    number: int
    host: str
    pid: int
    at: tuple[int, str, int] = (0, "start", 0)
    failure: str | None = None
    stacks: dict[str, str] = field(default_factory=dict)  # by the name of the thread, the main thread's first

    @property
    def main(self) -> str:
        """The main thread's stack, if it has answered."""
        return next(iter(self.stacks.values()), "")

    @property
    def reached(self) -> tuple[int, int, int]:
        """Step, phase and part of it, in the order in which they are reached."""
        step, phase, part = self.at
        return step, PHASES.index(phase), part

    def __str__(self) -> str:
        return f"rank {self.number} ({self.host}, pid {self.pid})"


class Monitor:
    """A thread that listens to all ranks."""

    def __init__(self, ranks: int, key: str, stall_seconds: float, folder: Path) -> None:
        self.ranks, self.key, self.stall_seconds, self.folder = ranks, key, stall_seconds, folder
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a descriptor per rank
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._server = socket.create_server(("", 0), family=family, backlog=ranks, dualstack_ipv6=both)
        self.port: int = self._server.getsockname()[1]
        self._strangers: set[Connection] = set()  # connected, but did not show the key yet
        self._ranks: dict[Connection, Rank] = {}
        self._seen: set[int] = set()
        self._missing: list[Rank] = []
        self._trouble: float | None = None  # when the first was noticed
        self._fault: str | None = None  # other than that of a rank
        self._started = self._further = time.monotonic()  # when a rank last got further
        self._asked: float | None = None  # when stacks were asked for
        self._stalled: str | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="monitor")
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Until every rank has said that it ends, but not for longer."""
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            while len(self._seen) < self.ranks or self._ranks:
                for line in wait([self._server, *self._strangers, *self._ranks], TICK):
                    self._listen(line)
                if self._trouble:
                    self._end_all()
                elif len(self._seen) < self.ranks and time.monotonic() - self._started > CONNECT:
                    absent = sorted(set(range(self.ranks)) - self._seen)
                    self._fault = f"ranks {absent[:10]} have not reported within {CONNECT:.0f} s"
                    self._trouble = time.monotonic() - GATHER
                else:
                    self._look_for_stall()
                time.sleep(TICK)  # what comes meanwhile is taken together: the main thread needs this interpreter too
        except Exception as error:
            self._tell_all("end", f"the watch itself failed: {error!r}")
        self._server.close()

    def _listen(self, line: Any) -> None:
        if line is self._server:
            self._strangers.add(keep_alive(self._server.accept()[0]))
            return
        try:
            kind, content = json.loads(line.recv_bytes())
            if line in self._strangers:
                self._greet(line, kind, content)
            else:
                self._take(line, kind, content)
        except (EOFError, OSError, ValueError, TypeError):
            self._strangers.discard(line)
            if line in self._ranks:
                self._missing.append(self._ranks.pop(line))
                self._trouble = self._trouble or time.monotonic()

    def _greet(self, line: Connection, kind: str, content: Any) -> None:
        self._strangers.discard(line)
        if kind == self.key:
            self._ranks[line] = Rank(*content)
            self._seen.add(content[0])

    def _take(self, line: Connection, kind: str, content: Any) -> None:
        rank = self._ranks[line]
        if kind == "at":
            rank.at, self._further, self._asked, self._stalled = tuple(content), time.monotonic(), None, None
        elif kind == "stop":
            self._tell_all("stop")
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
            reason = f"{failed[0]} failed: {failed[0].failure}" if failed else str(self._fault or self._stalled)
        self._tell_all("end", reason)
        self._trouble = float("inf")  # said once

    def _tell_all(self, kind: str, content: str = "") -> None:
        for line in list(self._ranks):
            with contextlib.suppress(OSError):  # it ended meanwhile
                line.send_bytes(json.dumps((kind, content)).encode())

    def _look_for_stall(self) -> None:
        now, waited = time.monotonic(), time.monotonic() - self._further
        if waited < self.stall_seconds or not self._ranks:
            return
        if min(self._ranks.values(), key=lambda rank: rank.reached).at[1] in UNTIMED:
            return
        if self._asked is None:
            self._asked = now
            for rank in self._ranks.values():
                rank.stacks = {}
            self._tell_all("stacks?")
        elif self._stalled is None and (now - self._asked > ANSWER or all(r.stacks for r in self._ranks.values())):
            self._stalled = self._report(list(self._ranks.values()))
            with contextlib.suppress(OSError):
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
        text = "\n".join(f"===== {_names(same)}\n{_text(same[0].stacks)}" for same in alike.values())
        # By another thread, as what hangs may be the file system.
        writing = threading.Thread(target=_write, args=(path, text), daemon=True)
        writing.start()
        writing.join(ANSWER)
        return f"no rank got further for {self.stall_seconds:.0f} s; {_names(late)} {why}; stacks of all: {path}"


def keep_alive(connection: socket.socket) -> Connection:
    """The connection for messages. The system finds out when the machine at the other end is gone, or silent midway."""
    connection.setblocking(True)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return Connection(connection.detach())


def suspects(ranks: list[Rank]) -> tuple[list[Rank], str]:
    """The ranks that the others wait for, as far as can be told, and what tells them apart."""
    first = min(ranks, key=lambda rank: rank.reached)
    tests = [
        ([rank for rank in ranks if not rank.stacks], "does not answer: stopped, or busy outside Python"),
        ([rank for rank in ranks if rank.at[:2] == first.at[:2]], f"is still at step {first.at[0]}, {first.at[1]}"),
        ([rank for rank in ranks if not _waits(rank)], "is not in a collective, as the others are"),
    ]
    for late, why in tests:
        if 0 < len(late) < len(ranks):
            return late, why
    return ranks, "are all at the same place"


def _waits(rank: Rank) -> bool:
    return any(part in line for line in rank.main.splitlines()[-6:] for part in COLLECTIVE)


def _write(path: Path, text: str) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _text(stacks: dict[str, str]) -> str:
    return "\n".join(f"{name}:\n{stack}" for name, stack in stacks.items()) or "no answer\n"


def _names(ranks: list[Rank]) -> str:
    return ", ".join(map(str, ranks[:4])) + (f" and {len(ranks) - 4} more" if ranks[4:] else "")
