"""The policy of reinforcement learning: a LatentVLM whose completions are measured and reinforced as branches.

GRPO (arXiv 2402.03300) on tokens; latents in one of three ways (`Step.latents`). The gradient is that of every
completion in a sequence of its own, prompt and prior included.

Letters in shapes: N prompts, B completions, L those with latents, k slots, d latent width, M target tokens, C hidden.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from model.attention_probe import Probe
from model.backbones.backbone import Backbone
from model.branches import Branches
from model.cut import Cut
from model.latent import Gaussian, LatentConfig
from model.latent_vlm import LatentVLM
from model.objective import Recipe
from model.target_loss import TargetEntropy

T = TypeVar("T")
FURTHEST = 20.0  # nats that log-probabilities count as apart, at most: exp of more than 88 is infinite
SUMS = ("policy", "kl", "clipped", "ratio", "tokens", "latent_clipped", "latent_ratio", "latents")


class Policy(LatentVLM):
    """Whatever is done with the model is done in its forward pass, where ZeRO-3 gathers weights."""

    def __init__(self, backbone: Backbone, config: LatentConfig, recipe: Recipe) -> None:
        super().__init__(backbone, config, recipe)
        self.target_entropy = TargetEntropy(backbone.model.lm_head)

    def forward(self, work: Callable[["Policy"], T]) -> T:  # type: ignore[override]
        return work(self)

    def freeze_unused(self, latents: str) -> None:
        """Take the gradient from what no update reaches: weight decay would shrink it."""
        unused = ["posterior", "posterior_slots"]
        if latents == "constant_replay" and self.recipe.rounds == 2:
            unused += ["prior", "slots"]
        for name, module in self.latent_modules().items():
            module.requires_grad_(name not in unused)


@dataclass(frozen=True)
class Reading:
    """How completions are read: as they were drawn."""

    temperature: float  # of the tokens
    latent_temperature: float  # times the prior's standard deviation
    layers: frozenset[int] = frozenset()  # whose attention is measured
    causal: bool = True  # false: attention normalised over later tokens as well, as arXiv 2605.18641 published it


class Measured(NamedTuple):
    """Completions as the policy sees them, without a gradient. On the device."""

    logps: Tensor  # [M] nats
    entropy: Tensor  # [M] nats
    z: Tensor  # [L, k, d]
    mean: Tensor  # [L, k, d] of the prior; zeros without one
    log_sigma: Tensor  # [L, k, d]
    masses: Tensor  # [B, 2] attention to latents and to images, mean over words, layers and heads


@dataclass(frozen=True)
class Old:
    """What an update compares with, in the order of its branches. On the CPU until it is used."""

    advantages: Tensor  # [B]
    logps: Tensor  # [M]
    reference: Tensor | None  # [M] log-probabilities of the reference
    z: Tensor  # [L, k, d]
    mean: Tensor  # [L, k, d] of the prior that z was drawn from
    log_sigma: Tensor  # [L, k, d]

    def to(self, device: torch.device | str) -> "Old":
        moved = {f.name: x.to(device) for f in fields(self) if (x := getattr(self, f.name)) is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class Step:
    """How one update is weighed."""

    per_token: float  # scale of a token's loss: copies / tokens of the whole step
    clip: tuple[float, float]  # how far below and above 1 a ratio may count
    kl: float  # coefficient of the KL divergence to the reference
    latents: str  # eps_replay, constant_replay or density_ratio (trainer/rl/config.py says what they are)


class _Ran(NamedTuple):
    states: Tensor  # [M, C] that predict the targets
    z: Tensor  # [L, k, d]
    prior: Gaussian | None  # [L, k, d] of each completion with latents


def _run(
    model: Policy, branches: Branches, reading: Reading, z: Tensor | None, cut: Cut, probe: Probe | None = None
) -> _Ran:
    """Both rounds. `z`: recorded latents [L, k, d]; None: drawn with the branches' noise."""
    states, first = model.prompt_round(branches.prompts)
    prior = None
    if model.recipe.rounds == 2:
        prior = Gaussian(*(x[branches.z_prompt] for x in model.prior_of(branches.prompts, states)))
        if z is None:
            z = prior.mean + reading.latent_temperature * prior.log_sigma.exp() * branches.noise
        inputs = model.decode_inputs(branches.ids, branches.z_rows, cut(z))
    else:
        inputs = model.backbone.embedding(branches.ids)
        if model.recipe.latents == "pause":
            slots = model.slots(model.scale).to(inputs.dtype).repeat(len(branches.z_prompt), 1)
            inputs = inputs.index_copy(0, branches.z_rows, slots)
        z = branches.noise  # zeros: there is none
    ends = states[branches.prompts.first.prefix_ends()]
    states = model.backbone.states(inputs, model.round(branches.layout, first, cut, probe))
    assert z is not None
    return _Ran(torch.cat([cut(ends), states])[branches.target_rows], z, prior)


@torch.no_grad()
def measure(model: Policy, branches: Branches, reading: Reading, z: Tensor | None = None) -> Measured:
    """Log-probabilities, entropies, latents and attention of completions. `z`: as recorded."""
    probe = Probe(reading.layers, branches.query_rows, branches.latents, branches.images, reading.causal)
    ran = _run(model, branches, reading, z, Cut(), probe if reading.layers else None)
    logps = -model.target_loss(ran.states, branches.targets, reading.temperature)
    entropy = model.target_entropy(ran.states, branches.targets, reading.temperature)
    masses = torch.zeros(branches.completions, 2, device=logps.device)
    if reading.layers:
        of_queries = torch.stack(list(probe.found.values())).mean(0)  # [Q, 2]
        counts = branches.query_completion.bincount(minlength=branches.completions).clamp(min=1)
        masses = masses.index_add(0, branches.query_completion, of_queries) / counts[:, None]
    mean, log_sigma = ran.prior or (ran.z, ran.z)
    return Measured(logps, entropy, ran.z, mean, log_sigma, masses)


def update(
    model: Policy, branches: Branches, reading: Reading, old: Old, step: Step
) -> tuple[Iterator[Tensor], tuple[Tensor, Tensor]]:
    """The micro-step's share of the loss, in the parts that backward passes are taken of (as LatentVLM.forward's), and
    (sums in the order of SUMS, the furthest that a ratio is from 1).

    loss = -sum_t min(r A, clip(r) A) + kl * sum_t (exp(ref - logp) - (ref - logp) - 1), r = exp(logp - old logp): over
    the tokens of all completions, and with `density_ratio` over slots, each like a token.
    """
    cut = Cut()
    ran = _run(model, branches, reading, None if step.latents == "eps_replay" else old.z, cut)
    logps = -model.target_loss(ran.states, branches.targets, reading.temperature)
    gains, ratio = _clipped(logps - old.logps, old.advantages[branches.target_completion], step.clip)
    kl = logps.new_zeros(())
    if old.reference is not None:
        apart = (old.reference - logps).clamp(-FURTHEST, FURTHEST)
        kl = (apart.exp() - apart - 1).sum()
    latent_gains = latent_ratio = ratio.new_zeros(0, 1)
    if step.latents == "density_ratio":
        assert ran.prior is not None
        change = _density(ran.prior, old.z, reading) - _density(Gaussian(old.mean, old.log_sigma), old.z, reading)
        weights = old.advantages[branches.z_completion][:, None].expand_as(change)
        latent_gains, latent_ratio = _clipped(change / model.config.width, weights, step.clip)
    parts = [-gains.sum() - latent_gains.sum(), kl, _outside(ratio, step.clip), ratio.sum()]
    parts += [ratio.new_tensor(ratio.numel()), _outside(latent_ratio, step.clip), latent_ratio.sum()]
    sums = torch.stack([*parts, ratio.new_tensor(latent_ratio.numel())]).detach()
    furthest = torch.cat([ratio.flatten(), latent_ratio.flatten(), ratio.new_ones(1)]).detach().sub(1).abs().max()

    def losses() -> Iterator[Tensor]:
        yield step.per_token * (step.kl * kl - gains.sum())
        yield cut.carried() - step.per_token * latent_gains.sum()

    return losses(), (sums, furthest)


def _clipped(change: Tensor, advantages: Tensor, clip: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """(min(r A, clip(r) A), r) of the changes of log-probabilities."""
    ratio = change.clamp(-FURTHEST, FURTHEST).exp()
    below, above = clip
    return torch.minimum(ratio * advantages, ratio.clamp(1 - below, 1 + above) * advantages), ratio.detach()


def _outside(ratio: Tensor, clip: tuple[float, float]) -> Tensor:
    return ((ratio < 1 - clip[0]) | (ratio > 1 + clip[1])).sum().to(ratio.dtype)


def _density(prior: Gaussian, z: Tensor, reading: Reading) -> Tensor:
    """log N(z; mean, (temperature * sigma)^2) of each slot [L, k]."""
    log_sigma = prior.log_sigma + math.log(reading.latent_temperature)
    return (-0.5 * ((z - prior.mean) * (-log_sigma).exp()) ** 2 - log_sigma).sum(-1)
