"""Training health, looked at every so many steps: how hard each loss pulls at each part, and what the latents carry.

Before a step, a look takes its forward and backward passes once for every loss of the objective, alone and with its
weight, and reads the gradients that DeepSpeed leaves in its partitions. The step itself finds nothing changed.

Letters in shapes: N samples, k slots, d latent width, C hidden size.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import deepspeed
import deepspeed.comm as dist
import torch
from torch import Tensor

from model.batch import Batch
from model.latent import Gaussian, kl
from model.latent_vlm import Latents, Weights
from model.objective import Recipe
from trainer.config import Config
from trainer.engine import leave_gradients, partitions

ACTIVE_NATS = 0.01  # mean KL from which a dimension of the latents counts as active
ACTIVE_VARIANCE = 0.01  # variance of its mean over samples from which it does (Burda et al., arXiv 1509.00519)


class Vitals:
    """Looks at steps that `health.vitals_every` divides; all ranks at the same ones."""

    def __init__(self, config: Config, engine: deepspeed.DeepSpeedEngine) -> None:
        self.engine, self.every, self.recipe = engine, config.health.vitals_every, config.objective.recipe

    def due(self, step: int) -> bool:
        """Whether a step, counted from 1, is to be looked at."""
        return self.every > 0 and step % self.every == 0

    def look(self, batches: Sequence[Batch], weights: Weights) -> dict[str, float]:
        """Metrics by name, over all ranks, of a step that is not taken yet; to be called on every rank."""
        started, seen = time.perf_counter(), Statistics()
        squares: dict[str, dict[str, Tensor]] = {}
        for name, alone in losses(self.recipe, weights).items():
            if alone.per_token or alone.beta or alone.gamma:
                look = None if squares else seen.add  # all passes have the same latents
                leave_gradients(self.engine, [(batch, alone, look) for batch in batches])
                squares[name] = _squares(self.engine)
            else:
                squares[name] = {part: torch.zeros_like(square) for part, square in squares["ntp"].items()}
        found = _over_ranks({f"{name}/{part}": x for name, parts in squares.items() for part, x in parts.items()})
        metrics = {f"gradient_norm/{name}": square.sqrt().item() for name, square in found.items()}
        if seen.sums:  # on every rank or, without latents, on none
            metrics |= seen.over_ranks().metrics(self._embedding_norm())
        metrics["seconds"] = time.perf_counter() - started
        return {f"health/{name}": value for name, value in metrics.items()}

    def _embedding_norm(self) -> float:
        model = self.engine.module
        with deepspeed.zero.GatheredParameters([model.backbone.embedding.weight]):
            norm: float = model.embedding_norm().item()
        return norm


def losses(recipe: Recipe, weights: Weights) -> dict[str, Weights]:
    """Each loss of an objective alone, with the weight that it has among the others, next-token loss first."""
    found = {"ntp": replace(weights, beta=0.0, gamma=0.0)}
    if recipe.forward != "off":
        found["forward_kl"] = replace(weights, per_token=0.0, gamma=0.0)
    if recipe.reverse != "off":
        found["reverse_kl"] = replace(weights, per_token=0.0, beta=0.0)
    return found


class Statistics:
    """Sums over the samples of micro-steps and then of ranks, all fp64, and what follows from them."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # one number each, or one per dimension [k, d]
        self.least: dict[str, Tensor] = {}  # smallest values; the largest with their sign turned

    def add(self, latents: Latents) -> None:
        """Take in the latents of a micro-step."""
        p, q, injected = latents
        sums = {"samples": p.mean.new_tensor(len(p.mean)), "injected": injected.float().norm(dim=1).sum()}
        for name, gaussian in (("prior", p), ("posterior", q)):
            if gaussian:
                self._add_spread(name, gaussian.log_sigma.exp())
                sums |= {f"{name}/{key}": x for key, x in _sums(gaussian).items()}
        if q:
            sums |= {"forward_kl": kl(q, p).double().sum(0), "reverse_kl": kl(p, q).double().sum(0)}
            sums["distance"] = (((q.mean - p.mean) * (-p.log_sigma).exp()) ** 2).double().sum()
        self.sums = {name: self.sums.get(name, 0) + x.double() for name, x in sums.items()}

    def _add_spread(self, name: str, sigma: Tensor) -> None:
        for key, value in ((f"{name}/least", sigma.min()), (f"{name}/most", -sigma.max())):
            self.least[key] = torch.minimum(self.least.get(key, value), value)

    def over_ranks(self) -> "Statistics":
        """Those of all ranks; to be called on every rank."""
        whole = Statistics()
        whole.sums, whole.least = _over_ranks(self.sums), _over_ranks(self.least, dist.ReduceOp.MIN)
        return whole

    def metrics(self, embedding_norm: float) -> dict[str, float]:
        """Numbers by name. KLs are in nats, `active` counts dimensions of the k * d.

        embedding_norm: mean norm of the backbone's embeddings, which the injected vectors are measured by.
        """
        means = {name: x / self.sums["samples"] for name, x in self.sums.items()}  # over samples
        slots, width = means["prior/mean"].shape
        found = {"injected_norm": means["injected"].item() / slots / embedding_norm}
        for name in ("prior", "posterior"):
            if f"{name}/mean" in means:
                variance = means[f"{name}/square"] - means[f"{name}/mean"] ** 2
                found[f"active/{name}"] = (variance > ACTIVE_VARIANCE).sum().item()
                found[f"sigma_{name}/mean"] = means[f"{name}/sigma"].item() / (slots * width)
                found[f"sigma_{name}/min"] = self.least[f"{name}/least"].item()
                found[f"sigma_{name}/max"] = -self.least[f"{name}/most"].item()
        if "distance" in means:
            found["distance_in_prior_sigmas"] = (means["distance"].item() / (slots * width)) ** 0.5
            for name in ("forward_kl", "reverse_kl"):
                found[f"{name}/per_sample"] = means[name].sum().item()
                found[f"{name}/per_dimension"] = means[name].mean().item()
                found[f"active/{name}"] = (means[name] > ACTIVE_NATS).sum().item()
        return found


def _sums(gaussian: Gaussian) -> dict[str, Tensor]:
    mean = gaussian.mean.double()
    return {"mean": mean.sum(0), "square": (mean**2).sum(0), "sigma": gaussian.log_sigma.exp().double().sum()}


def _squares(engine: deepspeed.DeepSpeedEngine) -> dict[str, Tensor]:
    """The square of the norm of this rank's share of the gradient, by part of the model."""
    squares: dict[str, list[Tensor]] = defaultdict(list)
    for name, gradient in partitions(engine):
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        squares[name.partition(".")[0]].append(norm.double() ** 2)
    return {part: torch.stack(each).sum().to(engine.device) for part, each in squares.items()}


def _over_ranks(values: dict[str, Tensor], operation: dist.ReduceOp = dist.ReduceOp.SUM) -> dict[str, Tensor]:
    """Reduced in one go; every rank must have the same names, in the same order."""
    if not values:
        return {}
    flat = torch.cat([x.flatten() for x in values.values()])
    dist.all_reduce(flat, operation)
    pieces = flat.split([x.numel() for x in values.values()])
    return {name: piece.view_as(x) for (name, x), piece in zip(values.items(), pieces, strict=True)}
