"""Answers from the prior: branches over what prefixes, images and priors left behind (model/thinking.py).

`generate` writes replies token by token, `score` measures options. What a sample is answered does not depend on the
samples beside it: no padding takes part, and noise is drawn per sample.

Letters in shapes: N samples, B branches of a sample (draws of z), R = N * B, k slots, C hidden size, V vocabulary,
O options of a sample.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from data.processor import Encoded
from model.attention import Round
from model.batch import Markers, generator_of
from model.latent_vlm import LatentVLM
from model.layout import next_round
from model.thinking import Thinking, ThoughtError, think

Together = Callable[[bool], bool]  # whether any rank says so; ranks that take turns in one model must stay in step


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
        share = (logits.float() / self.decoding.temperature).softmax(-1)
        level = torch.stack([torch.rand((), generator=self.generators[b], dtype=torch.float64) for b in branches])
        # In the order of the vocabulary: in that of the shares, two that are all but equal may change places.
        sums = self._nucleus(share).double().cumsum(-1)
        place = torch.searchsorted(sums, level.to(sums.device)[:, None] * sums[:, -1:], right=True)
        place = place.clamp(max=share.shape[1] - 1)
        return place[:, 0].tolist(), share.gather(1, place)[:, 0].log().tolist()

    def _nucleus(self, share: Tensor) -> Tensor:
        """Shares [rows, V] with zeros outside the smallest set of tokens that has top_p of them."""
        if self.decoding.top_p == 1:
            return share
        ordered, order = share.sort(stable=True, dim=-1, descending=True)
        inside = ordered.cumsum(-1) - ordered < self.decoding.top_p  # the likeliest always is
        return share.where(torch.zeros_like(inside).scatter(1, order, inside), 0.0)


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
    found = likelihoods(model, states, round_, [[behind] * width for _ in samples], options, together)
    return [x.logsumexp(0) - math.log(width) for x in found]


@torch.no_grad()
def likelihoods(
    model: LatentVLM,
    states: Tensor,
    round_: Round,
    behind: list[list[int]],
    options: list[list[list[int]]],
    together: Together = bool,
) -> list[Tensor]:
    """Log-likelihood of each sample's options after each of its branches [B, O], nats, float64.

    states [R, C]: of each branch's last token, sample by sample; behind: per sample, the tokens of its branches.
    """
    counts = [len(of_sample) for of_sample in options]
    widths = [len(of_sample) for of_sample in behind]
    # As the layout's: sample by sample, branch by branch.
    branches = [option for of_sample, width in zip(options, widths, strict=True) for option in of_sample * width]
    origin = torch.arange(len(states)).repeat_interleave(torch.tensor(counts).repeat_interleave(torch.tensor(widths)))
    vectors, targets = [states[origin]], [option[0] for option in branches]
    owner = list(range(len(branches)))
    longer = any(len(option) > 1 for option in branches)
    if together(longer):
        lengths = [[len(x) - 1 for x in xs] * width for xs, width in zip(options, widths, strict=True)]
        known = [token for option in branches for token in option[:-1]]
        if not longer:  # other ranks have longer ones: keep step with them, for nothing
            lengths[0][0], known = 1, [0]
        pairs = list(zip(widths, counts, strict=True))
        fork = round_.fork([[b for b in range(width) for _ in range(count)] for width, count in pairs])
        starts = [[b for b in of_sample for _ in range(count)] for of_sample, count in zip(behind, counts, strict=True)]
        layout = next_round(fork.layout, lengths, starts)
        ids = torch.tensor(known, device=states.device)
        found = model.backbone.states(model.backbone.embedding(ids), model.round(layout.to(states.device), fork))
        if longer:
            vectors.append(found)
            targets += [token for option in branches for token in option[1:]]
            owner += [number for number, option in enumerate(branches) for _ in option[1:]]
    nats = model.target_loss(torch.cat(vectors), torch.tensor(targets, device=states.device))
    whole = torch.zeros(len(branches), dtype=torch.float64).index_add_(0, torch.tensor(owner), -nats.double().cpu())
    of_samples = whole.split([width * count for width, count in zip(widths, counts, strict=True)])
    return [x.view(width, -1) for x, width in zip(of_samples, widths, strict=True)]
