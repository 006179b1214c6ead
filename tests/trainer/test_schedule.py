"""The learning rate over the steps."""

import itertools

import pytest
import torch

from trainer.schedule import ScheduleConfig


def test_warms_up_linearly_and_falls_to_the_floor():
    config = ScheduleConfig(steps=100, warmup=0.1, floor=0.2)
    factors = [config.factor(step) for step in range(101)]
    assert factors[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert max(factors) == pytest.approx(1.0)
    assert factors.index(max(factors)) in (9, 10)
    assert factors[100] == pytest.approx(0.2)
    assert factors[55] == pytest.approx(0.6)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_no_warmup_starts_at_the_top():
    assert ScheduleConfig(steps=10, warmup=0).factor(0) == pytest.approx(1.0)


def test_two_groups_keep_their_ratio():
    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1e-3}, {"params": [b], "lr": 1e-2}])
    scheduler = ScheduleConfig(steps=10, warmup=0.3).scheduler(optimizer)
    for step in range(10):
        low, high = (group["lr"] for group in optimizer.param_groups)
        assert high == pytest.approx(10 * low)
        assert low == pytest.approx(1e-3 * ScheduleConfig(steps=10, warmup=0.3).factor(step))
        optimizer.step()
        scheduler.step()
