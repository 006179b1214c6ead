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
from model.latent import Gaussian, LatentConfig
from model.latent_vlm import LatentVLM
from model.layout import next_round
from model.objective import Recipe

Together = Callable[[bool], bool]  # whether any rank says so; ranks that take turns in one model must stay in step


class ThoughtError(UserError):
    """Latents that a model does not have."""


@dataclass(frozen=True)
class Thinking:
    """Where z comes from, and whether there is any."""

    kind: str = "mean"  # one of KINDS
    temperature: float = 1.0  # of drawn latents: times the prior's standard deviation
    draws: int = 1  # branches of a sample, each with its own draw

    @classmethod
    def parse(cls, text: str) -> "Thinking":
        """As `FORMS` says; ThoughtError names what it cannot be."""
        kind, *rest = text.split(":")
        try:
            if kind in ("mean", "off", "markers", "given") and not rest:
                return cls(kind)
            if kind == "sample" and len(rest) == 1:
                return cls(kind, _temperature(rest[0]))
            if kind == "optional" and len(rest) <= 1:
                return cls(kind, _temperature(rest[0]) if rest else 0.0)
            if kind == "vote" and len(rest) in (1, 2) and 1 <= int(rest[0]) <= 1000:
                return cls(kind, _temperature(rest[1]) if len(rest) == 2 else 1.0, int(rest[0]))
        except ValueError:
            pass
        raise ThoughtError(f"latents {text!r}: not {FORMS} (N from 1 to 1000, T from 0 to 100)")

    @property
    def drawn(self) -> bool:
        """Whether z depends on random numbers."""
        return self.kind in ("sample", "vote", "optional") and self.temperature > 0


KINDS = {  # what they are
    "mean": "the prior's mean",
    "sample": "one draw from the prior",
    "vote": "several draws, one branch each",
    "optional": "none until the model writes the start mark itself, then a draw or (temperature 0) the mean",
    "off": "no latents and no marks around them",
    "markers": "the marks with nothing between them",
    "given": "z that the caller has",
}
FORMS = "mean, sample:T, vote:N, vote:N:T, optional, optional:T, off or markers"


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
    seed: int | str = 0
    stopped: Callable[[list[int]], bool] | None = None  # whether a reply so far holds a text that ends it


@dataclass
class Reply:
    """Token ids without the end mark, and why it ended."""

    ids: list[int] = field(default_factory=list)
    finish: Literal["end", "stop", "length"] = "length"
    end: int | None = None  # the end mark, where there is one
    # Of drawn tokens and the end mark, nats, before top-p. In another batch they round differently.
    logps: list[float] = field(default_factory=list, compare=False)
    latent_at: int | None = None  # tokens before the latents; None: it has none


class Thought(NamedTuple):
    """Where branches stand before their first answer token."""

    states: Tensor  # [R, C] of the last token of every branch, sample by sample
    round_: Round  # what an answer token sees
    branches: int  # B
    behind: int  # tokens of a branch so far
    z: Tensor | None = None  # [R, k, d] where they still wait to be asked for (optional)


@torch.no_grad()
def think(
    model: LatentVLM,
    samples: list[Encoded],
    markers: Markers,
    thinking: Thinking,
    seed: int | str = 0,
    given: list[Tensor] | None = None,
) -> Thought:
    """Run prefixes, priors and latents. `given`: z [k, d] of every sample, for that kind."""
    check(model.recipe, thinking)
    recipe = Recipe("none") if thinking.kind in ("off", "markers", "given") else model.recipe
    device, k, draws = model.scale.device, model.config.slots, thinking.draws
    batch = collate(samples, recipe, model.config, model.backbone, markers, answers=False).to(device)
    states, round_ = model.prompt_round(batch)
    if recipe.latents == "pause":
        ends = states[round_.layout.last_rows()].repeat_interleave(draws, 0)
        return Thought(ends, round_.fork([[0] * draws for _ in samples]) if draws > 1 else round_, draws, k + 2)
    z = None
    if thinking.kind == "given":
        assert given is not None
        z = torch.stack(given).to(device)
    elif recipe.latents != "none":
        z = _drawn(model.prior_of(batch, states), samples, thinking, seed, model.config)
    if thinking.kind == "optional" or (z is None and thinking.kind != "markers"):
        return Thought(states[round_.layout.prefix_ends()].repeat_interleave(draws, 0), round_, draws, 0, z)
    width = 2 if z is None else k + 2
    layout = next_round(round_.layout, [[width] * draws for _ in samples], [[0] * draws for _ in samples], keep=True)
    round_ = model.round(layout.to(device), round_)
    ids = torch.tensor([markers.start, *[0] * (width - 2), markers.end], device=device).repeat(draws * len(samples))
    if z is None:
        inputs = model.backbone.embedding(ids)
    else:
        inputs = model.decode_inputs(ids, torch.arange(len(ids), device=device).view(len(z), -1)[:, 1:-1].flatten(), z)
    states = model.backbone.states(inputs, round_)
    return Thought(states[layout.last_rows()], round_, draws, width)


def _drawn(
    prior: Gaussian, samples: list[Encoded], thinking: Thinking, seed: int | str, config: LatentConfig
) -> Tensor:
    """z [R, k, d] of every branch: the mean, or draws whose noise is named by seed, draw and sample."""
    z = prior.mean.repeat_interleave(thinking.draws, 0)
    if not thinking.drawn:
        return z
    noise = [noise_of(s.sample, draw_name(seed, draw), config) for s in samples for draw in range(thinking.draws)]
    spread = thinking.temperature * prior.log_sigma.exp().repeat_interleave(thinking.draws, 0)
    return z + spread * torch.stack(noise).to(z.device)


def draw_name(seed: int | str, draw: int) -> str:
    """Names the noise of one draw for `noise_of`."""
    return f"{seed}/{draw}"


def check(recipe: Recipe, thinking: Thinking) -> None:
    """ThoughtError unless a model of this recipe can think so."""
    if (thinking.kind in ("sample", "vote") or thinking.drawn) and recipe.latents != "posterior":
        raise ThoughtError(f"latents {thinking.kind!r}: this model has no trained spread to draw from; use mean or off")
    if thinking.kind in ("optional", "given") and recipe.latents not in ("prior", "posterior"):
        raise ThoughtError(f"latents {thinking.kind!r}: this model has no latents; use off")
    if thinking.kind == "markers" and recipe.latents == "none":
        raise ThoughtError(f"latents {thinking.kind!r}: this model was trained without marks; use off")


@torch.no_grad()
def prior_means(model: LatentVLM, samples: list[Encoded], markers: Markers) -> Tensor:
    """The mean of p(z | x) of each sample [N, k, d]; ThoughtError where the model has no prior."""
    check(model.recipe, Thinking("given"))
    batch = collate(samples, model.recipe, model.config, model.backbone, markers, answers=False).to(model.scale.device)
    states, _ = model.prompt_round(batch)
    return model.prior_of(batch, states).mean


@torch.no_grad()
def generate(
    model: LatentVLM,
    samples: list[Encoded],
    markers: Markers,
    decoding: Decoding,
    thinking: Thinking,
    together: Together = bool,
    given: list[Tensor] | None = None,
) -> list[list[Reply]]:
    """The replies to each sample, one per branch. Branches that are done leave the batch."""
    states, round_, width, behind, z = think(model, samples, markers, thinking, decoding.seed, given)
    at = 0 if behind > 2 else None  # the latents are there already
    branches = [
        _Branch(n, n * width + b, behind, Reply(latent_at=at)) for n in range(len(samples)) for b in range(width)
    ]
    choose = _Chooser(
        decoding, [f"{s.sample.key}/{s.sample.epoch}/{branch}" for s in samples for branch in range(width)]
    )
    going, done = branches, False  # as `states` are
    while True:
        tokens, logps = choose(model.backbone.logits(states), [branch.number for branch in going])
        stay = [] if done else [row for row, b in enumerate(going) if b.add(tokens[row], logps[row], decoding)]
        done = not stay
        if not together(not done):
            return [[b.reply for b in branches[n * width :][:width]] for n in range(len(samples))]
        rows = stay or [0]  # other ranks go on: keep step with them, for nothing
        if len(rows) < len(going):
            round_ = round_.fork(_parents(going, rows))
            going = [going[row] for row in rows]
        ids = [tokens[row] for row in rows]
        states, round_ = _advance(model, markers, going, ids, round_, z, keep=not done)


@dataclass
class _Branch:
    """One branch while its reply is written."""

    sample: int  # in the batch
    number: int  # among all branches
    behind: int  # tokens so far
    reply: Reply

    def add(self, token: int, logp: float | None, decoding: Decoding) -> bool:
        """Add a token to the reply. Whether it goes on."""
        reply = self.reply
        if logp is not None:
            reply.logps.append(logp)
        if token in decoding.ends:
            reply.finish, reply.end = "end", token
            return False
        reply.ids.append(token)
        if decoding.stopped and decoding.stopped(reply.ids):
            reply.finish = "stop"
            return False
        return len(reply.ids) < decoding.most


def _advance(
    model: LatentVLM,
    markers: Markers,
    going: list[_Branch],
    tokens: list[int],
    round_: Round,
    z: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Round]:
    """Run the branches' new tokens [len(going)]: their last states, and what the next tokens see.

    Where z waits to be asked for, a first start mark is followed by a branch's latents and the end mark.
    """
    k, device = model.config.slots, model.scale.device
    asks = keep and z is not None  # a branch that is done only keeps step
    begins = [asks and t == markers.start and b.reply.latent_at is None for b, t in zip(going, tokens, strict=True)]
    ids: list[int] = []
    z_rows: list[int] = []
    sizes: dict[int, list[int]] = {}
    starts: dict[int, list[int]] = {}
    for branch, token, latents in zip(going, tokens, begins, strict=True):
        new = [token, *[0] * k, markers.end] if latents else [token]
        if latents:
            branch.reply.latent_at = len(branch.reply.ids)
            z_rows += range(len(ids) + 1, len(ids) + 1 + k)
        sizes.setdefault(branch.sample, []).append(len(new))
        starts.setdefault(branch.sample, []).append(branch.behind)
        ids += new
        branch.behind += len(new)
    layout = next_round(round_.layout, list(sizes.values()), list(starts.values()), keep=keep)
    round_ = model.round(layout.to(device), round_)
    inputs = torch.tensor(ids, device=device)
    if z is None:
        embeddings = model.backbone.embedding(inputs)
    else:  # every time, also without any: under ZeRO-3 all ranks run the same modules
        chosen = z[[branch.number for branch, latents in zip(going, begins, strict=True) if latents]]
        embeddings = model.decode_inputs(inputs, torch.tensor(z_rows, dtype=torch.long, device=device), chosen)
    return model.backbone.states(embeddings, round_)[layout.last_rows()], round_


def _parents(going: list[_Branch], rows: list[int]) -> list[list[int]]:
    """Per sample in the batch, the numbers of its branches that stay."""
    seen: Counter[int] = Counter()
    parents: dict[int, list[int]] = {}
    stay = set(rows)
    for row, branch in enumerate(going):
        parents.setdefault(branch.sample, []).extend([seen[branch.sample]] * (row in stay))
        seen[branch.sample] += 1
    return list(parents.values())


class _Chooser:
    """Next tokens of branches. Each draws from random numbers of its own, whatever batch it is in."""

    def __init__(self, decoding: Decoding, names: list[str]) -> None:
        self.decoding = decoding
        self.generators = [generator_of(f"{decoding.seed}/{name}") for name in names] if decoding.temperature else []

    def __call__(self, logits: Tensor, branches: list[int]) -> tuple[list[int], list[float | None]]:
        """Of these branches, logits [len(branches), V]: tokens, and where they are drawn their log-probabilities."""
        if not self.decoding.temperature:
            return logits.argmax(-1).tolist(), [None] * len(branches)
        share, order = (
            (logits.float() / self.decoding.temperature).softmax(-1).sort(stable=True, dim=-1, descending=True)
        )
        before = share.cumsum(-1) - share
        some = share.where(before < self.decoding.top_p, 0.0)  # the likeliest always stays
        level = torch.stack([torch.rand((), generator=self.generators[b], dtype=torch.float64) for b in branches])
        sums = some.double().cumsum(-1)
        place = torch.searchsorted(sums, level.to(sums.device)[:, None] * sums[:, -1:], right=True)
        place = place.clamp(max=share.shape[1] - 1)
        return order.gather(1, place)[:, 0].tolist(), share.gather(1, place)[:, 0].log().tolist()


@torch.no_grad()
def score(
    model: LatentVLM,
    samples: list[Encoded],
    markers: Markers,
    options: list[list[list[int]]],
    thinking: Thinking,
    seed: int = 0,
    together: Together = bool,
    given: list[Tensor] | None = None,
) -> list[Tensor]:
    """Log-likelihood [O] of each sample's options (token ids, at least one each), nats, float64.

    With several draws, that of their mixture: log (1/B) sum_b p(option | x, z_b), the prior's marginal by Monte Carlo.
    """
    if thinking.kind == "optional":
        raise ThoughtError("latents 'optional': options are measured, not written; use mean or off")
    states, round_, width, behind, _ = think(model, samples, markers, thinking, seed, given)
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
    nats = model.target_loss(torch.cat(vectors), torch.tensor(targets, device=states.device))
    whole = torch.zeros(len(branches), dtype=torch.float64).index_add_(0, torch.tensor(owner), -nats.double().cpu())
    of_samples = whole.split([width * count for count in counts])
    return [x.view(width, -1).logsumexp(0) - math.log(width) for x in of_samples]
