"""The bytes of drawn samples."""

from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

import numpy as np

from data import tar
from data.lanes import Piece, Ref
from data.shards.index import read_offsets
from data.source import Source, Span, join, public
from data.stream import ShardSet


class Raw(NamedTuple):
    """One sample as it lies in its shard: a run of tar members."""

    content: bytes
    shard: str  # path or URL
    sample: int  # number in the shard
    epoch: int
    fault: str = ""  # why it was not read

    @property
    def place(self) -> str:
        """Where the sample is, for messages."""
        return f"{self.shard}: {tar.first_key(self.content) or f'sample {self.sample}'}"


class Reader:
    """Reads samples by their place. A piece is fetched when first needed, and let go with its lane's block."""

    def __init__(self, sets: list[ShardSet], source: Source, most: int) -> None:
        """`most`: bytes of one sample; larger ones are not read."""
        self.sets, self.source, self.most = sets, source, most
        self._offsets = lru_cache(maxsize=256)(self._read_offsets)
        self._pieces: dict[tuple[int, int], tuple[tuple[int, int], dict[Piece, _Open]]] = {}  # per lane: block, pieces

    def later(self, ref: Ref) -> Callable[[], Raw]:
        """What reads the sample, in any thread. To be called in the order of draws."""
        block, pieces = self._pieces.get((ref.set, ref.lane), (None, {}))
        if block != (ref.epoch, ref.block):
            pieces = {}
            self._pieces[ref.set, ref.lane] = (ref.epoch, ref.block), pieces
        piece = pieces.get(ref.piece)
        if piece is None:
            piece = pieces[ref.piece] = _Open(self, ref.set, ref.piece)
        return lambda: piece.read(ref)

    def _read_offsets(self, number: int, shard: int) -> np.ndarray:
        return read_offsets(self.sets[number].folder, self.sets[number].shards[shard], self.source)

    def open(self, number: int, piece: Piece) -> tuple[Span, list[int]]:
        """The bytes of a piece, and where in its shard the samples begin and the last one ends."""
        one = self.sets[number]
        path = join(one.folder, one.shards[piece.shard].shard)
        bounds = self._offsets(number, piece.shard)[piece.first : piece.last + 1].tolist()
        return self.source.span(path, bounds[0], bounds[-1]), bounds


class _Open:
    """A piece, opened by the first thread that needs it."""

    def __init__(self, reader: Reader, number: int, piece: Piece) -> None:
        self.reader, self.number, self.piece = reader, number, piece
        self.path = public(join(reader.sets[number].folder, reader.sets[number].shards[piece.shard].shard))
        self._lock = Lock()
        self._opened: tuple[Span, list[int]] | None = None

    def read(self, ref: Ref) -> Raw:
        with self._lock:
            if self._opened is None:
                self._opened = self.reader.open(self.number, self.piece)
        span, bounds = self._opened
        start, end = bounds[ref.sample - self.piece.first], bounds[ref.sample - self.piece.first + 1]
        if end - start <= self.reader.most:
            return Raw(span.read(start, end), self.path, ref.sample, ref.epoch)
        fault = f"{end - start:,} bytes, more than {self.reader.most:,}; leave it out or raise data.limits.sample_bytes"
        return Raw(b"", self.path, ref.sample, ref.epoch, fault)
