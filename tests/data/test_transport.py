"""Arrays that a worker shares with its rank: both ends in one process. tests/data/test_loader.py has them in two."""

import errno
import gc
import os
import pickle
import random
import resource
from typing import Any

import numpy as np
import pytest
import torch

from data import transport
from data.transport import LARGE, Channel
from tests.processes import open_files
from tests.refusal import refusal

PIECE = "/memfd:amvl"  # a descriptor's path


class Ends:
    """A channel, and what its worker makes of it."""

    def __init__(self) -> None:
        self.rank, self.worker = Channel(), Channel.__new__(Channel)
        self.worker.__setstate__(self.rank.__getstate__())

    def sent(self, value: Any) -> bytes:
        return pickle.dumps(self.worker.pack(value))

    def carry(self, value: Any) -> Any:
        return self.rank.unpack(pickle.loads(self.sent(value)))


def value_of(number: int, sizes: list[int]) -> dict[str, Any]:
    tensors = [torch.full((size,), number % 251, dtype=torch.uint8) for size in sizes]
    return {"number": number, "tensors": tensors, "array": np.full((3, LARGE // 4), number, np.int32)}


def right(value: dict[str, Any], sizes: list[int]) -> bool:
    tensors = [tensor.shape == (size,) and bool((tensor == value["number"] % 251).all())
               for tensor, size in zip(value["tensors"], sizes, strict=True)]  # fmt: skip
    return all(tensors) and bool((value["array"] == value["number"]).all()) and value["array"].flags.writeable


@pytest.mark.parametrize("seed", range(5))
def test_what_is_held_is_never_written_over(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Held in parts and for different times, of many sizes, with fewer pieces than are needed and some too large."""
    monkeypatch.setattr(transport, "PIECES", 6)
    monkeypatch.setattr(transport, "KEPT", 60 * LARGE)
    draw, ends = random.Random(seed), Ends()
    held: list[tuple[dict[str, Any], list[int]]] = []
    for number in range(400):
        sizes = [
            draw.choice([0, 5, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE, 9 * LARGE]) for _ in range(draw.randint(0, 3))
        ]
        held.append((ends.carry(value_of(number, sizes)), sizes))
        if draw.random() < 0.3:
            value, _ = held[draw.randrange(len(held))]
            value["tensors"] = [tensor[:] for tensor in value["tensors"]]  # views hold it as well
        while len(held) > draw.randint(0, 12):
            held.pop(draw.randrange(len(held)))
        assert all(right(value, sizes) for value, sizes in held)
    assert 0 < sum(piece.size for piece in ends.worker._pieces) <= 60 * LARGE


def test_memory_is_used_again() -> None:
    ends, opened = Ends(), []
    for number in range(50):
        value = ends.carry(value_of(number, [LARGE * 2]))
        assert right(value, [LARGE * 2])
        opened.append(open_files(PIECE))
    assert sum(piece.size > 0 for piece in ends.worker._pieces) == 2 and len(set(opened[2:])) == 1


def test_what_is_used_once_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "KEPT", LARGE)
    ends = Ends()
    before = open_files(PIECE)
    for number in range(3):
        assert right(ends.carry(value_of(number, [LARGE * 2])), [LARGE * 2])
        assert open_files(PIECE) == before


def test_nothing_is_left_when_both_ends_are_gone() -> None:
    before = open_files(PIECE)
    ends = Ends()
    value = ends.carry(value_of(1, [LARGE]))
    ends.sent(value_of(2, [LARGE]))  # never read
    ends.rank.close()
    assert ends.rank.line.fileno() == ends.rank._rank.fileno() == -1
    del ends
    gc.collect()
    assert right(value, [LARGE])
    del value
    gc.collect()
    assert open_files(PIECE) == before


def test_small_values_need_no_memory() -> None:
    ends = Ends()
    text, numbers, one = ends.carry(["text", np.arange(9), torch.ones(1, 3)[:, 1]])
    assert text == "text" and numbers.tolist() == [*range(9)] and one.tolist() == [1.0]
    assert not any(piece.size for piece in ends.worker._pieces)


def test_no_memory_is_told_to_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the queue's thread the error would be lost."""

    def full(name: str) -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(transport.os, "memfd_create", full)
    ends = Ends()
    wanted = "a worker's arrays found no room (OSError: [Errno 12] Cannot allocate memory); lower data.workers or"
    assert refusal(lambda: ends.carry(value_of(1, [LARGE]))).startswith(wanted)


@pytest.mark.parametrize("free", [0, 1])
def test_no_descriptor_is_told_too(free: int) -> None:
    """To come with the message, and for the mapping."""
    ends = Ends()
    sent = ends.sent(value_of(1, [LARGE]))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest := os.dup(0))  # that is free
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, limits[1]))
    try:
        text = refusal(lambda: ends.rank.unpack(pickle.loads(sent)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert text.startswith("a worker's arrays cannot be mapped (") and text.endswith("); raise `ulimit -n`")
    os.close(again := os.dup(0))
    assert again == lowest
