"""The feed: the same batches as without it, made ahead, and a state that lags with them."""

import itertools
import threading
import time
from typing import Any

import pytest

from trainer import feed as feeding
from trainer.feed import Feed


class Counting:
    """Stands where packs stand: pack n is [n]. May wait, or fail at one."""

    def __init__(self, fails_at: int | None = None, waits_at: int | None = None) -> None:
        self.numbers = itertools.count()
        self.made, self.fails_at, self.waits_at = 0, fails_at, waits_at
        self.go, self.closed = threading.Event(), False

    def __next__(self) -> list[int]:
        number = next(self.numbers)
        if number == self.waits_at:
            self.go.wait(60)
        if number == self.fails_at:
            raise ValueError(f"fails at {number}")
        self.made += 1
        return [number]

    def state(self) -> dict[str, Any]:
        return {"made": self.made}

    def close(self) -> None:
        self.closed = True


def feed_of(packs: Any, micro_steps: int = 2) -> Feed:
    return Feed(packs, lambda pack: f"batch {pack[0]}", micro_steps)  # type: ignore[arg-type, return-value]


def made_by(packs: Counting, count: int) -> bool:
    """Whether so many packs are made before long, and no more."""
    deadline = time.monotonic() + 10
    while packs.made < count and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    return packs.made == count


def test_steps_come_in_order_and_the_next_is_made_ahead() -> None:
    packs = Counting()
    feed = feed_of(packs)
    assert feed.state == {"made": 0}
    for step in range(4):
        assert feed.take(more=step < 3) == [f"batch {2 * step}", f"batch {2 * step + 1}"]
        assert feed.state == {"made": 2 * step + 2}, "the state is of what was handed out, not of what was made"
        assert made_by(packs, 2 * step + (4 if step < 3 else 2)), "one step ahead, and none behind the last"
    feed.close()
    assert packs.closed


def test_a_step_is_made_while_the_one_before_is_used() -> None:
    packs = Counting(waits_at=3)
    feed = feed_of(packs)
    assert feed.take(more=True) == ["batch 0", "batch 1"]  # although the next is not there
    packs.go.set()
    assert feed.take(more=False) == ["batch 2", "batch 3"]
    feed.close()


def test_what_reading_raises_is_raised_when_its_step_is_taken() -> None:
    packs = Counting(fails_at=3)
    feed = feed_of(packs)
    assert feed.take(more=True) == ["batch 0", "batch 1"]
    with pytest.raises(ValueError, match="fails at 3"):
        feed.take(more=True)
    assert feed.state == {"made": 2}
    feed.close()
    assert packs.closed


def test_the_end_does_not_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "LONGEST", 0.2)
    packs = Counting(waits_at=2)
    feed = feed_of(packs)
    feed.take(more=True)
    start = time.monotonic()
    feed.close()
    assert packs.closed and time.monotonic() - start < 2
    packs.go.set()
