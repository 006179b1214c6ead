"""Values on their way from a worker process to its rank: the large arrays in one piece of shared memory.

A tensor of its own for each would cost a file descriptor and a handshake each; through the pipe they would be copied
three times.
"""

import pickle
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGE = 2**16  # bytes from which an array goes to shared memory; below, a pipe is faster
ALIGNED = 64  # bytes


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


class _Shared:
    """Large arrays, copied to shared memory as they are pickled: in the thread of a queue, beside the work."""

    def __init__(self, large: list[memoryview]) -> None:
        self.large = large

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        try:
            return _arrays, _share(self.large)
        except Exception as error:  # raised in that thread it would be lost, and the rank wait forever
            return _arrays, ([], None, f"{type(error).__name__}: {error}")


def _share(large: list[memoryview]) -> tuple[list[int], Tensor]:
    """(ends of the arrays, the shared memory that holds them)."""
    size = sum(len(content) + -len(content) % ALIGNED for content in large)
    shared = torch.empty(0, dtype=torch.uint8)
    shared.set_(torch.UntypedStorage._new_shared(size))
    view, at, ends = shared.numpy(), 0, []
    for content in large:
        view[at : at + len(content)] = np.frombuffer(content, np.uint8)
        ends.append(at + len(content))
        at += len(content) + -len(content) % ALIGNED
    return ends, shared


def _arrays(ends: list[int], shared: Tensor | None, failure: str = "") -> list[memoryview]:
    """The arrays again, as views of the shared memory."""
    if shared is None:
        raise MemoryError(f"no shared memory for a worker's arrays ({failure}); enlarge /dev/shm or lower data.workers")
    view, at, found = memoryview(shared.numpy()), 0, []  # type: ignore[arg-type]
    for end in ends:
        found.append(view[at:end])
        at = end + -end % ALIGNED
    return found


def pack(value: Any) -> tuple[bytes, _Shared | None]:
    """A value as (pickle, its large arrays), to be pickled once more by a queue."""
    large: list[memoryview] = []

    def inside(buffer: pickle.PickleBuffer) -> bool:
        content = buffer.raw()
        if len(content) < LARGE:
            return True
        large.append(content)
        return False

    out = BytesIO()
    _Pickler(out, protocol=5, buffer_callback=inside).dump(value)
    return out.getvalue(), _Shared(large) if large else None


def unpack(packed: tuple[bytes, list[memoryview] | None]) -> Any:
    """The value again, after the queue; its arrays are views of the shared memory."""
    content, large = packed
    return pickle.loads(content, buffers=large or ())
