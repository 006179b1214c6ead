"""A written set once more in a random order: every order is equally likely, and no sample is held in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.shards.index import OFFSET, OFFSETS, Shard
from data.shards.packed import Packed
from data.shards.part import beside


class Stored(NamedTuple):
    """A sample that lies in a shard. Its place in the order stands for its key, which is in the shard alone."""

    key: str
    path: Path
    start: int
    end: int


class Shuffled:
    """The samples of a set in an order that the seed tells."""

    def __init__(self, folder: Path, shards: list[Shard], seed: int) -> None:
        self.paths = [folder / shard.shard for shard in shards]
        self.offsets = [np.fromfile(beside(path, OFFSETS), OFFSET) for path in self.paths]
        self.firsts = np.cumsum([0, *(shard.samples for shard in shards)])  # the first number of each, and of none
        self.order = np.random.default_rng(seed).permutation(len(self))

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def __iter__(self) -> Iterator[Stored]:
        for number in self.order:
            shard = int(np.searchsorted(self.firsts, number, side="right")) - 1
            start, end = self.offsets[shard][number - self.firsts[shard] :][:2]
            yield Stored(str(number), self.paths[shard], int(start), int(end))


def read_packed(stored: Stored) -> Packed:
    """Its members as they are."""
    with stored.path.open("rb") as file:
        file.seek(stored.start)
        return Packed(stored.key, file.read(stored.end - stored.start))
