"""Answers from the prior: a prefix, its images and its prior once, then branches over what they left behind.

`generate` writes replies token by token, `score` measures options; both begin with `think`. What a sample is answered
does not depend on the samples beside it: no padding takes part, and noise is drawn per sample.

Letters in shapes: N samples, B branches of a sample (draws of z), R = N * B, k slots, d latent width, C hidden size,
V vocabulary, O options of a sample.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from data.processor import Encoded
from data.sample import UserError
from model.attention import Round
from model.batch import Markers, collate, generator_of, noise_of
from model.latent_vlm import LatentVLM
from model.layout import next_round
from model.objective import Recipe

Together = Callable[[bool], bool]  # whether any rank says so; ranks that take turns in one model must stay in step


class ThoughtError(UserError):
    """Latents that a model does not have."""


@dataclass(frozen=True)
class Thinking:
    """Where z comes from: the prior's mean, one draw, several draws (one branch each), or no latents at all."""

    kind: str = "mean"  # mean, sample, vote or off
    temperature: float = 1.0  # times the prior's standard deviation
    draws: int = 1

    @classmethod
    def parse(cls, text: str) -> "Thinking":
        """`mean`, `off`, `sample:T`, `vote:N` or `vote:N:T`; ThoughtError names what it cannot be."""
        kind, *rest = text.split(":")
        try:
            if kind in ("mean", "off") and not rest:
                return cls(kind)
            if kind == "sample" and len(rest) == 1:
                return cls(kind, _temperature(rest[0]))
            if kind == "vote" and len(rest) in (1, 2) and 1 <= int(rest[0]) <= 1000:
                return cls(kind, _temperature(rest[1]) if len(rest) == 2 else 1.0, int(rest[0]))
        except ValueError:
            pass
        raise ThoughtError(f"latents {text!r}: not mean, off, sample:T or vote:N (N from 1 to 1000, T from 0 to 100)")


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 100:
        raise ValueError(text)
    return value


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen, and when a reply ends."""

    ends: frozenset[int]  # token ids that end a reply, and are no part of it
    most: int  # tokens of a reply at most
    temperature: float = 0.0  # 0: the likeliest token
    top_p: float = 1.0  # the smallest set of tokens with so much of the probability (nucleus, arXiv 1904.09751)
    seed: int = 0
    stopped: Callable[[list[int]], bool] | None = None  # whether a reply so far holds a text that ends it


@dataclass
class Reply:
    """Token ids without the end mark, and why it ended."""

    ids: list[int] = field(default_factory=list)
    finish: Literal["end", "stop", "length"] = "length"


class Thought(NamedTuple):
    """Where branches stand before their first answer token."""

    states: Tensor  # [R, C] of the last token of every branch, sample by sample
    round_: Round  # what an answer token sees
    branches: int  # B
    behind: int  # tokens of a branch so far


@torch.no_grad()
def think(model: LatentVLM, samples: list[Encoded], markers: Markers, thinking: Thinking, seed: int = 0) -> Thought:
    """Run prefixes, priors and latents."""
    check(model.recipe, thinking)
    recipe = Recipe("none") if thinking.kind == "off" else model.recipe
    device, k, draws = model.scale.device, model.config.slots, thinking.draws
    batch = collate(samples, recipe, model.config, model.backbone, markers, answers=False).to(device)
    states, round_ = model.prompt_round(batch)
    if recipe.latents in ("none", "pause"):
        return Thought(states[round_.layout.last_rows()], round_, 1, k + 2 if recipe.latents == "pause" else 0)
    prior = model.prior_of(batch, states)
    z = prior.mean.repeat_interleave(draws, 0)  # [R, k, d]
    if thinking.kind != "mean":
        noise = [noise_of(s.sample, f"{seed}/{draw}", model.config) for s in samples for draw in range(draws)]
        spread = thinking.temperature * prior.log_sigma.exp().repeat_interleave(draws, 0)
        z = z + spread * torch.stack(noise).to(device)
    layout = next_round(round_.layout, [[k + 2] * draws for _ in samples], [[0] * draws for _ in samples], keep=True)
    ids = torch.tensor([markers.start, *[0] * k, markers.end], device=device).repeat(len(z))
    z_rows = torch.arange(len(ids), device=device).view(len(z), -1)[:, 1:-1].flatten()
    round_ = model.round(layout.to(device), round_)
    states = model.backbone.states(model.decode_inputs(ids, z_rows, z), round_)
    return Thought(states[layout.last_rows()], round_, draws, k + 2)


def check(recipe: Recipe, thinking: Thinking) -> None:
    """ThoughtError unless a model of this recipe can think so."""
    if thinking.kind in ("sample", "vote") and recipe.latents != "posterior":
        raise ThoughtError(f"latents {thinking.kind!r}: this model has no trained spread to draw from; use mean or off")


@torch.no_grad()
def generate(
    model: LatentVLM,
    samples: list[Encoded],
    markers: Markers,
    decoding: Decoding,
    thinking: Thinking,
    together: Together = bool,
) -> list[list[Reply]]:
    """The replies to each sample, one per branch. Branches that are done leave the batch."""
    states, round_, width, behind = think(model, samples, markers, thinking, decoding.seed)
    replies = [[Reply() for _ in range(width)] for _ in samples]
    choose = _Chooser(decoding, [f"{s.sample.key}/{branch}" for s in samples for branch in range(width)])
    going = [(sample, branch) for sample in range(len(samples)) for branch in range(width)]  # as `states` are
    done = False
    while True:
        tokens = choose(model.backbone.logits(states), [sample * width + branch for sample, branch in going])
        rows = [] if done else [row for row, (s, b) in enumerate(going) if _add(replies[s][b], tokens[row], decoding)]
        done = not rows
        if not together(not done):
            return replies
        rows = rows or [0]  # other ranks go on: keep step with them, for nothing
        if len(rows) < len(going):
            round_ = round_.fork(_parents(going, rows))
            going = [going[row] for row in rows]
        ids = torch.tensor([tokens[row] for row in rows], device=states.device)
        counts = Counter(sample for sample, _ in going).values()
        layout = next_round(round_.layout, [[1] * n for n in counts], [[behind] * n for n in counts], keep=not done)
        round_, behind = model.round(layout.to(states.device), round_), behind + 1
        states = model.backbone.states(model.backbone.embedding(ids), round_)


def _add(reply: Reply, token: int, decoding: Decoding) -> bool:
    """Add a token to a reply. Whether it goes on."""
    if token in decoding.ends:
        reply.finish = "end"
        return False
    reply.ids.append(token)
    if decoding.stopped and decoding.stopped(reply.ids):
        reply.finish = "stop"
        return False
    return len(reply.ids) < decoding.most


def _parents(going: list[tuple[int, int]], rows: list[int]) -> list[list[int]]:
    """Per sample in the batch, the numbers of its branches that stay."""
    seen: Counter[int] = Counter()
    parents: dict[int, list[int]] = {}
    stay = set(rows)
    for row, (sample, _) in enumerate(going):
        parents.setdefault(sample, []).extend([seen[sample]] * (row in stay))
        seen[sample] += 1
    return list(parents.values())


class _Chooser:
    """Next tokens of branches. Each draws from random numbers of its own, whatever batch it is in."""

    def __init__(self, decoding: Decoding, names: list[str]) -> None:
        self.decoding = decoding
        self.generators = [generator_of(f"{decoding.seed}/{name}") for name in names] if decoding.temperature else []

    def __call__(self, logits: Tensor, branches: list[int]) -> list[int]:
        """Of these branches, logits [len(branches), V]."""
        if not self.decoding.temperature:
            chosen: list[int] = logits.argmax(-1).tolist()
            return chosen
        share, order = (
            (logits.float() / self.decoding.temperature).softmax(-1).sort(stable=True, dim=-1, descending=True)
        )
        before = share.cumsum(-1) - share
        share = share.where(before < self.decoding.top_p, 0.0)  # the likeliest always stays
        level = torch.stack([torch.rand((), generator=self.generators[b], dtype=torch.float64) for b in branches])
        sums = share.double().cumsum(-1)
        place = torch.searchsorted(sums, level.to(sums.device)[:, None] * sums[:, -1:], right=True)
        return order.gather(1, place.clamp(max=share.shape[1] - 1))[:, 0].tolist()


@torch.no_grad()
def score(
    model: LatentVLM,
    samples: list[Encoded],
    markers: Markers,
    options: list[list[list[int]]],
    thinking: Thinking,
    seed: int = 0,
    together: Together = bool,
) -> list[Tensor]:
    """Log-likelihood [O] of each sample's options (token ids, at least one each), nats, float64.

    With several draws, that of their mixture: log (1/B) sum_b p(option | x, z_b), the prior's marginal by Monte Carlo.
    """
    states, round_, width, behind = think(model, samples, markers, thinking, seed)
    counts = [len(of_sample) for of_sample in options]
    branches = [option for of_sample in options for _ in range(width) for option in of_sample]  # as the layout's
    origin = torch.arange(len(states)).repeat_interleave(torch.tensor(counts).repeat_interleave(width))
    vectors, targets = [states[origin]], [option[0] for option in branches]
    owner = list(range(len(branches)))
    longer = any(len(option) > 1 for option in branches)
    if together(longer):
        lengths = [[len(option) - 1 for option in of_sample] * width for of_sample in options]
        known = [token for option in branches for token in option[:-1]]
        if not longer:  # other ranks have longer ones: keep step with them, for nothing
            lengths[0][0], known = 1, [0]
        fork = round_.fork([[b for b in range(width) for _ in range(count)] for count in counts])
        layout = next_round(fork.layout, lengths, [[behind] * len(of_sample) for of_sample in lengths])
        ids = torch.tensor(known, device=states.device)
        found = model.backbone.states(model.backbone.embedding(ids), model.round(layout.to(states.device), fork))
        if longer:
            vectors.append(found)
            targets += [token for option in branches for token in option[1:]]
            owner += [number for number, option in enumerate(branches) for _ in option[1:]]
    nats = model.target_loss(torch.cat(vectors), torch.tensor(targets, device=states.device), each=True)
    whole = torch.zeros(len(branches), dtype=torch.float64).index_add_(0, torch.tensor(owner), -nats.double().cpu())
    of_samples = whole.split([width * count for count in counts])
    return [x.view(width, -1).logsumexp(0) - math.log(width) for x in of_samples]
