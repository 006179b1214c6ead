"""What the commands go through: the rows of a JSON-lines file, or the samples of a shard set, whole or some of it.

A row has the fields of `KEY.json`, `images` (paths) and, if it likes, `key`; without, its number is the key.
"""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data import tar
from data.convert.records import records
from data.convert.row import Row
from data.sample import DataError, Sample, Text
from data.shards.index import Shard, load_index, read_offsets
from data.shards.read import parse, read_contents
from data.source import Source, join


class Piece(NamedTuple):
    """A sample as it lies in another set."""

    key: str
    content: bytes
    origin: str


def rows(path: Path, folder: Path) -> Iterator[Row]:
    """The rows of a file, whose pictures are below a folder. A row that is not as it should be says so itself."""
    for number, (place, record) in enumerate(records(path)):
        row = Row(key=f"{number:09d}", place=place, folder=folder)
        try:
            yield row._replace(**_fields(record))
        except DataError as error:
            yield row._replace(fault=str(error))


def _fields(record: dict[str, Any] | DataError) -> dict[str, Any]:
    if isinstance(record, DataError):
        raise record
    known = {*Text.model_fields, "images", "key"}
    if others := sorted(record.keys() - known):
        raise DataError(f"unknown field {others[0][:100]!r}; take it out (known: {', '.join(sorted(known))})")
    images = record.get("images") or []
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise DataError("images: not a list of paths; write them as a list")
    given = {**record, "images": tuple(map(Path, images))}
    if "key" in given:
        given["key"] = str(given["key"])
    return given


def pieces(folder: str, source: Source) -> Iterator[Piece]:
    """The samples of a set, not looked into."""
    for shard in load_index(folder, source):
        for number, content in enumerate(read_contents(folder, shard, source)):
            yield _piece(content, folder, shard, number)


def read(piece: Piece) -> Sample:
    """The sample in it."""
    return parse(piece.content, piece.origin)


def some(folder: str, source: Source, count: int | None, seed: int | None) -> tuple[int, Iterator[Piece]]:
    """How many samples a set has, and so many of them: the first ones, or with a seed random ones, in order."""
    shards = load_index(folder, source)
    total = sum(shard.samples for shard in shards)
    count = total if count is None else min(count, total)
    numbers = (
        range(count) if seed is None or count == total else sorted(random.Random(seed).sample(range(total), count))
    )
    return total, _numbered(folder, source, shards, numbers)


def _numbered(folder: str, source: Source, shards: list[Shard], numbers: Sequence[int]) -> Iterator[Piece]:
    first, wanted = 0, deque(numbers)
    for shard in shards:
        last = first + shard.samples
        if wanted and wanted[0] < last:
            path, offsets = join(folder, shard.shard), read_offsets(folder, shard, source)
            while wanted and wanted[0] < last:
                number = wanted.popleft() - first
                start, end = offsets[number : number + 2].tolist()
                content = source.span(path, start, end).read(start, end)
                yield _piece(content, folder, shard, number)
        first = last


def _piece(content: bytes, folder: str, shard: Shard, number: int) -> Piece:
    return Piece(tar.first_key(content) or f"{shard.shard} {number}", content, join(folder, shard.shard))
