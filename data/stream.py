"""An endless stream of draws from shard sets, which any number of ranks share and resume exactly.

Only indexes are read here: a draw says where its sample lies. Each set is split into lanes (data/lanes.py), a rank
owns every ranks-th of them, and they take turns. Several sets are mixed by weight. How many samples each lane has
handed out is the whole position, so that lanes can be dealt out again to other ranks.
"""

import hashlib
import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.bad import BadConfig
from data.lanes import Lane, Ref, pieces_of
from data.pictures import Limits
from data.sample import DataError
from data.shards.index import Shard, load_index
from data.source import Source, SourceConfig, public


class SetConfig(BaseModel):
    """One of several shard sets to train on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str = Field(min_length=1, description="path or URL (http, https, s3) of the shard set")
    weight: float | None = Field(None, gt=0, description="its part of the samples drawn; null: its number of samples")


class DataConfig(BaseModel):
    """Where the samples come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Annotated[tuple[SetConfig, ...], Field(min_length=1)] = Field(
        description="folder or URL of the shard set to train on, or a list of {folder, weight}"
    )
    heldout: str | None = Field(None, description="folder or URL of the shard set to evaluate on")
    lanes: int = Field(64, ge=1, description="lanes of a set, at least one per rank; fixed for a run")
    piece: int = Field(64, ge=1, description="samples of a shard that are read together")
    shuffle: int = Field(256, ge=1, description="samples a lane shuffles together")
    workers: int = Field(2, ge=0, le=64, description="processes per rank that decode; 0: the rank's own")
    window: int = Field(64, ge=1, description="encoded samples that wait, for packs to be filled from")
    oversize: Literal["shrink", "drop"] = Field(
        "shrink", description="of a sample above train.tokens: make its images smaller, or leave it out"
    )
    bad: BadConfig = BadConfig()
    limits: Limits = Limits()
    source: SourceConfig = SourceConfig()

    @model_validator(mode="before")
    @classmethod
    def _one_set(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("train"), str | Path):
            return values | {"train": ({"folder": str(values["train"])},)}
        return values

    @model_validator(mode="after")
    def _all_weights_or_none(self) -> "DataConfig":
        if len({one.weight is None for one in self.train}) > 1:
            raise ValueError("some sets of data.train have a weight and some have none; give all of them one, or none")
        return self


@dataclass
class Position:
    """How far a rank is: plain numbers, of which `Stream.state` makes JSON."""

    lanes: dict[tuple[int, int], int]  # samples handed out, by numbers of set and lane
    turns: list[int]  # draws from each set since the lanes were dealt out
    again: deque[tuple[int, int, int]] = field(default_factory=deque)  # draws to hand out once more, before all others

    def advance(self, ref: Ref) -> None:
        """Count a draw as handed out."""
        if self.again:
            self.again.popleft()
            return
        self.lanes[ref.set, ref.lane] = ref.turn + 1
        self.turns[ref.set] += 1

    def copy(self) -> "Position":
        return Position(dict(self.lanes), list(self.turns), deque(self.again))


class ShardSet:
    """A shard set as its index describes it."""

    def __init__(self, config: SetConfig, source: Source) -> None:
        self.folder = config.folder
        self.shards: list[Shard] = load_index(config.folder, source)
        self.starts = [0, *itertools.accumulate(shard.samples for shard in self.shards)]
        self.samples = self.starts[-1]
        self.weight = config.weight or float(self.samples)
        # Tells a changed set from the one a position belongs to.
        self.fingerprint = hashlib.sha256("".join(s.sha256 for s in self.shards).encode()).hexdigest()[:16]


class Stream:
    """The draws of one rank, a lane after the other, without end."""

    def __init__(self, config: DataConfig, rank: int, ranks: int, seed: int) -> None:
        self.source, self.limits = Source(config.source), config.limits
        self.sets = [ShardSet(one, self.source) for one in config.train]
        self.plan = {"seed": seed} | {name: getattr(config, name) for name in ("lanes", "piece", "shuffle")}
        self.plan["sets"] = [one.fingerprint for one in self.sets]
        self.lanes: list[list[Lane]] = []
        for number, one in enumerate(self.sets):
            count = min(config.lanes, one.samples)
            if count < ranks:
                mend = "raise data.lanes" if one.samples >= ranks else "start fewer ranks or leave the set out"
                raise DataError(
                    f"{public(one.folder)}: {count} lanes for {ranks} ranks, {one.samples} samples in the set; {mend}"
                )
            per_block = -(-config.shuffle // config.piece)
            pieces = {n: pieces_of(one.starts, n, count, config.piece) for n in range(rank, count, ranks)}
            self.lanes.append([Lane((number, n), cut, per_block, seed) for n, cut in pieces.items()])
        owned = [lane for lanes in self.lanes for lane in lanes]
        self._lane_of = {lane.number: lane for lane in owned}
        self.position = Position(dict.fromkeys(self._lane_of, 0), [0] * len(self.sets))

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Ref:
        if self.position.again:
            number, lane, turn = self.position.again[0]
            ref = self._lane_of[number, lane].at(turn)
        else:
            number = self._next_set()
            mine = self.lanes[number]
            turns = self.position.turns[number]
            chosen = mine[turns % len(mine)]
            ref = chosen.at(self.position.lanes[chosen.number])
        self.position.advance(ref)
        return ref

    def _next_set(self) -> int:
        """The set that is furthest behind its weight."""
        if len(self.sets) == 1:
            return 0
        turns = self.position.turns
        return min(range(len(self.sets)), key=lambda n: (turns[n] + 1) / self.sets[n].weight)

    def state(self, position: Position, again: Iterable[tuple[int, int, int]] = ()) -> dict[str, Any]:
        """A position as plain JSON; `again`: draws to hand out once more, as nothing became of them."""
        return {
            "plan": self.plan,
            "lanes": {f"{number}/{lane}": turn for (number, lane), turn in position.lanes.items()},
            "turns": list(position.turns),
            "again": [list(name) for name in (*again, *position.again)],
        }

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Go on from the states of all ranks, of which there may have been more or fewer."""
        lanes: dict[str, int] = {}
        for state in states:
            for name, value in self.plan.items():
                if state["plan"][name] != value:
                    what = (
                        "the shards of data.train"
                        if name == "sets"
                        else "run.seed"
                        if name == "seed"
                        else f"data.{name}"
                    )
                    raise DataError(
                        f"{what} changed since the checkpoint was written ({state['plan'][name]} there, {value} here); "
                        f"bring it back or start a new run"
                    )
            lanes |= state["lanes"]
        mine = {number: f"{number[0]}/{number[1]}" for number in self._lane_of}
        if missing := [name for name in mine.values() if name not in lanes]:
            raise DataError(f"no rank's state has the stream's lane {missing[0]}; restore the states of all ranks")
        position = Position({number: lanes[name] for number, name in mine.items()}, [0] * len(self.sets))
        for state in states:
            position.again.extend((s, n, t) for s, n, t in state["again"] if (s, n) in self._lane_of)
            if set(state["lanes"]) == set(mine.values()):
                position.turns = list(state["turns"])  # these are the lanes it had: go on in the same order
        self.position = position
