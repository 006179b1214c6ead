"""An endless stream of samples from a shard set, split into lanes so that it can be resumed exactly.

Lane i of L owns the shards i, i + L, i + 2L, ...; in every epoch it takes them in a seeded order and hands
out their samples shuffled in blocks. Nothing but (epoch, samples taken) is needed to go on where it
stopped, and only the current shard is read again. Ranks own lanes; other ranks get other lanes.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

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


class LaneState(BaseModel):
    """Where a lane stands: its epoch, and how many samples of it were handed out."""

    model_config = ConfigDict(extra="forbid")

    epoch: int = 0
    taken: int = 0


class Lane:
    """One lane: an endless iterator of samples. `state` is that of the next sample."""

    def __init__(self, folder: Path, shards: list[Shard], number: int, seed: int, block: int) -> None:
        self.folder, self.shards, self.number, self.seed, self.block = folder, shards, number, seed, block
        self.state = LaneState()
        self._samples: Iterator[Sample] | None = None

    def restore(self, state: LaneState) -> None:
        """Go on from a state."""
        self.state, self._samples = state.model_copy(), None

    def __next__(self) -> Sample:
        if self._samples is None:
            self._samples = self._epoch()
        sample = next(self._samples, None)
        if sample is None:
            self.restore(LaneState(epoch=self.state.epoch + 1))
            return next(self)
        self.state.taken += 1
        return sample.model_copy(update={"epoch": self.state.epoch})

    def _epoch(self) -> Iterator[Sample]:
        """The rest of the current epoch."""
        order = list(self.shards)
        self._random("order").shuffle(order)
        done, within = divmod(self.state.taken, self.block)
        source = self._read(order, done * self.block)
        for number in itertools.count(done):
            block = list(itertools.islice(source, self.block))
            if not block:
                return
            self._random(str(number)).shuffle(block)
            yield from block[within if number == done else 0 :]

    def _read(self, order: list[Shard], skip: int) -> Iterator[Sample]:
        for shard in order:
            if skip < shard.samples:
                yield from read_shard(self.folder / shard.shard, skip, shard.samples)
            skip = max(0, skip - shard.samples)

    def _random(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed}/{self.number}/{self.state.epoch}/{purpose}")


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
        self.turn = 0
        self._before = 0, LaneState()  # turn and state of that lane before the last sample

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Sample:
        lane = self.lanes[self.turn]
        self._before = self.turn, lane.state.model_copy()
        self.turn = (self.turn + 1) % len(self.lanes)
        return next(lane)

    def state(self, before_last: bool = False) -> dict:
        """What `restore` needs, as plain JSON; `before_last` as if the last sample had not been taken."""
        turn, states = self.turn, [lane.state for lane in self.lanes]
        if before_last:
            turn, states[self._before[0]] = self._before[0], self._before[1]
        lanes = {str(lane.number): state.model_dump() for lane, state in zip(self.lanes, states, strict=True)}
        return {"set": self.fingerprint, "turn": turn, "lanes": lanes}

    def restore(self, state: dict) -> None:
        """Go on from a state of the same number of ranks."""
        if state["set"] != self.fingerprint:
            raise DataError("the shard set changed since the checkpoint was written; bring it back or start a new run")
        if set(state["lanes"]) != {str(lane.number) for lane in self.lanes}:
            raise DataError("the checkpoint's lanes are not this rank's; resume with the ranks it was written with")
        self.turn = state["turn"]
        for lane in self.lanes:
            lane.restore(LaneState.model_validate(state["lanes"][str(lane.number)]))
