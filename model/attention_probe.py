"""How much attention chosen rows of a round pay to latents and to image tokens, exactly, in chosen layers.

It is computed again from queries and keys, a bounded number of scores at a time and for the chosen queries alone,
next to the attention that the layer itself needs. For rounds of branches without a gradient.

Letters in shapes: T tokens of the row, P tokens of the prefixes, Q chosen queries, R query rows, S key rows,
H query heads, G key and value heads, D head size.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

LATENTS, IMAGES = 0, 1  # the columns of what is found
SCORES = 2**25  # how many scores exist at a time; in fp32, and as weights as well


@dataclass(frozen=True)
class Probe:
    """What to measure in one round, and what was found. Its tensors may lie on any device."""

    layers: frozenset[int]
    queries: Tensor  # [Q] rows of this round whose attention is measured
    latents: Tensor  # [T] bool: the rows of this round that are latents (a query sees those of its own branch alone)
    images: Tensor  # [P] bool: the prefix tokens that are of images, sample by sample
    # Without the causal order a query sees its whole branch, the later tokens too: only to reproduce results that
    # were measured so. The layers themselves attend as ever.
    causal: bool = True
    # Per layer [Q, 2] fp32: mean over heads of the attention weights' sum over latents, and over image tokens.
    found: dict[int, Tensor] = field(default_factory=dict)

    def check(self, tokens: int, prefix_tokens: int) -> None:
        """ValueError unless it fits a round of so many tokens over prefixes of so many."""
        for name, flags, expected in (("latents", self.latents, tokens), ("images", self.images, prefix_tokens)):
            if flags.shape != (expected,) or flags.dtype != torch.bool:
                raise ValueError(f"probe: {name} is {flags.dtype} {list(flags.shape)}, not bool [{expected}]")


def mass(q: Tensor, k: Tensor, seen: Tensor, kinds: Tensor, scale: float, lse: Tensor | None = None) -> Tensor:
    """Attention weights from q [R, H, D] to k [S, G, D], mean over heads, summed over each kind of keys -> [R, kinds].

    seen [R, S] bool: who sees whom; kinds [S, kinds] bool; lse [H, R]: log-sum-exp of a query's scores over all
    that it sees, of which the keys here may be a part (None: they are all).
    """
    found = q.new_zeros((q.shape[0], kinds.shape[1]), dtype=torch.float32)
    if not len(k):
        return found
    columns = kinds.to(q.device, torch.float32)
    for rows in chunks(q.shape[0], q.shape[1] * k.shape[0]):
        weights = scores(q[rows], k, scale).masked_fill_(~seen[rows].to(q.device), float("-inf"))
        over = weights.logsumexp(-1) if lse is None else lse[:, rows]
        found[rows] = weights.sub_(over[..., None]).exp_().mean(0) @ columns
    return found


def scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """q [R, H, D], k [S, G, D] -> [H, R, S] fp32. Neighbouring query heads share a key head."""
    grouped = q.float().unflatten(1, (k.shape[1], -1))  # [R, G, H / G, D]
    return torch.einsum("rgnd,sgd->gnrs", grouped, k.float()).flatten(0, 1).mul_(scale)


def chunks(rows: int, width: int) -> Iterator[slice]:
    """All rows, as few at a time as keep their scores (`width` of each) within SCORES, but one at least."""
    step = max(1, SCORES // width)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
