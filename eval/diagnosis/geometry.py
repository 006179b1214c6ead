"""The shape of a cloud of latents: descriptions, not scores of quality.

Letters in shapes: N items, k slots, d latent width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.diagnosis.findings import Geometry
from model.latent import Gaussian

TINY = 1e-12


def effective_rank(points: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred points [N, D] (Roy and Vetterli, 2007).

    1 where all points are the same.
    """
    values = torch.linalg.svdvals((points - points.mean(0)).double())
    if float(values.sum()) <= TINY:
        return 1.0
    shares = values / values.sum()
    return float((-(shares * shares.clamp(min=TINY).log()).sum()).exp())


def geometry_of(prior: Gaussian, log_sigma_q: Tensor | None) -> Geometry:
    """Of the priors of two items or more [N, k, d], and the log sigma of their right answers' posteriors [N, k, d]."""
    means = prior.mean.double()
    n, k, _ = means.shape
    centred = means - means.mean(0)
    alike = F.normalize(means, dim=-1).sum(0).pow(2).sum(-1)  # [k] of each slot, sum of all pairs' cosines, its own too
    within = None
    if k > 1:
        unit = F.normalize(means, dim=-1)
        cosines = unit @ unit.transpose(1, 2)  # [N, k, k]
        within = float((cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)).mean() / (k * (k - 1)))
    length = float(means.pow(2).mean().sqrt())
    return Geometry(
        effective_rank=effective_rank(means.flatten(1)),
        most_rank=min(n - 1, means[0].numel()),
        within=within,
        across=float(((alike - n) / (n * (n - 1))).mean()),
        spread=float(centred.pow(2).mean().sqrt()) / max(length, TINY),
        slot_spread=centred.pow(2).mean((0, 2)).sqrt().tolist(),
        sigma_prior=prior.log_sigma.double().exp().mean((0, 2)).tolist(),
        sigma_posterior=None if log_sigma_q is None else log_sigma_q.double().exp().mean((0, 2)).tolist(),
    )
