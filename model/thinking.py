"""How a model thinks before it answers: prefixes, images and priors once, then latents as branches behind them.

Letters in shapes: N samples, B branches of a sample (draws of z), R = N * B, k slots, d latent width, C hidden size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data.processor import Encoded
from data.sample import UserError
from model.attention import Round
from model.batch import Markers, collate, noise_of, without_pictures
from model.latent import Gaussian, LatentConfig
from model.latent_vlm import LatentVLM
from model.layout import next_round
from model.objective import Recipe


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
    device, k, draws = model.scale.device, model.config.slots, thinking.draws
    z, recipe = None, model.recipe
    if thinking.kind == "given":
        assert given is not None
        z = torch.stack(given).to(device)
    elif recipe.bottleneck and thinking.kind not in ("off", "markers"):
        z = _drawn(prior_gaussians(model, samples, markers), samples, thinking, seed, model.config)
    if z is not None or thinking.kind in ("off", "markers"):
        recipe = Recipe("none")
    if model.recipe.bottleneck:
        samples = [without_pictures(s, model.backbone) for s in samples]
    batch = collate(samples, recipe, model.config, model.backbone, markers, answers=False).to(device)
    states, round_ = model.prompt_round(batch)
    if recipe.latents == "pause":
        ends = states[round_.layout.last_rows()].repeat_interleave(draws, 0)
        return Thought(ends, round_.fork([[0] * draws for _ in samples]) if draws > 1 else round_, draws, k + 2)
    if recipe.latents != "none":
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
def prior_gaussians(model: LatentVLM, samples: list[Encoded], markers: Markers) -> Gaussian:
    """p(z | x) of each sample, [N, k, d]; ThoughtError where the model has no prior."""
    check(model.recipe, Thinking("given"))
    batch = collate(samples, model.recipe, model.config, model.backbone, markers, answers=False).to(model.scale.device)
    states, _ = model.prompt_round(batch)
    return model.prior_of(batch, states)
