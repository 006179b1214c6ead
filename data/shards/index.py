"""The index of a shard set: which shards it has, and where in each of them every sample lies.

    FOLDER/index.json        per shard: name, samples, bytes, sha256
    FOLDER/NAME.tar.idx      where its samples begin, and where the last one ends (8 bytes each, little-endian)

With it any sample is read at once, without those before it. A folder is a path or a URL.
"""

import json
from collections import Counter
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from data.failures import MissingError
from data.sample import DataError
from data.source import Source, join, public
from data.tar import BLOCK

INDEX = "index.json"
OFFSETS = ".idx"  # after the shard's name
OFFSET = np.dtype("<u8")
FARTHEST = 2**62  # bytes; what lies behind is no place in a file


class Shard(BaseModel):
    """One tar file of a set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard: Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]  # a name and no path: the index may come from anywhere
    samples: Annotated[int, Field(ge=1)]
    bytes: Annotated[int, Field(ge=1, le=FARTHEST)]
    sha256: str

    @model_validator(mode="after")
    def _samples_have_room(self) -> "Shard":
        if self.samples * BLOCK > self.bytes:
            raise ValueError(f"{self.samples} samples in {self.bytes} bytes; each takes {BLOCK} at least")
        return self


SHARDS = TypeAdapter(list[Shard])


def load_index(folder: str, source: Source) -> list[Shard]:
    """The shards of a set; DataError when there is no usable index. The shards themselves are not looked at."""
    path = join(folder, INDEX)
    shown, where = public(folder), public(path)
    try:
        shards = SHARDS.validate_json(source.read(path))
    except MissingError:
        raise DataError(
            f"{shown}: no shard set (no {INDEX}); check data.train in the config, write the set, or index the tars "
            f"that are there with `python -m data.shards index {shown}`"
        ) from None
    except ValidationError as error:
        raise DataError(f"{where}: not an index of shards ({brief(error)}); index the set again") from error
    if not shards:
        raise DataError(f"{where}: names no shard; write the set again")
    name, times = Counter(shard.shard for shard in shards).most_common(1)[0]
    if times > 1:
        raise DataError(f"{where}: names {name} {times} times; index the set again")
    return shards


def read_offsets(folder: str, shard: Shard, source: Source) -> np.ndarray:
    """Where the samples of a shard begin, and where the last one ends: [samples + 1], bytes, rising."""
    path = join(folder, shard.shard + OFFSETS)
    shown, where = public(folder), public(path)
    try:
        content = source.read(path)
    except MissingError:
        raise DataError(f"{where}: missing; write it with `python -m data.shards index {shown}`") from None
    offsets = np.frombuffer(content, OFFSET) if len(content) % OFFSET.itemsize == 0 else np.zeros(0, OFFSET)
    if len(offsets) != shard.samples + 1 or (offsets[:-1] >= offsets[1:]).any() or offsets[-1] > FARTHEST:
        raise DataError(
            f"{where}: not where {shard.samples} samples begin; write it with `python -m data.shards index`"
        )
    return offsets


def dump_index(shards: list[Shard]) -> bytes:
    """What index.json holds."""
    return json.dumps([shard.model_dump() for shard in shards], indent=1).encode()


def brief(error: ValidationError) -> str:
    """A validation error in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
