"""Packs: samples that together fill a token budget, chosen from those waiting, none ever cut."""

from collections import Counter
from typing import Any

from data.bad import LeftOut, Quarantine
from data.loader import Loader
from data.prepare import Outcome, Ready
from data.processor import Encoded


class Packs:
    """An endless iterator of lists of samples whose costs add up to at most `budget` tokens.

    Up to `window` encoded samples wait. A pack takes the oldest, so that none waits for more than `window` packs,
    and of the others those that fill it best.
    """

    def __init__(
        self,
        loader: Loader[Outcome],
        budget: int,
        window: int,
        quarantine: Quarantine,
    ) -> None:
        self.loader, self.budget, self.window, self.quarantine = loader, budget, window, quarantine
        self.shrunk = 0  # samples handed out with smaller pictures since the start of the run
        self._waiting: dict[tuple[int, int, int], Ready] = {}  # by name, the oldest first
        self._primed: list[Encoded] | None = None
        self._primed_state: dict[str, Any] = {}

    def __iter__(self) -> "Packs":
        return self

    def prime(self) -> None:
        """Read the next pack now, so that bad data shows before anything expensive is built."""
        state = self.state()
        self._primed = next(self)
        self._primed_state = state

    def peek(self) -> list[Encoded]:
        """The next pack, which stays the next."""
        if self._primed is None:
            self.prime()
        assert self._primed is not None
        return self._primed

    def __next__(self) -> list[Encoded]:
        """The next pack; DataError when the samples cannot be read or too many cannot be used."""
        if self._primed is not None:
            pack, self._primed = self._primed, None
            return pack
        return self._pack()

    def _pack(self) -> list[Encoded]:
        self._draw()
        pack, room, chosen = [], self.budget, [next(iter(self._waiting))]
        while chosen:
            for name in chosen:
                taken = self._waiting.pop(name)
                pack.append(taken.item)
                room -= taken.cost
                self.shrunk += taken.shrunk
            self._draw()
            chosen = self._filling(room)
        return pack

    def close(self) -> None:
        """Let go of the data: no process or connection is left."""
        self.loader.close()

    def _draw(self) -> None:
        """Let new samples wait in place of those that were taken."""
        while len(self._waiting) < self.window:
            again = bool(self.loader.position.again)  # then it was counted before
            ref, outcome = next(self.loader)
            if isinstance(outcome, LeftOut):
                self.quarantine.leave_out(outcome)
                continue
            if not again:
                self.quarantine.good()
            self._waiting[ref.name] = outcome

    def _filling(self, room: int) -> list[tuple[int, int, int]]:
        """Names of the waiting samples whose costs add up to the most that `room` holds; older ones are preferred.

        Exact: bit c of `sums[n]` says whether some of the first n samples cost c together. It fills better than
        the largest-first rule where samples are of a few sizes, and samples wait less long.
        """
        sums, within = [1], (2 << room) - 1
        for waiting in self._waiting.values():
            sums.append(sums[-1] | sums[-1] << waiting.cost & within)
        total, chosen = sums.pop().bit_length() - 1, []
        for name, waiting in reversed(self._waiting.items()):
            if not sums.pop() >> total & 1:  # the older ones do not add up to it
                chosen.append(name)
                total -= waiting.cost
        return chosen

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as plain JSON: how far the stream is, and which of its samples still wait."""
        if self._primed is not None:
            return self._primed_state
        stream = self.loader.stream.state(self.loader.position, self._waiting)
        return {"stream": stream, "counts": self.quarantine.state() | {"shrunk": self.shrunk}}

    def restore(self, states: list[dict[str, Any]], rank: int, ranks: int) -> None:
        """Go on from the states of all ranks, which may be another number; samples that waited are read again."""
        self._primed, self._waiting = None, {}
        self.loader.restore([state["stream"] for state in states])
        counts = Counter[str]()
        for state in states[rank::ranks]:  # every state's counts are taken on by one rank
            counts.update(state["counts"])
        self.quarantine.restore(counts)
        self.shrunk = counts["shrunk"]


class Prompts(Packs):
    """An endless iterator of lists of `window` samples, in the stream's order; each alone fits the budget."""

    def _pack(self) -> list[Encoded]:
        self._draw()
        taken, self._waiting = self._waiting, {}
        self.shrunk += sum(one.shrunk for one in taken.values())
        return [one.item for one in taken.values()]
