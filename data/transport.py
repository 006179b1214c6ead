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
PIECES = 64  # of memory that a channel keeps; what does not fit in is used once
KEPT = 2**26  # bytes of the largest piece that is kept


class Place(NamedTuple):
    """Where the large arrays of a value are."""

    piece: int  # PIECES: one that is used once
    fresh: bool  # a new piece, whose descriptor was sent
    bounds: list[tuple[int, int]]  # bytes of each array
    failure: str = ""


class Channel:
    """From one worker to its rank, which makes it. Ends with either: the other then reads the end of `line`."""

    def __init__(self) -> None:
        self._rank, self.line = socket.socketpair()  # descriptors go from the worker's end, `line`, to the rank's
        self._flags = torch.zeros(PIECES + 1, dtype=torch.uint8).share_memory_()
        self._held = self._flags.numpy()  # of each piece: 1 while it is the rank's, or on its way to it
        self._pieces: list[tuple[int, int]]  # in the worker: descriptor and bytes
        self._mapped: dict[int, mmap.mmap] = {}  # in the rank

    def __getstate__(self) -> dict[str, Any]:
        return {"line": self.line, "_flags": self._flags}  # the rank's end is nowhere else

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _held=state["_flags"].numpy(), _pieces=[])

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

        To be called in the order in which values were packed. DataError where there was no room for them.
        """
        content, place = packed
        return pickle.loads(content, buffers=self._arrays(place) if place else ())

    def place(self, large: list[memoryview]) -> Place:
        """Put arrays where the rank finds them."""
        ends = np.cumsum([len(content) + -len(content) % ALIGNED for content in large]).tolist()
        bounds = [(start, start + len(content)) for start, content in zip([0, *ends], large, strict=False)]
        piece, fresh = self._piece(ends[-1])
        number = self._pieces[piece][0] if piece < PIECES else _memory(ends[-1])
        try:
            for (at, _), content in zip(bounds, large, strict=True):
                while content:  # one call writes 2 GiB at most
                    written = os.pwrite(number, content, at)
                    at, content = at + written, content[written:]
            if fresh:
                socket.send_fds(self.line, [b"1"], [number])
        finally:
            if piece == PIECES:
                os.close(number)
        self._held[piece] = 1
        return Place(piece, fresh, bounds)

    def _piece(self, size: int) -> tuple[int, bool]:
        """(number, whether it is new) of the smallest free piece that is large enough."""
        free = [n for n in range(len(self._pieces)) if not self._held[n]]
        if fitting := [n for n in free if self._pieces[n][1] >= size]:
            return min(fitting, key=lambda n: self._pieces[n][1]), False
        if size > KEPT or (len(self._pieces) == PIECES and not free):
            return PIECES, True
        new = _memory(size), size
        if len(self._pieces) < PIECES and not free:
            self._pieces.append(new)
            return len(self._pieces) - 1, True
        os.close(self._pieces[free[0]][0])
        self._pieces[free[0]] = new
        return free[0], True

    def _arrays(self, place: Place) -> list[memoryview]:
        if place.failure:
            raise DataError(f"no memory for a worker's arrays ({place.failure}); lower data.workers or data.window")
        if place.fresh:
            _, numbers, *_ = socket.recv_fds(self._rank, 1, 1)
            if not numbers:
                raise DataError("no file descriptor is left for a worker's arrays; raise `ulimit -n`")
            self._mapped[place.piece] = mmap.mmap(numbers[0], 0)
            os.close(numbers[0])
        whole = np.frombuffer(self._mapped[place.piece], np.uint8)
        weakref.finalize(whole, self._held.__setitem__, place.piece, 0).atexit = False
        return [whole.data[start:end] for start, end in place.bounds]


def _memory(size: int) -> int:
    number = os.memfd_create("amvl")
    os.ftruncate(number, size)
    return number


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
        content = value.contiguous().view(-1).view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(content.data), value.dtype, tuple(value.shape))


def _tensor(content: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).view(shape)
