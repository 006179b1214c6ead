"""Metrics of a rollout by hand, from the sums of two ranks."""

import math

import pytest
import torch

from data.sample import Sample, Text
from model.completion import Completion
from trainer.rl.group import Group, Seen
from trainer.rl.report import counted, mismatch, rates

K, D, PROMPT = 3, 2, 10


def group(
    texts: list[str], lengths: list[int], rewards: list[float], dropped: str | None = None, latents: bool = True
) -> Group:
    """Attention of completion i is 0.1 (i + 1) to latents, twice that to images; an entropy of i nats a token."""
    encoded = type("Encoded", (), {"prompt": torch.zeros(PROMPT), "sample": None})()
    encoded.sample = Sample(key="a", text=Text(question="?", answer="A", task="t", source="s"))
    z = torch.zeros(int(latents), K, D)
    made = Group(
        prompt=encoded,
        completions=[Completion((5,) * n + (1,), True, 0 if latents else None, "", (-1.0,) * (n + 1)) for n in lengths],
        texts=texts,
        seen=[
            Seen(torch.full((n + 1,), -1.5), z, z, z, float(i), 0.1 * (i + 1) * latents, 0.2 * (i + 1))
            for i, n in enumerate(lengths)
        ],
        parts={"accuracy": [1.0, 0.0], "attention": [0.1, math.nan]},
        weights={"accuracy": 1.0, "attention": 0.5},
        rewards=rewards,
        dropped=dropped,
    )
    return made


@pytest.fixture()
def metrics() -> dict[str, float]:
    one = counted([group(["A", "B"], [1, 3], [1.05, 0.0])])
    other = counted(
        [group(["A", "A"], [0, 2], [1.0, math.nan], "invalid"), group(["", ""], [1, 1], [0, 0], "equal", False)]
    )
    sums = {name: one[name] + other[name] for name in one}
    return rates(sums | {f"data {name}": 1.0 for name in ("bad", "dropped", "shrunk")})


def test_counts(metrics: dict[str, float]) -> None:
    assert [metrics[f"groups/{name}"] for name in ("kept", "invalid", "filtered", "equal", "one_text")] == [
        1,
        1,
        0,
        1,
        2,
    ]
    assert (metrics["rollout/empty"], metrics["rollout/left_out"], metrics["rollout/tokens"]) == (1, 1, 14)


def test_means(metrics: dict[str, float]) -> None:
    assert metrics["reward/accuracy"] == 0.5 and metrics["reward/attention"] == pytest.approx(0.3 / 6)
    assert metrics["reward/total"] == pytest.approx(2.05 / 5)  # of those that have one
    assert metrics["rollout/length"] == pytest.approx(14 / 6) and metrics["rollout/ended"] == 1
    assert metrics["rollout/latent_use"] == pytest.approx(4 / 6)
    assert metrics["rollout/entropy"] == pytest.approx((4 + 3 + 2) / 14)  # of the second ones' tokens, 1 nat each


def test_attention(metrics: dict[str, float]) -> None:
    """To latents of those that have some; an even share of it is K over the tokens that a word sees."""
    assert metrics["attention/to_latents"] == pytest.approx(0.15)
    assert metrics["attention/to_images"] == pytest.approx(0.3)
    assert metrics["attention/latents_over_images"] == pytest.approx(0.5)
    context = [PROMPT + K + 2 + n / 2 for n in (1, 3, 0, 2)]
    lift = [mass * seen / K for mass, seen in zip((0.1, 0.2, 0.1, 0.2), context, strict=True)]
    assert metrics["attention/lift"] == pytest.approx(sum(lift) / 4)


def test_the_furthest_log_probability() -> None:
    assert mismatch([group(["A", "B"], [1, 3], [0, 0])]) == 0.5


def test_nothing_to_divide_by() -> None:
    sums = counted([group(["", ""], [1, 1], [0, 0], "equal", False)])
    found = rates(sums | {f"data {name}": 0.0 for name in ("bad", "dropped", "shrunk")})
    assert math.isnan(found["attention/to_latents"]) and math.isnan(found["advantage/attention_share"])
