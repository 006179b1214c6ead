"""The latent parts: slots, Gaussian heads, and the way a latent enters the language model.

Letters in shapes: N samples, k slots, d latent width, C hidden size of the backbone.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

LOG_SIGMA = (-4.0, 2.0)  # both KL gradients carry 1/sigma^2, so it is bounded
_MIDDLE, _HALF = sum(LOG_SIGMA) / 2, (LOG_SIGMA[1] - LOG_SIGMA[0]) / 2


class LatentConfig(BaseModel):
    """Sizes of the latent parts; k and d by default those of the paper (arXiv 2607.00461), the heads' width is ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slots: int = Field(8, ge=1, le=256, description="latent slots per sample, k")
    width: int = Field(512, ge=1, le=65536, description="width of a latent, d")
    head_width: int = Field(1024, ge=1, le=65536, description="hidden width of the Gaussian heads")
    sigma: float = Field(
        1.0,
        gt=math.exp(LOG_SIGMA[0]),
        lt=math.exp(LOG_SIGMA[1]),
        description="first standard deviation of prior and posterior: with a small one z is sooner heard over it",
    )


class Gaussian(NamedTuple):
    """Diagonal Gaussians, both [N, k, d], fp32."""

    mean: Tensor
    log_sigma: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """noise [N, k, d] -> mean + sigma * noise."""
        return self.mean + self.log_sigma.exp() * noise

    def detach(self) -> "Gaussian":
        return Gaussian(self.mean.detach(), self.log_sigma.detach())


def kl(a: Gaussian, b: Gaussian) -> Tensor:
    """KL(a || b) in nats, element by element [N, k, d], in closed form and fp32."""
    variance_ratio = (2 * (a.log_sigma - b.log_sigma)).exp()
    distance = ((a.mean - b.mean) * (-b.log_sigma).exp()) ** 2
    return b.log_sigma - a.log_sigma + 0.5 * (variance_ratio + distance - 1)


class ExactLinear(nn.Linear):
    """A linear layer that computes in fp32 whatever its weights are kept in: a mean rounded to bf16 costs nats."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class GaussianHead(nn.Module):
    """Hidden states at the slots [N, k, C] to a Gaussian. At first it is N(0, sigma^2 I), whatever they are."""

    def __init__(self, hidden: int, config: LatentConfig) -> None:
        super().__init__()
        self.log_sigma = math.log(config.sigma)
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.inner = ExactLinear(hidden, config.head_width)
        self.outer = ExactLinear(config.head_width, 2 * config.width)

    def reset(self) -> None:
        for layer in (self.norm, self.inner):
            layer.reset_parameters()
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        nn.init.constant_(self.outer.bias[self.outer.out_features // 2 :], _raw(self.log_sigma) - _raw(0.0))

    def forward(self, states: Tensor) -> Gaussian:
        states = self.norm(states.to(self.norm.weight.dtype))
        mean, raw = self.outer(F.silu(self.inner(states))).chunk(2, dim=-1)
        # Shifted so that a raw value of 0 is log sigma 0.
        return Gaussian(mean, _MIDDLE + _HALF * torch.tanh(raw + _raw(0.0)))


def _raw(log_sigma: float) -> float:
    """What tanh makes a log sigma of."""
    return math.atanh((log_sigma - _MIDDLE) / _HALF)


class Slots(nn.Module):
    """k learned input vectors [k, C], each of the backbone's mean embedding norm."""

    def __init__(self, slots: int, hidden: int) -> None:
        super().__init__()
        self.table = nn.Embedding(slots, hidden)

    def reset(self) -> None:
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, scale: Tensor) -> Tensor:
        indices = torch.arange(self.table.num_embeddings, device=scale.device)
        return _sized(self.table(indices), scale)


class Injection(nn.Module):
    """Latents z [N, k, d] to input vectors [N, k, C]: Linear(RMSNorm(z)) + slot vector, then sized."""

    def __init__(self, hidden: int, config: LatentConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.project = nn.Linear(config.width, hidden)
        self.table = nn.Embedding(config.slots, hidden)

    def reset(self) -> None:
        self.norm.reset_parameters()
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.normal_(self.project.weight, std=0.02 / math.sqrt(self.project.in_features))
        nn.init.zeros_(self.project.bias)

    def forward(self, z: Tensor, scale: Tensor) -> Tensor:
        slots = self.table(torch.arange(z.shape[1], device=z.device))
        return _sized(self.project(self.norm(z.to(self.norm.weight.dtype))) + slots, scale)


def _sized(vectors: Tensor, scale: Tensor) -> Tensor:
    """Vectors [..., C] of root mean square `scale`."""
    return F.rms_norm(vectors, vectors.shape[-1:], eps=1e-12) * scale.to(vectors.dtype)
