"""Values on their way from a worker process to its rank: large arrays in memory that both have.

That memory is used again as soon as nothing refers to what it held, for new pages cost as much as decoding half a
photograph. It has no name, so that it ends with the processes and no /dev/shm is too small for it.
"""

import mmap
import os
import pickle
import socket
import weakref
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.sample import DataError

LARGE = 2**12  # bytes from which an array goes to shared memory; below, a pipe is faster
ALIGNED = 64  # bytes
PIECES = 64  # of memory that a worker keeps, if the rank holds so many at once
KEPT = 2**31  # bytes of these; what does not fit in is used once


class Place(NamedTuple):
    """Where the large arrays of a value are."""

    piece: int  # PIECES: one that is used once
    fresh: bool  # a new piece, whose descriptor was sent
    bounds: list[tuple[int, int]]  # bytes of each array
    failure: str = ""


class Channel:
    """From one worker to its rank, which makes it. When it ends with the rank, the worker reads the end of `line`."""

    def __init__(self) -> None:
        self._rank, self.line = socket.socketpair()  # descriptors go from the worker's end, `line`, to the rank's
        self._flags = torch.zeros(PIECES + 1, dtype=torch.uint8).share_memory_()
        self._held = self._flags.numpy()  # of each piece: 1 while it is the rank's, or on its way to it
        self._pieces: list[_Piece]  # in the worker
        self._mapped: dict[int, mmap.mmap] = {}  # in the rank

    def __getstate__(self) -> dict[str, Any]:
        return {"line": self.line, "_flags": self._flags}  # the rank's end is nowhere else

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _held=state["_flags"].numpy(), _pieces=[_Piece(0)] * PIECES)

    def close(self) -> None:
        """In the rank: no more values come. Those that came stay."""
        self._rank.close()
        self.line.close()

    def pack(self, value: Any) -> tuple[bytes, "_Shared | None"]:
        """In the worker: a value as (pickle, its large arrays), to be pickled once more by a queue."""
        large: list[memoryview] = []

        def inside(buffer: pickle.PickleBuffer) -> bool:
            content = buffer.raw()
            if len(content) < LARGE:
                return True
            large.append(content)
            return False

        out = BytesIO()
        _Pickler(out, protocol=5, buffer_callback=inside).dump(value)
        return out.getvalue(), _Shared(self, large) if large else None

    def unpack(self, packed: tuple[bytes, Place | None]) -> Any:
        """In the rank: the value again. Its arrays lie in shared memory, which is free again when they are gone.

        To be called once for each, in the order in which they were packed. DataError where there was no room for them.
        """
        content, place = packed
        return pickle.loads(content, buffers=self._arrays(place) if place else ())

    def place(self, large: list[memoryview]) -> Place:
        """Put arrays where the rank finds them."""
        ends = np.cumsum([len(content) + -len(content) % ALIGNED for content in large]).tolist()
        bounds = [(start, start + len(content)) for start, content in zip([0, *ends], large, strict=False)]
        number, fresh = self._piece(ends[-1])
        piece = self._pieces[number] if number < PIECES else _Piece(ends[-1])
        for (at, _), content in zip(bounds, large, strict=True):
            while content:  # one call writes 2 GiB at most
                written = os.pwrite(piece.number, content, at)
                at, content = at + written, content[written:]
        if fresh:
            socket.send_fds(self.line, [b"1"], [piece.number])
        self._held[number] = 1
        return Place(number, fresh, bounds)

    def _piece(self, size: int) -> tuple[int, bool]:
        """(number, whether it is new) of the smallest free piece that is large enough."""
        free = [n for n in range(PIECES) if not self._held[n]]
        if fitting := [n for n in free if self._pieces[n].size >= size]:
            return min(fitting, key=lambda n: self._pieces[n].size), False
        kept = sum(piece.size for piece in self._pieces)
        for n in free:
            if kept - self._pieces[n].size + size <= KEPT:
                self._pieces[n] = _Piece(size)
                return n, True
        return PIECES, True

    def _arrays(self, place: Place) -> list[memoryview]:
        if place.failure:
            raise DataError(f"a worker's arrays found no room ({place.failure}); lower data.workers or data.window")
        if place.fresh:
            mapped = self._receive()
            if place.piece < PIECES:
                self._mapped[place.piece] = mapped
        else:
            mapped = self._mapped[place.piece]
        whole = np.frombuffer(mapped, np.uint8)
        weakref.finalize(whole, self._held.__setitem__, place.piece, 0).atexit = False
        return [whole.data[start:end] for start, end in place.bounds]

    def _receive(self) -> mmap.mmap:
        _, numbers, *_ = socket.recv_fds(self._rank, 1, 1)
        try:
            return mmap.mmap(numbers[0], 0)  # has a descriptor of its own
        except (IndexError, OSError) as error:
            raise DataError(f"a worker's arrays cannot be mapped ({error}); raise `ulimit -n`") from error
        finally:
            for number in numbers:
                os.close(number)


class _Piece:
    """Memory without a name, as a file; none of size 0."""

    def __init__(self, size: int) -> None:
        self.size, self.number = size, -1
        if size:
            self.number = os.memfd_create("amvl")
            os.ftruncate(self.number, size)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class _Shared:
    """Large arrays, put into shared memory as they are pickled: in the thread of a queue, beside the work."""

    def __init__(self, channel: Channel, large: list[memoryview]) -> None:
        self.channel, self.large = channel, large

    def __reduce__(self) -> tuple[type, tuple]:
        try:
            return Place, self.channel.place(self.large)
        except Exception as error:  # raised in that thread it would be lost, and the rank wait forever
            return Place, Place(0, False, [], f"{type(error).__name__}: {error}")


class _Pickler(pickle.Pickler):
    """Takes tensors as buffers, as numpy's arrays already are."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor:
            return NotImplemented
        flat = value.contiguous().view(-1)
        flat = flat.as_strided(flat.shape, (1,))  # a single element may have another stride
        content = flat.view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(content.data), value.dtype, tuple(value.shape))


def _tensor(content: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).view(shape)
