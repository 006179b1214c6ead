"""How much better than its group a completion was, and which groups say nothing about that.

A = (R - mean R) / (std R + 1e-6) over a group's completions, as in GRPO (arXiv 2402.03300). Groups that are all right
or all wrong may be left out, as in DAPO's dynamic sampling (arXiv 2503.14476).
"""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from trainer.rl.group import Group

DROPPED = ("invalid", "filtered", "equal")  # why a group can be
EPSILON = 1e-6  # rewards that spread less are equal


class GroupsConfig(BaseModel):
    """Which groups are trained on: those whose mean accuracy lies between two limits and on neither."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accuracy_above: float | None = Field(0.0, ge=0, lt=1, description="lower limit; null: none")
    accuracy_below: float | None = Field(1.0, gt=0, le=1, description="upper limit; null: none")

    @field_validator("accuracy_below")
    @classmethod
    def _leaves_room(cls, below: float | None, info: ValidationInfo) -> float | None:
        above = info.data.get("accuracy_above")  # not there when it is faulty itself
        if below is not None and above is not None and below <= above:
            raise ValueError(f"not more than accuracy_above, {above}; set it higher, or one of the two to null")
        return below

    def takes(self, accuracy: float) -> bool:
        """Whether a group of this mean accuracy is trained on."""
        above = self.accuracy_above is None or accuracy > self.accuracy_above
        return above and (self.accuracy_below is None or accuracy < self.accuracy_below)


def advantages(group: Group, config: GroupsConfig) -> None:
    """Fill in a group's advantages, and why it is dropped where it is.

    A completion without a finite reward is left out: its advantage is 0, and the others are compared without it. Of a
    dropped group all advantages are 0. The reasons, the first that holds: `invalid`, fewer than two completions are
    left; `filtered`, their mean accuracy is not asked for; `equal`, their rewards are.
    """
    valid = group.valid
    deviations = _deviations([group.rewards[i] for i in valid])
    group.advantages = [0.0] * len(group.rewards)
    group.dropped = None
    if len(valid) < 2:
        group.dropped = "invalid"
        return
    std = math.sqrt(sum(deviation * deviation for deviation in deviations) / len(valid))
    if not config.takes(sum(group.parts["accuracy"][i] for i in valid) / len(valid)):
        group.dropped = "filtered"
    elif std < EPSILON:
        group.dropped = "equal"
    else:
        for i, deviation in zip(valid, deviations, strict=True):
            group.advantages[i] = deviation / (std + EPSILON)


def attention_share(group: Group) -> float:
    """How much of a group's advantages is due to attention, 0 to 1; 0 where nothing tells its completions apart.

    An advantage is the sum of its parts' w (r - mean r) / (std R + 1e-6). This is the mean size of attention's, as a
    share of all parts' mean sizes; what they are divided by cancels out.
    """
    valid = group.valid
    sizes = {
        name: weight * sum(abs(deviation) for deviation in _deviations([group.parts[name][i] for i in valid]))
        for name, weight in group.weights.items()
    }
    total = sum(sizes.values())
    return sizes["attention"] / total if total else 0.0


def _deviations(values: Sequence[float]) -> list[float]:
    """From the mean. Those of equal values are 0 exactly, which they are not from a mean that was rounded."""
    shifted = [value - values[0] for value in values]
    mean = sum(shifted) / max(1, len(shifted))
    return [value - mean for value in shifted]
