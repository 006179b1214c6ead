"""An index for tars that were made elsewhere (webdataset, GNU tar, ...): what they hold, and where it lies.

Damaged samples stay in the index: a stream leaves them out one by one and says so.
"""

import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from data import tar
from data.sample import DataError
from data.shards.index import INDEX, OFFSET, OFFSETS, Shard, dump_index, load_index, read_offsets
from data.shards.part import replace
from data.shards.record import RECORD
from data.shards.workers import spread
from data.source import Source, is_remote, join

AGAIN = "comes again after other samples; the files of a sample must follow each other"
NAME = re.compile(r"[\w-][\w.-]*")  # of a shard
STEP = 64 * 2**20  # bytes read at a time


class Fault(NamedTuple):
    """Something wrong with a shard, or with one sample of it."""

    shard: str
    key: str  # empty where it is not one sample's
    reason: str

    def __str__(self) -> str:
        parts = (self.shard, self.key, self.reason) if self.key else (self.shard, self.reason)
        return ": ".join(shown(part) for part in parts)


class Found(NamedTuple):
    """What a tar holds."""

    bytes: int
    sha256: str
    samples: list[tar.Extent]
    damage: list[tar.Damage]

    def offsets(self) -> np.ndarray:
        """Where the samples begin, and where the last one ends: [samples + 1]."""
        return np.array([*(one.start for one in self.samples), self.samples[-1].end], OFFSET)


def shown(text: str) -> str:
    """Text from outside, on one line and without what a terminal would act on."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def opened(url: str, source: Source) -> Iterator[BinaryIO]:
    """A shard as a file on this machine: a remote one is fetched."""
    size = source.size(url)
    if not is_remote(url):
        with open(url, "rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        for start in range(0, size, STEP):
            copy.write(source.read(url, start, min(size, start + STEP)))
        copy.seek(0)
        yield copy


def look(file: BinaryIO) -> Found:
    """What there is in a tar, by its headers."""
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type] # it can be read, which will do
    size = file.tell()
    file.seek(0)
    samples: list[tar.Extent] = []
    damage: list[tar.Damage] = []
    for one in tar.scan(file):
        if isinstance(one, tar.Extent):
            samples.append(one)
        else:
            damage.append(one)
    return Found(size, sha256, samples, damage)


def index(folder: str, source: Source, out: Path, workers: int = 0, only_new: bool = False) -> Iterator[Fault]:
    """Write the offsets of every tar of a folder, and then the index, to `out`. Yields what is wrong with them."""
    there = source.names(folder)
    names = [name for name in there if name.endswith(".tar")]
    if RECORD in there:
        raise DataError(f"{folder}: a write that is not finished; start it again")
    if not names:
        raise DataError(
            f"{folder}: no tar file; name a folder of plain .tar files (compressed ones: unpack them first)"
        )
    known = _known(folder, source) if only_new else {}
    entries = []
    out.mkdir(parents=True, exist_ok=True)
    for name, (shard, offsets, faults) in zip(
        names, spread(partial(_entry, folder, source, known), names, workers), strict=True
    ):
        yield from faults
        if shard is not None:
            replace(out / (name + OFFSETS), offsets)
            entries.append(shard)
    if not entries:
        raise DataError(f"{folder}: no sample in any of {len(names)} tars; check what they hold")
    replace(out / INDEX, dump_index(entries))


def _known(folder: str, source: Source) -> dict[str, Shard]:
    with suppress(DataError):
        return {shard.shard: shard for shard in load_index(folder, source)}
    return {}


def _entry(folder: str, source: Source, known: dict[str, Shard], name: str) -> tuple[Shard | None, bytes, list[Fault]]:
    """A tar's entry in the index (none where it holds nothing), its offsets and its faults."""
    url = join(folder, name)
    if not NAME.fullmatch(name):
        return None, b"", [Fault(name, "", "left out of the index; rename it to letters, digits, - and _")]
    if name in known and source.size(url) == known[name].bytes:
        with suppress(DataError):
            return known[name], read_offsets(folder, known[name], source).tobytes(), []
    with opened(url, source) as file:
        found = look(file)
    faults = [Fault(name, "", one.reason) for one in found.damage]
    if not found.samples:
        return None, b"", [*faults, Fault(name, "", "no sample; it is left out of the index")]
    times = Counter(one.key for one in found.samples)
    faults += [Fault(name, key, AGAIN) for key, count in times.items() if count > 1]
    shard = Shard(shard=name, samples=len(found.samples), bytes=found.bytes, sha256=found.sha256)
    return shard, found.offsets().tobytes(), faults
