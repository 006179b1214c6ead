"""What is done with each drawn sample before it can be packed: read, decoded, put into tokens, fitted to the budget."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

from data import tar
from data.bad import Kind, LeftOut
from data.pictures import LIMITS, Limits
from data.processor import Encoded
from data.reader import Raw
from data.sample import DataError
from data.shards.read import parse


class Ready(NamedTuple):
    """An encoded sample that fits the budget."""

    item: Encoded
    cost: int  # tokens
    shrunk: bool


Outcome = Ready | LeftOut  # of a draw


class Prepare:
    """From the bytes of a sample to tokens that fit the budget. Only faults of the data are caught."""

    def __init__(
        self,
        encode: Callable[..., Encoded],  # (sample, fewer): with so many image tokens less, at least, where it can be
        cost: Callable[[Encoded], int],  # tokens; one less for every image token less
        budget: int,
        oversize: Literal["shrink", "drop"],
        limits: Limits = LIMITS,
        pictures: bool = False,  # keep their bytes as well
    ) -> None:
        self.encode, self.cost, self.budget = encode, cost, budget
        self.oversize, self.limits, self.pictures = oversize, limits, pictures

    def __call__(self, raw: Raw) -> Outcome:
        try:
            if raw.fault:
                raise DataError(f"{raw.place}: {raw.fault}")
            sample = parse(raw.content, raw.shard, self.limits).model_copy(update={"epoch": raw.epoch})
            item = self.encode(sample, 0)
            cost, shrunk = self.cost(item), False
            if cost > self.budget and self.oversize == "shrink":
                item = self.encode(sample, cost - self.budget)
                cost, shrunk = self.cost(item), True
        except DataError as error:
            return _left_out(raw, "bad", str(error))
        if cost > self.budget:
            mend = "raise train.tokens or lower model.max_pixels"
            reason = f"{sample.place}: {cost} tokens, more than the budget of {self.budget}; {mend}"
            return _left_out(raw, "too large", reason)
        if not self.pictures:  # they are in `pixels` now, and need not be carried on
            item = replace(item, sample=sample.model_copy(update={"images": ()}))
        return Ready(item, cost, shrunk)

    def lost(self, raw: Raw, why: str) -> LeftOut:
        """For a sample that no process could work on."""
        return _left_out(raw, "bad", f"{raw.place}: {why}; leave the sample out")


def _left_out(raw: Raw, kind: Kind, reason: str) -> LeftOut:
    return LeftOut(kind, raw.shard, raw.sample, tar.first_key(raw.content), raw.epoch, reason)
