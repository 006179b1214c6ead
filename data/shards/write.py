"""Writing a shard set: any number of samples in bounded memory, in processes, resumed after a kill.

The bytes depend on the items and on `per_shard`, `shard_bytes` and `shuffle` alone.
"""

import argparse
import shutil
from collections.abc import Callable, Iterable, Sized
from contextlib import closing
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError

from data.sample import DataError, Sample
from data.shards.index import INDEX, Shard, brief, dump_index
from data.shards.keys import Keys
from data.shards.packed import ItemT, Packed, pack
from data.shards.part import Part, replace
from data.shards.record import LEFT_OUT, RECORD, Finished, KeysHash, Record
from data.shards.shuffle import Shuffled, read_packed
from data.shards.workers import spread

TOGETHER = 8  # items that a worker takes at a time
ENOUGH = 1000  # items after which the share of those left out says something
TWICE = "the key of an earlier item; keys must differ in a set"
UNSHUFFLED = "unshuffled"  # a folder for the set in its first order


class WriteOptions(BaseModel):
    """How a set is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard_bytes: ByteSize = Field(ByteSize(256 * 2**20), gt=0, description="most bytes of a shard of several samples")
    per_shard: int | None = Field(None, ge=1, description="samples of a shard, whatever their bytes")
    shuffle: int | None = Field(None, ge=0, description="seed of a random order (takes the space of the set twice)")
    workers: int = Field(0, ge=0, description="processes that read and check samples; 0: this one does")
    left_out: float = Field(0.0, ge=0, le=1, description="largest share of faulty items, which are left out")

    def order(self, shuffled: bool = True) -> dict[str, object]:
        """What the bytes depend on."""
        return self.model_dump(include={"shard_bytes", "per_shard"}) | {"shuffle": self.shuffle if shuffled else None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a command that writes a set."""
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the set goes")
    names = {"shard_bytes": "256MB", "per_shard": "N", "shuffle": "SEED", "workers": "N", "left_out": "SHARE"}
    for name, shown in names.items():
        purpose = WriteOptions.model_fields[name].description
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=shown, help=purpose)


def options_of(arguments: argparse.Namespace) -> WriteOptions:
    """The options that a command was given."""
    given = {name: getattr(arguments, name) for name in WriteOptions.model_fields}
    try:
        return WriteOptions.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise DataError(f"--{brief(error).replace('_', '-', 1)}") from error


def itself(item: Sample) -> Sample:
    """What makes a sample of a sample."""
    return item


def write(
    items: Iterable[ItemT],
    folder: Path,
    options: WriteOptions = WriteOptions(),  # noqa: B008 - frozen
    prepare: Callable[[ItemT], Sample] = itself,  # type: ignore[assignment] # right where the items are samples
) -> list[Shard]:
    """Write prepare(item) of every item, and the index last. Started again over the same items it goes on.

    An item for which `prepare` raises DataError is faulty, and so is one whose sample could not be read again or whose
    key was there before. The first one ends it, unless `options.left_out` lets some be left out.
    """
    if (folder / INDEX).exists():
        _clear(folder)
        raise DataError(f"{folder}: holds a shard set already; delete it or name another folder")
    work = partial(pack, prepare)
    with Record(folder, options.order()) as record:
        if options.shuffle is None:
            shards = _in_order(items, record, options, work)
        else:
            with Record(folder / UNSHUFFLED, options.order(shuffled=False)) as aside:
                first = _in_order(items, aside, options, work)
            shards = _in_order(Shuffled(aside.folder, first, options.shuffle), record, options, read_packed)
            if aside.left_out:
                shutil.copyfile(aside.folder / LEFT_OUT, folder / LEFT_OUT)
        replace(folder / INDEX, dump_index(shards))
    _clear(folder)
    return shards


def _clear(folder: Path) -> None:
    """Delete what a finished write needs no more."""
    (folder / RECORD).unlink(missing_ok=True)
    shutil.rmtree(folder / UNSHUFFLED, ignore_errors=True)


def _in_order(
    items: Iterable[ItemT], record: Record, options: WriteOptions, work: Callable[[ItemT], Packed]
) -> list[Shard]:
    """Write the shards that are not finished yet."""
    left, keys, number = iter(items), Keys(), record.items
    total = len(items) if isinstance(items, Sized) else None
    for key in record.skip(item.key for item in left):
        keys.add(key)
    with Output(record, options) as output, closing(spread(work, left, options.workers, TOGETHER)) as packed:
        for number, one in enumerate(packed, record.items + 1):
            fault = one.fault or ("" if keys.add(one.key) else f"{one.key}: {TWICE}")
            if fault:
                if not options.left_out:
                    raise DataError(f"{record.folder}: {fault}, or let some be left out (--left-out)")
                record.leave_out(number - 1, one.key, fault)
                _judge(record, number, total, options.left_out)
            output.take(one.key, b"" if fault else one.content)
        _judge(record, number, number, options.left_out)
        output.close()
    if not record.finished:
        raise DataError(f"{record.folder}: nothing to write; name a source that holds samples")
    return [finished.entry() for finished in record.finished]


def _judge(record: Record, items: int, total: int | None, limit: float) -> None:
    """DataError once too many items are left out of `total`, or of so many that it will come to that."""
    left_out = len(record.left_out)
    most = limit * total if total is not None else (1 + limit) / 2 * max(items, ENOUGH)
    if left_out > most:
        where = record.folder / LEFT_OUT
        raise DataError(
            f"{where}: {left_out:,} of {items:,} items are faulty, above {limit:g}; mend them or allow more"
        )


class Output:
    """The shard that is being filled, and those before it in the record."""

    def __init__(self, record: Record, options: WriteOptions) -> None:
        self.record, self.options = record, options
        self.shard: Part | None = None
        self._begin()

    def _begin(self) -> None:
        self.keys, self.items = KeysHash(), 0  # taken since the last shard

    def take(self, key: str, content: bytes) -> None:
        """The members of one item, which are none when it is left out."""
        if content:
            if self.shard is not None and self._full(self.shard, content):
                self.close()
            if self.shard is None:
                self.shard = Part(self.record.folder / f"{len(self.record.finished):06d}.tar")
            self.shard.add(content)
        self.keys.add(key)
        self.items += 1

    def _full(self, shard: Part, content: bytes) -> bool:
        if self.options.per_shard is not None:
            return shard.samples == self.options.per_shard
        return shard.bytes_with(content) > self.options.shard_bytes

    def close(self) -> None:
        """The shard is whole."""
        if self.shard is not None:
            entry = self.shard.finish().model_dump()
            self.record.add(Finished(**entry, items=self.items, keys=self.keys.value()))
            self.shard = None
            self._begin()

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: object) -> None:
        if self.shard is not None:
            self.shard.drop()
