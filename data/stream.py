"""An endless stream of samples from a shard set, split into lanes so that it can be resumed exactly.

Lane i of L owns the shards i, i + L, i + 2L, ...; in every epoch it takes them in a seeded order and hands
out their samples shuffled in blocks. As lanes take turns, nothing but the number of samples handed out is needed
to go on where it stopped, and only the current shards are read again. Ranks own lanes; other ranks get other lanes.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from data.sample import DataError, Sample
from data.shards import Shard, load_index, read_shard


class DataConfig(BaseModel):
    """Where the samples come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Path = Field(description="folder of the shard set to train on")
    heldout: Path | None = Field(None, description="folder of the shard set to evaluate on")
    lanes: int = Field(64, ge=1, description="lanes of the stream; at least one per rank, at most one per shard")
    block: int = Field(256, ge=1, description="samples a lane shuffles at a time")
    window: int = Field(64, ge=1, description="encoded samples that wait, for packs to be filled from")
    oversize: Literal["shrink", "drop"] = Field(
        "shrink", description="of a sample above train.tokens: make its images smaller, or leave it out"
    )


class Lane:
    """One lane: an endless iterator of samples, of which `taken` were handed out so far."""

    def __init__(self, folder: Path, shards: list[Shard], number: int, seed: int, block: int) -> None:
        self.folder, self.shards, self.number, self.seed, self.block = folder, shards, number, seed, block
        self.size = sum(shard.samples for shard in shards)
        self.seek(0)

    def seek(self, taken: int) -> None:
        """Go on as if so many samples had been handed out."""
        self.taken = taken
        self._samples: Iterator[Sample] | None = None

    def __next__(self) -> Sample:
        epoch, within = divmod(self.taken, self.size)
        if self._samples is None or not within:
            self._samples = self._rest(epoch, within)
        sample = next(self._samples)
        self.taken += 1
        return sample.model_copy(update={"epoch": epoch})

    def _rest(self, epoch: int, taken: int) -> Iterator[Sample]:
        """The rest of an epoch."""
        order = list(self.shards)
        self._random(epoch, "order").shuffle(order)
        done, within = divmod(taken, self.block)
        source = self._read(order, done * self.block)
        for number in itertools.count(done):
            block = list(itertools.islice(source, self.block))
            if not block:
                return
            self._random(epoch, str(number)).shuffle(block)
            yield from block[within if number == done else 0 :]

    def _read(self, order: list[Shard], skip: int) -> Iterator[Sample]:
        for shard in order:
            if skip < shard.samples:
                yield from read_shard(self.folder / shard.shard, skip, shard.samples)
            skip = max(0, skip - shard.samples)

    def _random(self, epoch: int, purpose: str) -> random.Random:
        return random.Random(f"{self.seed}/{self.number}/{epoch}/{purpose}")


class Stream:
    """The lanes of one rank, a sample from each in turn, without end."""

    def __init__(self, config: DataConfig, rank: int, ranks: int, seed: int) -> None:
        folder, shards = config.train, load_index(config.train)
        lanes = min(config.lanes, len(shards))
        if lanes < ranks:
            raise DataError(
                f"{folder}: {lanes} lanes for {ranks} ranks; write at least {ranks} shards or raise data.lanes"
            )
        # Tells a changed set from the one a state belongs to.
        self.fingerprint = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]
        self.lanes = [Lane(folder, shards[i::lanes], i, seed, config.block) for i in range(rank, lanes, ranks)]
        # Every sample is among so many draws in a row: at worst they miss it as the first of one epoch of the longest
        # lane, and get it as the last of the next.
        self.full_pass = len(self.lanes) * (2 * max(lane.size for lane in self.lanes) - 1)
        self.taken = 0  # samples handed out, which is the running number of the next

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Sample:
        sample = next(self.lanes[self.taken % len(self.lanes)])
        self.taken += 1
        return sample

    def seek(self, taken: int) -> None:
        """Go on as if so many samples had been handed out."""
        self.taken = taken
        rounds, turn = divmod(taken, len(self.lanes))
        for place, lane in enumerate(self.lanes):
            lane.seek(rounds + (place < turn))

    def state(self) -> dict:
        """What `restore` needs, as plain JSON."""
        return {"set": self.fingerprint, "lanes": [lane.number for lane in self.lanes], "taken": self.taken}

    def restore(self, state: dict) -> None:
        """Go on from a state of the same number of ranks."""
        if state["set"] != self.fingerprint:
            raise DataError("the shard set changed since the checkpoint was written; bring it back or start a new run")
        if state["lanes"] != [lane.number for lane in self.lanes]:
            raise DataError("the checkpoint's lanes are not this rank's; resume with the ranks it was written with")
        self.seek(state["taken"])
