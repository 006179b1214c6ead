"""What a completion earns: a weighted sum of parts, each a small function. The weights may change over the run.

The attention part, its layers and its gates follow In Silence (arXiv 2605.18641); accuracy and format are the usual
two of verifiable rewards. Accuracy is what the evaluator says of the same text, so that a run learns what is measured.
"""

import re
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from data.sample import Sample
from eval.benchmarks.shards import item_of
from eval.read_out import read
from trainer.rl.group import Group

Gate = Literal["none", "correct", "group_solved"]

# ---- Settings ----


def _weight(value: object, parse: ValidatorFunctionWrapHandler) -> object:
    try:
        weight = parse(value)
    except ValidationError:  # it names two faults, one for each form
        raise ValueError("not a weight; write a number, or a list of points [share of steps, weight]") from None
    points = ((0.0, weight),) if isinstance(weight, float) else weight
    if not points:
        raise ValueError("no points; write a number, or at least one [share of steps, weight]")
    for share, height in points:
        if not 0 <= share <= 1:
            raise ValueError(f"share {share} is not from 0 to 1; write it as a part of the run's steps")
        if not 0 <= height <= 1000:
            raise ValueError(f"weight {height} is not from 0 to 1000; choose one that is")
    for (before, _), (share, _) in pairwise(points):
        if share <= before:
            raise ValueError(f"share {share} comes after {before}; write the points with rising shares")
    return weight


Weight = Annotated[
    float | tuple[tuple[float, float], ...],
    Field(description="0 to 1000, or points [share of steps, weight], linear between and constant beyond them"),
    WrapValidator(_weight),
]


class PartConfig(BaseModel):
    """One part of the reward. With weight 0 it is still computed, to be looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: Weight

    def weight_at(self, share: float) -> float:
        """The weight when `share` of the steps is done."""
        if isinstance(self.weight, float):
            return self.weight
        if share <= self.weight[0][0]:
            return self.weight[0][1]
        for (start, low), (end, high) in pairwise(self.weight):
            if share < end:
                return low + (high - low) * (share - start) / (end - start)
        return self.weight[-1][1]


class AccuracyConfig(PartConfig):
    """1 for a right answer, else 0."""

    weight: Weight = 0.9


class FormatConfig(PartConfig):
    """1 where the text has the asked form, else 0."""

    weight: Weight = 0.1
    pattern: str = Field(
        r"\\boxed\{.+?\}",
        min_length=1,
        description="regular expression that is found somewhere in the text; a dot is a line end as well",
    )

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(f"not a regular expression ({error}); escape what is meant literally by \\") from None
        return pattern


class LengthConfig(PartConfig):
    """Minus the tokens that are too many."""

    weight: Weight = 0.0
    free: int = Field(256, ge=0, description="tokens of a completion that cost nothing")


class AttentionConfig(PartConfig):
    """The attention that the words pay to the latents."""

    weight: Weight = 1.0
    gate: Gate = Field(
        "correct",
        description="who is paid. none: every completion; correct: those that are right; group_solved: all of a "
        "group in which one is right",
    )
    layers: Literal["first", "middle", "last", "all"] = Field(
        "middle",
        description="layers of the language model whose attention counts: the first, the middle third, the last, all",
    )
    causal: bool = Field(
        True,
        description="false: as the released code of arXiv 2605.18641, which normalises over future tokens as well; "
        "for reproduction",
    )

    def layers_of(self, count: int) -> frozenset[int]:
        """Which of `count` layers (from 0) these are. A layer that is partly in the middle third counts."""
        chosen = {
            "first": range(1),
            "middle": range(count // 3, -(-2 * count // 3)),
            "last": range(count - 1, count),
            "all": range(count),
        }
        return frozenset(chosen[self.layers])


class RewardsConfig(BaseModel):
    """The parts of the reward."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accuracy: AccuracyConfig = AccuracyConfig()
    format: FormatConfig = FormatConfig()
    length: LengthConfig = LengthConfig()
    attention: AttentionConfig = AttentionConfig()

    def weights_at(self, share: float) -> dict[str, float]:
        """The weight of every part when `share` of the steps is done."""
        parts = {
            "accuracy": self.accuracy,
            "format": self.format,
            "length": self.length,
            "attention": self.attention,
        }
        return {name: part.weight_at(share) for name, part in parts.items()}


# ---- The parts ----


def accuracy(sample: Sample, text: str) -> float:
    """1 where the evaluator, by its plain rules, reads the right answer in the text."""
    item = item_of(sample)
    return float(read(item, text).answer == item.label)


def form(text: str, pattern: str) -> float:
    """1 where the pattern is found."""
    return float(re.search(pattern, text, re.DOTALL) is not None)


def length(tokens: int, free: int) -> float:
    """Minus the tokens beyond the free ones."""
    return float(min(0, free - tokens))


def attention(mass: float, right: bool, any_right: bool, gate: Gate) -> float:
    """The mass where the gate is open, else 0. `any_right`: whether one of the group is."""
    paid = {"none": True, "correct": right, "group_solved": any_right}[gate]
    return mass if paid else 0.0


# ---- All of them ----


def rate(group: Group, masses: list[float], config: RewardsConfig, share: float) -> None:
    """Fill in a group's parts, their weights and its rewards, when `share` of the steps is done.

    `masses`: the share of each completion's attention that goes to its latents (Seen.to_latents). It is kept as the
    part `attention_mass`, which has no weight; `attention` is what is left of it behind the gate. A part that is not
    finite makes the reward so too, whatever its weight.
    """
    sample = group.prompt.sample
    right = [accuracy(sample, text) for text in group.texts]
    solved = any(right)
    group.parts = {
        "accuracy": right,
        "format": [form(text, config.format.pattern) for text in group.texts],
        "length": [length(len(completion.ids), config.length.free) for completion in group.completions],
        "attention": [
            attention(mass, bool(one), solved, config.attention.gate) for mass, one in zip(masses, right, strict=True)
        ],
        "attention_mass": list(masses),
    }
    group.weights = config.weights_at(share)
    group.rewards = [
        sum(weight * group.parts[name][i] for name, weight in group.weights.items())
        for i in range(len(group.completions))
    ]
