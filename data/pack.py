"""Packs: samples that together fill a token budget, chosen from those waiting, none ever cut."""

from collections.abc import Callable
from typing import Literal

from data.processor import Encoded
from data.sample import DataError, Sample
from data.stream import Stream

IN_VAIN = 1000  # samples dropped in a row, after which the budget is taken to be too small for the set


class Packs:
    """An endless iterator of lists of samples whose costs add up to at most `budget` tokens.

    Up to `window` encoded samples wait. A pack takes the oldest, so that none waits for more than `window` packs,
    and of the others those that fill it best.
    """

    def __init__(
        self,
        stream: Stream,
        encode: Callable[[Sample, int], Encoded],  # with so many image tokens less, at least, where it can be done
        cost: Callable[[Encoded], int],  # tokens; one less for every image token less
        budget: int,
        window: int,
        oversize: Literal["shrink", "drop"],
    ) -> None:
        self.stream, self.encode, self.cost = stream, encode, cost
        self.budget, self.window, self.oversize = budget, window, oversize
        self.shrunk = self.dropped = 0  # samples since the start of the run
        self._dropped_in_a_row = 0
        self._waiting: dict[int, Encoded] = {}  # by running number in the stream, the oldest first
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
        """The next pack; DataError when the samples cannot be read or none fits."""
        if self._primed is not None:
            pack, self._primed = self._primed, None
            return pack
        self._draw()
        pack, room, chosen = [], self.budget, [next(iter(self._waiting))]
        while chosen:
            taken = [self._waiting.pop(number) for number in chosen]
            pack += taken
            room -= sum(map(self.cost, taken))
            self._draw()
            chosen = self._filling(room)
        return pack

    def _draw(self) -> None:
        """Let new samples wait in place of those that were taken."""
        while len(self._waiting) < self.window:
            number = self.stream.taken
            if item := self._fitted(next(self.stream)):
                self._waiting[number] = item

    def _fitted(self, sample: Sample) -> Encoded | None:
        """The sample encoded, its pictures smaller if it would cost more than the budget. None: dropped."""
        item = self.encode(sample, 0)
        cost = self.cost(item)
        if cost > self.budget and self.oversize == "shrink":
            item = self.encode(sample, cost - self.budget)
            cost = self.cost(item)
            self.shrunk += cost <= self.budget
        if cost <= self.budget:
            self._dropped_in_a_row = 0
            return item
        self.dropped += 1
        self._dropped_in_a_row += 1
        if self._dropped_in_a_row == min(IN_VAIN, self.stream.full_pass):
            raise DataError(
                f"{sample.place}: {cost} tokens, more than the budget of {self.budget}, and none of the last "
                f"{self._dropped_in_a_row} samples fits; raise train.tokens or lower model.max_pixels"
            )
        return None

    def _filling(self, room: int) -> list[int]:
        """Numbers of the waiting samples whose costs add up to the most that `room` holds; older ones are preferred.

        Exact: bit c of `sums[n]` says whether some of the first n samples cost c together. It fills better than
        the largest-first rule where samples are of a few sizes, and samples wait less long.
        """
        sums, within = [1], (2 << room) - 1
        for item in self._waiting.values():
            sums.append(sums[-1] | sums[-1] << self.cost(item) & within)
        total, chosen = sums.pop().bit_length() - 1, []
        for number, item in reversed(self._waiting.items()):
            if not sums.pop() >> total & 1:  # the older ones do not add up to it
                chosen.append(number)
                total -= self.cost(item)
        return chosen

    def state(self) -> dict:
        """What `restore` needs, as plain JSON: how far the stream is, and which of its samples still wait."""
        if self._primed is not None:
            return self._primed_state
        counts = {"shrunk": self.shrunk, "dropped": self.dropped}
        return {"stream": self.stream.state(), "waiting": list(self._waiting), **counts}

    def restore(self, state: dict) -> None:
        """Go on from a state: samples from the oldest waiting one on are drawn again, and those waiting encoded."""
        self.stream.restore(state["stream"])
        self._primed, self._waiting = None, {}
        drawn = self.stream.taken
        self.stream.seek(min(state["waiting"], default=drawn))
        while (number := self.stream.taken) < drawn:
            sample = next(self.stream)
            if number in state["waiting"] and (item := self._fitted(sample)):
                self._waiting[number] = item
        self.shrunk, self.dropped = state["shrunk"], state["dropped"]  # those encoded again were counted before
