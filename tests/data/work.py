"""Work for loaders under test. It is done in other processes, which import it from here."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.loader import Loader
from data.reader import Raw
from data.sample import Sample, Text
from data.shards import WriteOptions, write
from data.shards.read import parse
from data.stream import DataConfig, Stream

TEXT = Text(question="?", answer="!", task="t", source="s")
LANES = 6
Result = tuple[str, int]
World = tuple[int, int]  # ranks, workers


class Names:
    """Key and epoch of each sample."""

    def __call__(self, raw: Raw) -> Result:
        return parse(raw.content, raw.shard).key, raw.epoch

    def lost(self, raw: Raw, why: str) -> Result:
        return f"{parse(raw.content, raw.shard).key}: {why}", raw.epoch


class Arrays(Names):
    """Arrays that depend on the key, large and small."""

    def __call__(self, raw: Raw) -> Any:  # type: ignore[override]
        key = int(parse(raw.content, raw.shard).key)
        large = torch.full((300, 70), float(key))
        return {
            "key": key,
            "large": large,
            "small": torch.tensor([key]),
            "none": torch.zeros(0, 3),
            "n": np.arange(key),
        }


class Dies(Names):
    """Dies at some keys, as often as `times` says; `marks` is a folder where it counts."""

    def __init__(self, keys: list[str], times: int, marks: Path) -> None:
        self.keys, self.times, self.marks = keys, times, marks

    def __call__(self, raw: Raw) -> Result:
        key, epoch = super().__call__(raw)
        died = sum(1 for _ in self.marks.glob(f"{key}-*"))
        if key in self.keys and died < self.times:
            (self.marks / f"{key}-{died}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return key, epoch


class Fails(Names):
    """Has a fault of its own at a key."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, raw: Raw) -> Result:
        key, epoch = super().__call__(raw)
        if key == self.key:
            raise RuntimeError("a fault of the work")
        return key, epoch


class Slow(Names):
    """Takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, raw: Raw) -> Result:
        time.sleep(self.seconds)
        return super().__call__(raw)


def write_numbered(folder: Path, samples: int, per_shard: int) -> Path:
    """A set of text-only samples whose keys are their numbers."""
    write((Sample(key=str(n), text=TEXT) for n in range(samples)), folder, WriteOptions(per_shard=per_shard))
    return folder


def config_of(folder: Path) -> DataConfig:
    return DataConfig(train=folder, lanes=LANES, piece=2, shuffle=4)


def start(folder: Path, ranks: int, workers: int, states: list[dict]) -> list[Loader]:
    loaders = []
    for rank in range(ranks):
        loaders.append(Loader(Stream(config_of(folder), rank, ranks, 0), Names(), workers))
        if states:
            loaders[-1].restore(states)
    return loaders


def rank_that_saves(folder: Path, rank: int, world: World, states: list[dict], out: Path) -> None:
    """Draws until it is killed; what it saw and its state are saved together, every few draws."""
    loader = start(folder, world[0], world[1], states)[rank]
    seen: list = []
    for number in range(10**9):
        seen.append(next(loader)[1])
        if number % 3 == 0:
            part = out.with_suffix(".part")
            part.write_text(json.dumps([seen, loader.stream.state(loader.position)]))
            part.replace(out)
