"""Advantages of a group, why groups are dropped, and how much of an advantage is attention's."""

import math
from collections.abc import Sequence

import pytest
import torch
from pydantic import ValidationError

from data.processor import Encoded
from data.sample import Sample, Text
from model.completion import Completion
from trainer.config import explain
from trainer.rl.advantages import GroupsConfig, advantages, attention_share
from trainer.rl.group import Group
from trainer.rl.rewards import RewardsConfig, rate

NAN, INF = math.nan, math.inf
ALL = GroupsConfig(accuracy_above=None, accuracy_below=None)


def group(rewards: Sequence[float], accuracy: Sequence[float] | None = None) -> Group:
    """A group as it is rated. Half of it is right where nothing else is said."""
    text = Text(question="q", answer="B", choices=("x", "y"), task="t", source="s")
    nothing = torch.zeros(0)
    prompt = Encoded(Sample(key="one", text=text), nothing, nothing, nothing, nothing)
    said = [Completion((1,), True, None, "n", (0.0,))] * len(rewards)
    right = list(accuracy) if accuracy is not None else [float(i % 2) for i in range(len(rewards))]
    texts, weights = ["B"] * len(rewards), {"accuracy": 1.0}
    return Group(prompt, said, texts, parts={"accuracy": right}, weights=weights, rewards=list(rewards))


def found(rewards: Sequence[float], accuracy: Sequence[float] | None = None, config: GroupsConfig = ALL) -> Group:
    of = group(rewards, accuracy)
    advantages(of, config)
    return of


# ---- Advantages ----


@pytest.mark.parametrize(
    ("rewards", "wanted"),
    [
        ([0, 1], [-0.5 / 0.500001, 0.5 / 0.500001]),
        ([1, 2, 3, 4], [-1.5 / 1.118035, -0.5 / 1.118035, 0.5 / 1.118035, 1.5 / 1.118035]),  # sqrt(5 / 4)
        ([0, 0, 0, 4], [-1 / 1.732052, -1 / 1.732052, -1 / 1.732052, 3 / 1.732052]),  # sqrt(3)
        ([0, 2e-6], [-0.5, 0.5]),  # 1e-6 / (1e-6 + 1e-6)
    ],
)
def test_by_hand(rewards: list[float], wanted: list[float]) -> None:
    of = found(rewards)
    assert (of.advantages, of.dropped) == (pytest.approx(wanted, abs=1e-6), None)


def test_only_valid_completions_are_compared() -> None:
    of = found([NAN, 0, INF, 1, -INF])
    assert of.advantages == pytest.approx([0, -0.5 / 0.500001, 0, 0.5 / 0.500001, 0])
    assert of.dropped is None
    assert [math.isfinite(reward) for reward in of.rewards] == [False, True, False, True, False], "they can be told"


@pytest.mark.parametrize("shift", [0.0, 0.1, -3.0, 1e3])
def test_what_all_have_in_common_does_not_count(shift: float) -> None:
    rewards = [0.3, 1.1, 0.9, 0.2, 0.7]
    of = found([reward + shift for reward in rewards])
    assert of.advantages == pytest.approx(found(rewards).advantages, abs=1e-9)
    assert sum(of.advantages) == pytest.approx(0, abs=1e-9)
    assert sum(a * a for a in of.advantages) / 5 == pytest.approx(1, abs=1e-4)


def test_the_order_does_not_count() -> None:
    rewards = [0.3, NAN, 0.9, 0.2]
    assert found(rewards[::-1]).advantages == pytest.approx(found(rewards).advantages[::-1])


def test_a_second_time_begins_anew() -> None:
    of = found([0, 0])
    assert of.dropped == "equal"
    of.rewards = [0.0, 1.0]
    advantages(of, ALL)
    assert of.dropped is None and of.advantages[1] > 0


# ---- Dropped groups ----


@pytest.mark.parametrize(
    ("rewards", "accuracy", "dropped"),
    [
        ([], [], "invalid"),
        ([1], [1], "invalid"),
        ([NAN, NAN], [0, 1], "invalid"),
        ([NAN, 1, INF], [0, 1, 1], "invalid"),
        ([NAN, 1, INF], [1, 1, 1], "invalid"),  # rather than filtered
        ([1, 1], [1, 1], "filtered"),  # rather than equal
        ([1, 2], [1, 1], "filtered"),
        ([1, 2], [0, 0], "filtered"),
        ([NAN, 1, 2], [0, 1, 1], "filtered"),  # of the valid ones all are right
        ([NAN, 1, 2], [1, 0, 0], "filtered"),
        ([1, 1], [0, 1], "equal"),
        ([0.1, 0.1, 0.1], [0, 1, 0], "equal"),
        ([0.1, 0.1, NAN], [0, 1, 0], "equal"),
        ([0, 1.9e-6], [0, 1], "equal"),  # std 0.95e-6
        ([0, 2.1e-6], [0, 1], None),
        ([1, 2], [0, 1], None),
    ],
)
def test_why_a_group_is_dropped(rewards: list[float], accuracy: list[float], dropped: str | None) -> None:
    of = found(rewards, accuracy, GroupsConfig())
    assert of.dropped == dropped
    assert len(of.advantages) == len(rewards)
    assert any(of.advantages) == (dropped is None), "nothing is trained on that is dropped"


@pytest.mark.parametrize(
    ("right", "above", "below", "taken"),
    [
        (0, 0.0, 1.0, False),
        (1, 0.0, 1.0, True),
        (3, 0.0, 1.0, True),
        (4, 0.0, 1.0, False),
        (0, None, 1.0, True),
        (4, None, 1.0, False),
        (0, 0.0, None, False),
        (4, 0.0, None, True),
        (0, None, None, True),
        (4, None, None, True),
        (1, 0.25, 0.75, False),
        (2, 0.25, 0.75, True),
        (3, 0.25, 0.75, False),
    ],
)
def test_filters(right: int, above: float | None, below: float | None, taken: bool) -> None:
    """Strictly between the limits, of a group of four."""
    accuracy = [1.0] * right + [0.0] * (4 - right)
    of = found([0, 1, 2, 3], accuracy, GroupsConfig(accuracy_above=above, accuracy_below=below))
    assert of.dropped == (None if taken else "filtered")


# ---- Attention's share ----


def shared(weights: dict[str, float], **parts: list[float]) -> float:
    count = len(parts["attention"])
    sums = [sum(weight * parts[name][i] for name, weight in weights.items()) for i in range(count)]
    of = group(sums)
    of.parts, of.weights = parts, weights
    return attention_share(of)


def test_the_share_by_hand() -> None:
    """Mean deviations 0.5 and 0.1: 0.9 * 0.5 = 0.45 of accuracy, 1 * 0.1 = 0.1 of attention."""
    weights = {"accuracy": 0.9, "attention": 1.0}
    parts = {"accuracy": [0.0, 0.0, 1.0, 1.0], "attention": [0.2, 0.4, 0.2, 0.4]}
    assert shared(weights, **parts) == pytest.approx(0.1 / 0.55)
    assert shared({"accuracy": 0.9, "attention": 2.0}, **parts) == pytest.approx(0.2 / 0.65)
    assert shared(weights, **parts, attention_mass=[9.0, 8.0, 7.0, 6.0]) == pytest.approx(0.1 / 0.55)


def test_the_share_is_that_of_the_parts_of_the_advantages() -> None:
    """As it is defined, with what it leaves out because it cancels."""
    weights = {"accuracy": 0.9, "format": 0.1, "attention": 0.5}
    parts = {"accuracy": [0.0, 1.0, 1.0], "format": [1.0, 1.0, 0.0], "attention": [0.0, 0.3, 0.7]}
    of = found([sum(weights[name] * parts[name][i] for name in parts) for i in range(3)])
    of.parts, of.weights = parts, weights
    mean = sum(of.rewards) / 3
    std = math.sqrt(sum((reward - mean) ** 2 for reward in of.rewards) / 3)
    split = {name: [weights[name] * (r - sum(rs) / 3) / (std + 1e-6) for r in rs] for name, rs in parts.items()}
    assert [sum(part) for part in zip(*split.values(), strict=True)] == pytest.approx(of.advantages)
    sizes = {name: sum(map(abs, part)) / 3 for name, part in split.items()}
    assert attention_share(of) == pytest.approx(sizes["attention"] / sum(sizes.values()))


@pytest.mark.parametrize(
    ("attention", "accuracy", "share"),
    [
        ([0.1, 0.1, 0.1], [1.0, 1.0, 1.0], 0.0),  # nothing varies, not even by rounding
        ([0.1, 0.1, 0.1], [1.0, 0.0, 1.0], 0.0),
        ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0], 1.0),
        ([], [], 0.0),
    ],
)
def test_all_or_none_of_it(attention: list[float], accuracy: list[float], share: float) -> None:
    weights = {"accuracy": 0.9, "attention": 1.0}
    assert shared(weights, attention=attention, accuracy=accuracy) == share
    assert shared(weights | {"attention": 0.0}, attention=attention, accuracy=accuracy) == 0.0


def test_only_valid_completions_share() -> None:
    weights = {"accuracy": 0.9, "attention": 1.0}
    parts = {"accuracy": [0.0, 0.0, 1.0, 1.0, 1.0], "attention": [0.2, 0.4, 0.2, 0.4, NAN]}
    assert shared(weights, **parts) == pytest.approx(0.1 / 0.55)
    assert shared(weights, accuracy=[1.0, 0.0], attention=[NAN, 0.5]) == 0.0
    assert shared(weights, accuracy=[1.0, 0.0], attention=[NAN, INF]) == 0.0


# ---- From texts to advantages ----


def test_after_rating() -> None:
    """Rewards 1.5, nan, 0.9 + 0.1 = 1, 0.1 behind the default gate."""
    of = group([0.0] * 4)
    of.texts = [r"\boxed{B}", "B", r"B \boxed{B}", r"\boxed{A}"]
    rate(of, [0.5, NAN, 0.0, 0.9], RewardsConfig(), 0.0)
    advantages(of, GroupsConfig())
    mean = (1.5 + 1 + 0.1) / 3
    std = math.sqrt(((1.5 - mean) ** 2 + (1 - mean) ** 2 + (0.1 - mean) ** 2) / 3)
    wanted = [(1.5 - mean) / std, 0, (1 - mean) / std, (0.1 - mean) / std]
    assert (of.advantages, of.dropped) == (pytest.approx(wanted, abs=1e-5), None)
    # Mean deviations: accuracy (1, 1, 0) 4/9, format none, attention (0.5, 0, 0) 2/9.
    assert attention_share(of) == pytest.approx((2 / 9) / (0.9 * 4 / 9 + 2 / 9))


# ---- Settings that cannot be used ----


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"accuracy_above": 0.8, "accuracy_below": 0.2},
            "accuracy_below: 0.2: not more than accuracy_above, 0.8; set it higher, or one of the two to null",
        ),
        (
            {"accuracy_above": 0.5, "accuracy_below": 0.5},
            "accuracy_below: 0.5: not more than accuracy_above, 0.5; set it higher, or one of the two to null",
        ),
        ({"accuracy_above": -0.1}, "accuracy_above: -0.1: Input should be greater than or equal to 0"),
        ({"accuracy_above": 1}, "accuracy_above: 1: Input should be less than 1"),
        ({"accuracy_below": 0}, "accuracy_below: 0: Input should be greater than 0"),
        ({"accuracy_below": 1.5}, "accuracy_below: 1.5: Input should be less than or equal to 1"),
        ({"accuracy_above": NAN}, "accuracy_above: nan: Input should be less than 1"),
    ],
)
def test_settings_that_cannot_be_used(values: dict, line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        GroupsConfig.model_validate(values)
    assert explain(caught.value) == line


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        GroupsConfig.model_validate({"accuracy": 0.5})
