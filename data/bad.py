"""What happens to samples that cannot be used: each is skipped, counted and named, and too many stop the run."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from data.sample import DataError

FEW = 1000  # draws that a share is of at least: early on, one bad sample is a large part of all
Kind = Literal["bad", "too large"]


class BadConfig(BaseModel):
    """How many bad samples are borne, by each rank."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    in_a_row: int = Field(100, ge=1, description="bad samples in a row that end the run")
    share: float = Field(0.01, ge=0, le=1, description="share of bad samples above which the run ends")
    too_large: int = Field(1000, ge=1, description="samples above train.tokens in a row that end the run")


class LeftOut(NamedTuple):
    """A sample that cannot be used, as a line of the quarantine file tells it."""

    kind: Kind
    shard: str
    sample: int  # number in the shard
    key: str | None  # None where it cannot be read
    epoch: int
    reason: str


class Quarantine:
    """Counts samples that are left out, and names them in a file of JSON lines.

    A sample that a resumed run meets again is not named twice.
    """

    def __init__(self, config: BadConfig, path: Path | None) -> None:
        self.config, self.path = config, path
        self.drawn = self.bad = self.dropped = 0
        self._row = {"bad": 0, "too large": 0}
        self._named: set[tuple[str, int, int]] | None = None  # read when first needed

    def good(self) -> None:
        """A sample that can be used was drawn."""
        self.drawn += 1
        self._row = dict.fromkeys(self._row, 0)

    def leave_out(self, one: LeftOut) -> None:
        """A sample that cannot be used was drawn. DataError when they are too many."""
        self._name(one._asdict())
        self.drawn += 1
        self._row[one.kind] += 1
        row, config = self._row[one.kind], self.config
        where = f"; all are named in {self.path}" if self.path else ""
        if one.kind == "bad":
            self.bad += 1
            if row >= config.in_a_row:
                limit = f"{row} bad samples in a row (data.bad.in_a_row {config.in_a_row})"
                raise DataError(f"{limit}, the last: {one.reason}{where}")
            if self.bad > config.share * max(self.drawn, FEW):
                limit = f"{self.bad} bad samples of {self.drawn} (data.bad.share {config.share})"
                raise DataError(f"{limit}, the last: {one.reason}{where}")
        else:
            self.dropped += 1
            if row >= config.too_large:
                limit = f"none of the last {row} samples fits (data.bad.too_large {config.too_large})"
                raise DataError(f"{limit}; {one.reason}{where}")

    def _name(self, record: dict[str, Any]) -> None:
        if self.path is None:
            return
        if self._named is None:
            self._named = set(map(_identity, read(self.path)))
        if _identity(record) in self._named:
            return
        self._named.add(_identity(record))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                file.write(b"\n")  # the line before was cut off
            file.write(json.dumps(record).encode() + b"\n")

    def state(self) -> dict[str, int]:
        """The counts, as plain JSON."""
        return {"drawn": self.drawn, "bad": self.bad, "dropped": self.dropped}

    def restore(self, counts: dict[str, int]) -> None:
        self.drawn, self.bad, self.dropped = counts["drawn"], counts["bad"], counts["dropped"]


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a quarantine file, without lines that were cut off or damaged."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and record.keys() >= {"shard", "sample", "epoch"}:
                records.append(record)
    return records


def _identity(record: dict[str, Any]) -> tuple[str, int, int]:
    return record["shard"], record["sample"], record["epoch"]
