"""The training objectives: AMVL, its ablations and its baselines, as one setting.

    L = NTP(y | x, z ~ q) + beta * KL(sg q || p) + gamma * KL(sg p || q)        (arXiv 2607.00461)

sg stops the gradient: the forward KL trains the prior p alone, the reverse KL the posterior q alone.
"""

from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from model.latent import Gaussian, kl


@dataclass(frozen=True)
class Recipe:
    """What an objective is made of."""

    latents: Literal["none", "pause", "prior", "posterior"]  # where z comes from in training
    forward: Literal["off", "stopped", "full"] = "off"  # beta's KL(q || p), with or without stop-gradient
    reverse: Literal["off", "stopped", "full"] = "off"  # gamma's KL(p || q)
    bottleneck: bool = False  # pictures reach the answer through z alone: it is decoded behind a prompt without them

    @property
    def rounds(self) -> int:
        """Passes of the language model in a micro-step: one more where z comes from the first."""
        return 2 if self.latents in ("prior", "posterior") else 1


RECIPES = {
    "sft": Recipe("none"),
    "pause": Recipe("pause"),
    "deterministic": Recipe("prior"),
    "ntp": Recipe("posterior"),
    "forward": Recipe("posterior", forward="stopped"),
    "reverse": Recipe("posterior", reverse="stopped"),
    "elbo": Recipe("posterior", forward="full"),
    "symmetric": Recipe("posterior", forward="full", reverse="full"),
    "amvl": Recipe("posterior", forward="stopped", reverse="stopped"),
}


class ObjectiveConfig(BaseModel):
    """Which objective, and the weights of its terms over the share of steps done."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["sft", "pause", "deterministic", "ntp", "forward", "reverse", "elbo", "symmetric", "amvl"] = "amvl"
    kl_reduction: Literal["token", "mean"] = Field(
        "token",
        description="token: nats over the number of target tokens (beta=1 is an ELBO); mean: over k, d, samples",
    )
    beta: float = Field(0.1, ge=0, description="height of the forward KL's weight")
    gamma: float = Field(0.3, ge=0, description="height of the reverse KL's weight")
    early: tuple[float, float] = Field((0.0, 0.1), description="share of steps where the first weight rises, from, to")
    late: tuple[float, float] = Field((0.0, 0.1), description="share of steps where the second weight rises, from, to")
    order: Literal["forward_first", "reverse_first"] = Field("forward_first", description="whose weight rises first")
    bottleneck: bool = Field(
        False, description="decode behind the prompt without its pictures, in training and after: z has to carry them"
    )

    @field_validator("early", "late")
    @classmethod
    def _rises_within_the_run(cls, rise: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= rise[0] <= rise[1] <= 1:
            raise ValueError("a rise goes from a share of the steps to a later one, both from 0 to 1")
        return rise

    @model_validator(mode="after")
    def _something_passes_the_bottleneck(self) -> "ObjectiveConfig":
        if self.bottleneck and RECIPES[self.name].rounds == 1:
            raise ValueError(f"bottleneck: {self.name} has no z that could carry the pictures; take another objective")
        return self

    @property
    def recipe(self) -> Recipe:
        return replace(RECIPES[self.name], bottleneck=self.bottleneck)

    def weights(self, share: float) -> tuple[float, float]:
        """(beta, gamma) when `share` of the steps is done; 0 for a term the objective does not have."""
        first, second = _ramp(share, self.early), _ramp(share, self.late)
        if self.order == "reverse_first":
            first, second = second, first
        beta = self.beta * first if self.recipe.forward != "off" else 0.0
        gamma = self.gamma * second if self.recipe.reverse != "off" else 0.0
        return beta, gamma


def _ramp(share: float, rise: tuple[float, float]) -> float:
    start, end = rise
    if share <= start < end or share < start:
        return 0.0
    return 1.0 if share >= end else (share - start) / (end - start)


def kl_terms(recipe: Recipe, prior: Gaussian, posterior: Gaussian) -> tuple[Tensor, Tensor]:
    """(forward KL(q || p), reverse KL(p || q)), nats summed over everything, gradients as the recipe says."""
    q = posterior.detach() if recipe.forward != "full" else posterior
    p = prior.detach() if recipe.reverse != "full" else prior
    return kl(q, prior).sum(), kl(p, posterior).sum()
