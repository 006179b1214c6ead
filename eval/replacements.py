"""Other latents in the place of an item's own: all that can be made from the prior's means alone.

eval/interventions.py asks a benchmark with them; `replacement` needs nothing of it, so that any program can make them.
They enter the model as its own do, through an RMSNorm of every slot (model/latent.py). That takes lengths away: a mean
of many means arrives no smaller than one of them, and of zeros nothing is left but the slots' own vectors.

Letters in shapes: N items, k slots, d latent width.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from data.sample import UserError
from model.batch import generator_of

GIVEN = {  # what z is
    "zero": "z of zeros, which leaves the slots' own vectors",
    "unit_noise": "z from N(0, I)",
    "matched_noise": "z from normals with the mean and the spread, per slot and dimension, of the prior's means",
    "data_mean": "the mean over all items, per slot and dimension, of the prior's means",
    "first_slot": "the first slot of the item's own prior mean in every slot",
    "shuffled": "the slots of the item's own prior mean in another order, none in its place",
    "other_item": "the prior's mean of another item",
}
SAME = 1e-3  # of z's length: a change below it is lost where z is rounded to bf16, which has 8 bits
TINY = 1e-6  # a length that counts as none
# A log-likelihood that moves less has not moved: other batches alone move it by 1e-5, in fp32. In bf16 they move it by
# more, so that there only intervals around 0 tell of latents that do not reach the answer.
NATS = 1e-4
MOST = 0.1  # of the items may have the z that they had
ALIKE = {  # why z stays what it is, where it is not that items are alike
    "zero": "as that mean is nearly zero",
    "first_slot": "as an item's slots hardly differ",
    "shuffled": "as an item's slots hardly differ",
    "oracle": "as the posterior agrees with it",  # an arm of the diagnosis alone
}
ONE_SLOT = {"shuffled": "one slot alone has no other order", "first_slot": "one slot alone is the first"}


class InterventionError(UserError):
    """An intervention that cannot be made, or that changed nothing where it should have."""


def replacement(name: str, keys: Sequence[str], means: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """z [k, d] in fp32 of every item in `keys`, for one of GIVEN. `means`: the prior's mean [k, d] of items by key.

    The same for the same items, in whatever order they come. `zero`, `unit_noise`, `first_slot` and `shuffled` of an
    item depend on no other item, and noise and order on seed, name and key alone. A key without a mean cannot be run,
    and fails in every arm; it gets some z all the same.

    InterventionError: another name, no means, `other_item` of fewer than two items, `shuffled` of one slot.
    """
    if name not in GIVEN:
        raise InterventionError(f"{name}: not one of {', '.join(GIVEN)}; name one of these")
    if not means:
        raise InterventionError(f"{name}: no item has a prior's mean to make it from")
    known = sorted(means)
    own = {key: means.get(key, means[known[0]]) for key in keys}
    if name == "zero":
        return {key: torch.zeros(z.shape) for key, z in own.items()}
    if name == "first_slot":
        return {key: z[:1].float().repeat(len(z), 1) for key, z in own.items()}
    if name == "shuffled":
        orders = {key: _derangement(len(z), generator_of(f"{seed}/{name}/{key}")) for key, z in own.items()}
        return {key: z[orders[key]].float() for key, z in own.items()}
    if name == "other_item":
        source = _exchanged(known, generator_of(f"{seed}/{name}"))
        return {key: means[source.get(key, known[0])].float() for key in keys}
    noise = {key: torch.randn(z.shape, generator=generator_of(f"{seed}/{name}/{key}")) for key, z in own.items()}
    if name == "unit_noise":
        return noise
    every = torch.stack([means[key] for key in known]).double()  # [N, k, d]
    mean, spread = every.mean(0), every.std(0, correction=0)
    if name == "data_mean":
        return {key: mean.float() for key in keys}
    return {key: (mean + spread * one).float() for key, one in noise.items()}


def _derangement(k: int, generator: torch.Generator) -> Tensor:
    """An order [k] in which no slot keeps its place, all such orders equally likely."""
    if k < 2:
        raise InterventionError(f"shuffled: {ONE_SLOT['shuffled']}; leave it out")
    places = torch.arange(k)
    while True:  # more than one order in three will do, whatever k is
        order = torch.randperm(k, generator=generator)
        if not (order == places).any():
            return order


def _exchanged(known: Sequence[str], generator: torch.Generator) -> dict[str, str]:
    """By key, the item whose mean it gets: around one circle in a random order, so that none keeps its own."""
    if len(known) < 2:
        raise InterventionError(f"other_item: {len(known)} item is too few to exchange latents; raise --limit")
    order = torch.randperm(len(known), generator=generator).tolist()
    return {known[order[at - 1]]: known[there] for at, there in enumerate(order)}


def moved_by(z: Mapping[str, Tensor], means: Mapping[str, Tensor]) -> Tensor:
    """How far each item's z is from its prior's mean, in lengths of that mean [N]."""
    return torch.stack([(z[key] - mean).norm() / mean.norm().clamp(min=TINY) for key, mean in means.items()])


def unchanged(name: str, moved: Tensor) -> str | None:
    """Why this replacement is none, if too many items would be given the z that they have. `moved`: [N]."""
    same = int((moved <= SAME).sum())
    if same <= MOST * len(moved):
        return None
    why = ALIKE.get(name, "as that mean hardly differs from item to item")
    return f"z of {same} of {len(moved)} items stays the prior's mean to {SAME:.1%}, {why}"


def unmoved(pairs: Iterable[tuple[Sequence[float], Sequence[float]]]) -> str | None:
    """Why an intervention is none, if none of the log-likelihoods with (before, after) it moved, in nats."""
    if max(abs(x - y) for before, after in pairs for x, y in zip(before, after, strict=True)) > NATS:
        return None
    return f"every log-likelihood stays what it was to {NATS:g} nats, so latents do not reach the answer"
