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

LARGE = 2048  # bytes from which an array goes to shared memory
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


def pack(value: Any) -> tuple[bytes, list[int], Tensor | None]:
    """A value as (pickle, ends of its large arrays, the shared memory that holds them)."""
    large: list[memoryview] = []

    def inside(buffer: pickle.PickleBuffer) -> bool:
        content = buffer.raw()
        if len(content) < LARGE:
            return True
        large.append(content)
        return False

    out = BytesIO()
    _Pickler(out, protocol=5, buffer_callback=inside).dump(value)
    if not large:
        return out.getvalue(), [], None
    size = sum(len(content) + -len(content) % ALIGNED for content in large)
    shared = torch.empty(0, dtype=torch.uint8)
    shared.set_(torch.UntypedStorage._new_shared(size))
    view, at, ends = shared.numpy(), 0, []
    for content in large:
        view[at : at + len(content)] = np.frombuffer(content, np.uint8)
        ends.append(at + len(content))
        at += len(content) + -len(content) % ALIGNED
    return out.getvalue(), ends, shared


def unpack(packed: tuple[bytes, list[int], Tensor | None]) -> Any:
    """The value again; its arrays are views of the shared memory."""
    content, ends, shared = packed
    if shared is None:
        return pickle.loads(content)
    view, buffers, at = memoryview(shared.numpy()), [], 0  # type: ignore[arg-type]
    for end in ends:
        buffers.append(view[at:end])
        at = end + -end % ALIGNED
    return pickle.loads(content, buffers=buffers)
