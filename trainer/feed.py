"""The batches of the next step, made by a thread while the current one is computed."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from data.pack import Packs
from data.processor import Encoded
from data.threads import Threads
from model.batch import Batch

LONGEST = 5.0  # seconds that the end waits for a batch in the making


class Feed:
    """Hands out the batches of one step after the other."""

    def __init__(self, packs: Packs, collate: Callable[[list[Encoded]], Batch], micro_steps: int) -> None:
        self.packs, self.collate, self.micro_steps = packs, collate, micro_steps
        self.state: dict[str, Any] = packs.state()  # of the stream, behind what was handed out
        self._thread = Threads(1, "feed")
        self._next: Future[tuple[list[Batch], dict[str, Any]]] | None = None

    def take(self, more: bool) -> list[Batch]:
        """The batches of a step, one per micro-step; `more`: another step is coming. Raises what reading raised."""
        ready = self._next or self._thread.submit(self._make)
        self._next = None
        batches, self.state = ready.result()
        if more:
            self._next = self._thread.submit(self._make)
        return batches

    def close(self) -> None:
        """Let go of the data. A batch in the making is waited for, but not for long."""
        if self._next:
            with contextlib.suppress(Exception):
                self._next.result(LONGEST)
        self._thread.close()
        self.packs.close()

    def _make(self) -> tuple[list[Batch], dict[str, Any]]:
        batches = [self.collate(next(self.packs)) for _ in range(self.micro_steps)]
        return batches, self.packs.state()
