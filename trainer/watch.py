"""Who died, and who stalls. This side runs on every rank; trainer/monitor.py is the other, on rank 0.

Rank 0 holds a connection to every rank, which the system closes when that rank ends: so an end is known at once,
however it came, and never guessed from a silence. Without it the others would wait in a collective for half an hour.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from trainer.monitor import CONNECT, GATHER, TICK, UNTIMED, Monitor, keep_alive

GRACE = 10.0  # seconds that the main thread has to end by itself


class WatchConfig(BaseModel):
    """When ranks count as stalled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stall_seconds: float = Field(
        900.0, gt=0, description="no rank gets further for so long: their stacks are written; twice that ends the run"
    )


class Watch:
    """A rank's side. Where the main thread is goes to rank 0; when another rank ends, this one does too."""

    def __init__(self, config: WatchConfig, stacks: Path, rank: int, ranks: int) -> None:
        """Every rank must construct one at the same time; `stacks` is the folder for those of stalled ranks."""
        self.rank = rank
        self.reason: str | None = None  # why the run ends
        self.at_end: Callable[[], None] = lambda: None  # called before this process is ended from here
        self._at, self._told = (0, "start", 0), (0, "", 0)
        self.stop_asked = False  # of any rank
        self._stop_told = False
        self._failure: str | None = None  # of this rank
        self._failure_told = False
        self._closing, self._ended = threading.Event(), threading.Event()
        key = secrets.token_hex(16)
        self._monitor = Monitor(ranks, key, config.stall_seconds, stacks) if rank == 0 else None
        found = [(self._monitor.port, key) if self._monitor else None]
        torch.distributed.broadcast_object_list(found)
        assert found[0] is not None
        port, key = found[0]
        self._line = keep_alive(socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=CONNECT))
        self._send(key, (rank, socket.gethostname(), os.getpid()))
        # Often enough for the shortest time that counts as a stall, and no more: there may be thousands.
        self._pause, self._next = min(5.0, config.stall_seconds / 10), 0.0
        self._thread = threading.Thread(target=self._serve, daemon=True, name="watch")
        self._thread.start()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
        else:
            self.failed(error)

    def at(self, step: int, phase: str, part: int = 0) -> None:
        """Where the main thread is; `part`: how far within a phase. Costs nothing."""
        self._at = (step, phase, part)

    def ask_to_stop(self) -> None:
        """Let all ranks know, within about a second, that one was told to stop."""
        self.stop_asked = True

    def failed(self, error: BaseException) -> str | None:
        """Tell that this rank ends by an error. Returns why the run ends: perhaps another rank was first."""
        self._failure = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
        self._ended.wait(GATHER + 8 * TICK)
        return self.reason

    def close(self) -> None:
        """This rank ends as it should."""
        self._closing.set()
        self._thread.join(4 * TICK)
        if self._monitor:  # which the others would miss
            self._monitor.join(GRACE)

    def _serve(self) -> None:
        try:
            while not self._closing.is_set():
                while self._line.poll(TICK):
                    kind, content = json.loads(self._line.recv_bytes())
                    if kind == "stop":
                        self.stop_asked = self._stop_told = True
                    elif kind == "stacks?":
                        self._send("stacks", stacks_of_threads())
                    else:
                        self._end(content, self.rank == 0)
                self._tell()
            self._send("bye", None)
        except (EOFError, OSError):
            if not self._closing.is_set():
                self._end("rank 0 is gone without a word", self.rank == 1 or os.environ.get("LOCAL_RANK") == "0")

    def _tell(self) -> None:
        phase_changed = (self._at[1] in UNTIMED) != (self._told[1] in UNTIMED)
        if self._told != self._at and (phase_changed or time.monotonic() > self._next):
            self._told, self._next = self._at, time.monotonic() + self._pause
            self._send("at", self._told)
        if self.stop_asked and not self._stop_told:
            self._stop_told = True
            self._send("stop", None)
        if self._failure and not self._failure_told:
            self._failure_told = True
            self._send("failed", self._failure)

    def _send(self, kind: str, content: Any) -> None:
        self._line.send_bytes(json.dumps((kind, content)).encode())

    def _end(self, reason: str, aloud: bool) -> None:
        """End this process, unless the main thread does it in time: it may be in a collective that never ends."""
        self.reason = reason
        if aloud and not (self._failure and self._failure in reason):  # that is said by whoever takes the error
            with contextlib.suppress(OSError):
                print(f"the run ends: {reason}", file=sys.stderr, flush=True)
        self._ended.set()
        if not self._closing.wait(GRACE):
            try:
                self.at_end()
            finally:
                os._exit(1)


def stacks_of_threads() -> dict[str, str]:
    """The stack of every thread of this process, the main thread's first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != threading.main_thread().ident)
    return {names.get(ident, str(ident)): "".join(traceback.format_stack(frame)) for ident, frame in frames}
