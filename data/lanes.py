"""Lanes: the fixed parts of a shard set that ranks own, each a function from a turn to a sample.

Lane i of L holds the samples from i N / L to (i + 1) N / L of the N in the set, wherever shards begin and end, so that
all lanes are equally long. Nothing but its number, the seed and the turn says which sample comes next: a lane can be
handed from rank to rank, and put to any turn at once.
"""

import bisect
import itertools
import random
from typing import NamedTuple


class Piece(NamedTuple):
    """Samples that follow each other in a shard and are read together."""

    shard: int
    first: int
    last: int  # behind the last sample


class Ref(NamedTuple):
    """One draw, as places: which sample of which shard, as which turn of which lane."""

    set: int
    lane: int
    turn: int
    epoch: int
    block: int  # of the epoch
    piece: Piece
    sample: int  # number in its shard

    @property
    def name(self) -> tuple[int, int, int]:
        """What tells it from every other draw, and is enough to find it again."""
        return self.set, self.lane, self.turn

    @property
    def place(self) -> tuple[int, int, int]:
        """Where the sample lies: numbers of set, shard and sample, the same in every epoch."""
        return self.set, self.piece.shard, self.sample


class Lane:
    """One lane of a set. Epoch after epoch it hands out its samples once, in a seeded order."""

    def __init__(self, number: tuple[int, int], pieces: list[Piece], per_block: int, seed: int) -> None:
        """`number`: of the set and the lane; `per_block`: pieces whose samples are shuffled together."""
        self.number, self.seed, self.per_block = number, seed, per_block
        self.pieces = pieces
        self.size = sum(piece.last - piece.first for piece in pieces)
        self._epoch, self._blocks, self._starts = -1, [pieces], [0]  # of the epoch in use
        self._block, self._samples = -1, [(pieces[0], 0)]  # of the block in use

    def at(self, turn: int) -> Ref:
        """The sample handed out when `turn` others were before."""
        epoch, within = divmod(turn, self.size)
        if epoch != self._epoch:
            self._arrange(epoch)
        block = bisect.bisect_right(self._starts, within) - 1
        if block != self._block:
            self._shuffle(block)
        piece, sample = self._samples[within - self._starts[block]]
        return Ref(*self.number, turn, epoch, block, piece, sample)

    def _arrange(self, epoch: int) -> None:
        """Pieces in the epoch's order, in blocks."""
        order = list(self.pieces)
        self._random(epoch, "order").shuffle(order)
        self._blocks = [order[n : n + self.per_block] for n in range(0, len(order), self.per_block)]
        sizes = [sum(piece.last - piece.first for piece in block) for block in self._blocks]
        self._epoch, self._starts, self._block = epoch, [0, *itertools.accumulate(sizes[:-1])], -1

    def _shuffle(self, block: int) -> None:
        self._samples = [(piece, n) for piece in self._blocks[block] for n in range(piece.first, piece.last)]
        self._random(self._epoch, str(block)).shuffle(self._samples)
        self._block = block

    def _random(self, epoch: int, purpose: str) -> random.Random:
        return random.Random(f"{self.seed}/{self.number}/{epoch}/{purpose}")


def pieces_of(starts: list[int], lane: int, lanes: int, size: int) -> list[Piece]:
    """The pieces of a lane: of at most `size` samples, none over the end of a shard.

    `starts`: the number in the set of every shard's first sample, and the number of all samples.
    """
    first, last = lane * starts[-1] // lanes, (lane + 1) * starts[-1] // lanes
    pieces = []
    for shard in range(bisect.bisect_right(starts, first) - 1, len(starts) - 1):
        begin, end = max(first - starts[shard], 0), min(last, starts[shard + 1]) - starts[shard]
        if begin >= end:
            break
        pieces += [Piece(shard, n, min(n + size, end)) for n in range(begin, end, size)]
    return pieces
