"""Step times by hand: what a ring moves, how often, and where sending takes as long as computing."""

import math
from pathlib import Path

import pytest

from tests.trainer.test_plan import tiny_config
from trainer.plan import Plan, Shape
from trainer.step_time import GPUS, NODE, Traffic, ring, step_time

H100 = GPUS["h100"]
FAR = min(H100.inside, NODE * H100.outside)  # a node's cards together


def seconds(traffic: Traffic, ranks: int, node_copy: int = 1, hop: float = 0.0, micro_steps: int = 1) -> float:
    return step_time(1e15, traffic, ranks, H100, 0.5, micro_steps, node_copy, hop).communication


def test_a_ring_passes_all_but_its_own_share():
    assert ring(8e9, 1, H100) == 0
    assert ring(8e9, 2, H100) == pytest.approx(4e9 / 450e9)
    assert ring(8e9, 8, H100) == pytest.approx(7e9 / 450e9)  # within a node
    assert ring(8e9, 16, H100) == pytest.approx(7.5e9 / 400e9)  # past its border, through eight cards of 50 GB/s
    assert ring(8e9, 16, GPUS["a100"]) == pytest.approx(7.5e9 / 200e9)


def test_one_round_receives_weights_twice_and_sends_gradients_once():
    traffic = Traffic.of(1000, 600, 1, 10, 2)
    assert (traffic.weights, traffic.passes, traffic.gradients, traffic.reductions) == (2000, 2, 1200, 1)
    assert seconds(traffic, 64) == pytest.approx((2 * 2000 + 1200) * 63 / 64 / FAR)
    assert seconds(traffic, 1) == 0


@pytest.mark.parametrize("ranks", [8, 64])
def test_two_rounds_double_all_that_is_sent(ranks: int):
    one, two = (Traffic.of(10**10, 10**10, rounds, 80, 2) for rounds in (1, 2))
    assert seconds(two, ranks, hop=5e-6) == pytest.approx(2 * seconds(one, ranks, hop=5e-6))
    assert seconds(one, ranks, hop=5e-6, micro_steps=4) == pytest.approx(4 * seconds(one, ranks, hop=5e-6))


def test_a_copy_per_node_leaves_one_pass_between_nodes():
    traffic, ranks = Traffic.of(10**10, 10**10, 2, 80, 2), 64
    wide, near, gradients = ring(2e10, ranks, H100), ring(2e10, NODE, H100), ring(2e10, ranks, H100)
    assert seconds(traffic, ranks) == pytest.approx(4 * wide + 2 * gradients)
    assert seconds(traffic, ranks, node_copy=NODE) == pytest.approx(wide + 3 * near + 2 * gradients)
    assert seconds(traffic, NODE, node_copy=NODE) == pytest.approx(seconds(traffic, NODE))  # all are near


def test_every_further_node_makes_calls_wait():
    traffic = Traffic.of(0, 0, 1, 10, 2)
    assert traffic.collectives == 30  # of each layer two gathers and a reduction
    assert seconds(traffic, NODE, hop=1.0) == 0
    assert seconds(traffic, 4 * NODE, hop=1.0) == pytest.approx(30 * 3)
    assert seconds(traffic, 4 * NODE, NODE, hop=1.0) == pytest.approx(20 * 3)  # one gather stays in the node


def test_the_longer_side_is_the_step():
    time = step_time(1e15, Traffic.of(10**9, 10**9, 1, 10, 2), 64, H100, 0.5, 2, 1, 0.0)
    assert time.compute == pytest.approx(2 * 1e15 / (0.5 * 989e12))
    assert time.step == time.compute > time.communication
    slow = step_time(1e9, Traffic.of(10**9, 10**9, 1, 10, 2), 64, H100, 0.5, 2, 1, 0.0)
    assert slow.step == slow.communication > slow.compute


def test_at_the_even_budget_both_sides_take_as_long(tiny_backbone: Path):
    """What the plan prints as `even at train.tokens`, planned itself: within the one sample that fills it up."""
    config = tiny_config(tiny_backbone, **{"train.precision": "bf16", "train.tokens": 500})
    shape = Shape(prompt=12, image=4, answer=2)
    plan = Plan(config, shape=shape)
    ranks, before = NODE, plan.time(NODE, H100, 0.4)
    even = math.ceil(plan.batch.tokens * before.communication / before.compute)
    assert even > 2 * plan.batch.tokens  # sending takes longer before
    other = Plan(tiny_config(tiny_backbone, **{"train.precision": "bf16", "train.tokens": even}), shape=shape)
    after, each = other.time(ranks, H100, 0.4), other.batch.tokens / other.batch.samples
    assert after.communication == before.communication
    assert 1 - each / even <= after.compute / after.communication <= 1 + 1 / even
