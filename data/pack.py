"""Packs: as many samples as fit a token budget, in stream order, never cutting one."""

from collections.abc import Callable

from data.processor import Encoded
from data.sample import DataError, Sample
from data.stream import Stream


class Packs:
    """An endless iterator of lists of samples whose costs add up to at most `budget` tokens."""

    def __init__(
        self, stream: Stream, encode: Callable[[Sample], Encoded], cost: Callable[[Encoded], int], budget: int
    ) -> None:
        self.stream, self.encode, self.cost, self.budget = stream, encode, cost, budget
        self._waiting: Encoded | None = None
        self._primed: list[Encoded] | None = None
        self._primed_state: dict = {}

    def __iter__(self) -> "Packs":
        return self

    def prime(self) -> None:
        """Read the next pack now, so that bad data shows before anything expensive is built."""
        state = self.state()
        self._primed = next(self)
        self._primed_state = state

    def __next__(self) -> list[Encoded]:
        if self._primed is not None:
            pack, self._primed = self._primed, None
            return pack
        return self._fill()

    def _fill(self) -> list[Encoded]:
        pack: list[Encoded] = []
        room = self.budget
        while True:
            if self._waiting is None:
                self._waiting = self.encode(next(self.stream))
            cost = self.cost(self._waiting)
            if cost > self.budget:
                raise DataError(
                    f"{self._waiting.sample.place}: {cost} tokens, more than the budget of {self.budget}; "
                    "raise train.tokens or lower model.max_pixels"
                )
            if cost > room:
                return pack
            pack.append(self._waiting)
            room -= cost
            self._waiting = None

    def state(self) -> dict:
        """The stream's state at the first sample that was not handed out yet."""
        if self._primed is not None:
            return self._primed_state
        # The waiting sample was the last one drawn: on resume it is drawn again.
        return self.stream.state(before_last=self._waiting is not None)

    def restore(self, state: dict) -> None:
        self._waiting = self._primed = None
        self.stream.restore(state)
