"""LatentVLM: a vision-language model that reasons in k continuous latent slots, trained by AMVL.

Letters in shapes: N samples, k slots, d latent width, C hidden size, T rows of a round, M target tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.attention import Round
from model.attention_probe import Probe
from model.backbones.backbone import Backbone
from model.batch import Batch
from model.cut import Cut
from model.latent import Gaussian, GaussianHead, Injection, LatentConfig, Slots
from model.layout import Layout
from model.objective import Recipe, kl_terms
from model.target_loss import TargetLoss


@dataclass(frozen=True)
class Weights:
    """How one micro-step's sums become its share of the global loss."""

    beta: float
    gamma: float
    per_token: float  # scale of a nat of next-token loss: copies / global target tokens
    per_nat: float  # scale of a nat of KL, by the kl_reduction chosen


class Latents(NamedTuple):
    """What a micro-step's latents were, without a graph."""

    prior: Gaussian  # [N, k, d]
    posterior: Gaussian | None  # [N, k, d]; None where the recipe has none
    injected: Tensor  # [N * k, C] the input vectors that they became


PARTS = ("ntp", "forward", "reverse", "sigma_p", "sigma_q", "tokens", "samples")


class LatentVLM(nn.Module):
    """A backbone with slots, prior and posterior heads, and injection, as far as the recipe uses them."""

    scale: Tensor

    def __init__(self, backbone: Backbone, config: LatentConfig, recipe: Recipe) -> None:
        super().__init__()
        self.backbone, self.config, self.recipe = backbone, config, recipe
        hidden = backbone.hidden_size
        if recipe.latents != "none":
            self.slots = Slots(config.slots, hidden)  # e^P, or the pause tokens
        if recipe.latents in ("prior", "posterior"):
            self.prior = GaussianHead(hidden, config)
            self.injection = Injection(hidden, config)
        if recipe.latents == "posterior":
            self.posterior_slots = Slots(config.slots, hidden)  # e^Q
            self.posterior = GaussianHead(hidden, config)
        # Root mean square of the backbone's mean embedding, which every latent input gets.
        self.register_buffer("scale", torch.ones(()))
        self.target_loss = TargetLoss(backbone.model.lm_head)

    def latent_modules(self) -> dict[str, nn.Module]:
        """The parts with weights that are not the backbone, by name."""
        children = self.named_children()
        return {name: m for name, m in children if name != "backbone" and not isinstance(m, TargetLoss)}

    def reset_latent(self) -> None:
        """First values of the latent parts, and their input scale from the backbone's embedding."""
        for module in self.latent_modules().values():
            module.reset()  # type: ignore[operator]
        self.scale.copy_(self.embedding_norm() / self.backbone.hidden_size**0.5)

    def embedding_norm(self) -> Tensor:
        """Mean norm of the backbone's embeddings, whose table has to be whole on this rank."""
        table = self.backbone.embedding.weight.detach()
        return torch.linalg.vector_norm(table, dim=1, dtype=torch.float32).mean()  # without a copy of the table in fp32

    def prompt_round(self, batch: Batch) -> tuple[Tensor, Round]:
        """Round 1: prefixes and the branches known at once. Returns hidden states [T1, C] and the round."""
        embeddings = self.backbone.embedding(batch.ids)
        features = self.backbone.images(batch.pixels, batch.grids)
        deep = features.deep if len(batch.image_rows) else ()
        if len(batch.image_rows):
            embeddings = embeddings.index_copy(0, batch.image_rows, features.tokens.to(embeddings.dtype))
        else:
            embeddings = embeddings + features.nothing()  # the dummy image stays in the graph
        if len(batch.slot_rows):
            slots = self.slots(self.scale).to(embeddings.dtype)
            embeddings = embeddings.index_copy(0, batch.slot_rows, slots.repeat(batch.samples, 1))
        if len(batch.posterior_rows):
            slots = self.posterior_slots(self.scale).to(embeddings.dtype)
            slots = slots.repeat(len(batch.posterior_rows) // len(slots), 1)
            embeddings = embeddings.index_copy(0, batch.posterior_rows, slots)
        round_ = self.round(batch.first)
        return self.backbone.states(embeddings, round_, batch.image_rows, deep), round_

    def round(
        self, layout: Layout, earlier: Round | None = None, cut: Cut | None = None, probe: Probe | None = None
    ) -> Round:
        """A pass of the language model over a layout, after an earlier one (beyond a cut), with a probe of it."""
        return Round.of(self.backbone.attention, layout, earlier, cut or (lambda memory: memory), probe)

    def prior_of(self, batch: Batch, states: Tensor) -> Gaussian:
        """p(z | x), each [N, k, d], from the states of round 1."""
        return self.prior(states[batch.slot_rows].unflatten(0, (batch.samples, -1)))

    def posterior_of(self, batch: Batch, states: Tensor) -> Gaussian:
        """q(z | x, y) of every answer in the batch, each [answers, k, d], from the states of round 1."""
        return self.posterior(states[batch.posterior_rows].unflatten(0, (-1, self.config.slots)))

    def decode_inputs(self, ids: Tensor, z_rows: Tensor, z: Tensor) -> Tensor:
        """Input vectors [T2, C] of a decode round: tokens, with z [N, k, d] at its rows."""
        embeddings = self.backbone.embedding(ids)
        return embeddings.index_copy(0, z_rows, self.injection(z, self.scale).flatten(0, 1).to(embeddings.dtype))

    def forward(
        self, batch: Batch, weights: Weights, look: Callable[[Latents], None] | None = None
    ) -> tuple[Iterator[Tensor], Tensor]:
        """The micro-step's share of the loss, and its sums in the order of PARTS (nats, counts).

        The loss comes in as many parts as there are rounds, the last round's first. Each part's backward pass has
        to be taken before the next part is asked for; together they have the gradient of three separate passes per
        sample (prior, posterior, decode). `look` is shown the latents, if there are any.
        """
        states, first = self.prompt_round(batch)
        zero = states.new_zeros((), dtype=torch.float32)
        forward, reverse, sigma_p, sigma_q = zero, zero, zero, zero
        cut = Cut()
        if self.recipe.rounds == 2:
            prior, posterior = self.prior_of(batch, states), None
            z = prior.mean
            sigma_p = prior.log_sigma.detach().exp().mean((1, 2)).sum()
            if self.recipe.latents == "posterior":
                posterior = self.posterior_of(batch, states)
                z = posterior.sample(batch.noise)
                sigma_q = posterior.log_sigma.detach().exp().mean((1, 2)).sum()
                forward, reverse = kl_terms(self.recipe, prior, posterior)
            assert batch.second is not None
            inputs = self.decode_inputs(batch.ids2, batch.z_rows, cut(z))
            if look:
                look(Latents(prior.detach(), posterior and posterior.detach(), inputs.detach()[batch.z_rows]))
            earlier = None if self.recipe.bottleneck else first
            states = self.backbone.states(inputs, self.round(batch.second, earlier, cut))
        ntp = self.target_loss(states[batch.target_rows], batch.targets).sum()
        kls = weights.beta * forward + weights.gamma * reverse
        counts = ntp.new_tensor([len(batch.targets), batch.samples])
        parts = torch.stack([ntp, forward, reverse, sigma_p, sigma_q]).detach()
        return self._losses(weights.per_token * ntp, weights.per_nat * kls, cut), torch.cat([parts, counts])

    def _losses(self, ntp: Tensor, kls: Tensor, cut: Cut) -> Iterator[Tensor]:
        yield ntp
        if self.recipe.rounds == 2:
            yield kls + cut.carried()
