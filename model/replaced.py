"""What a sample's answers become with other latents: many branches behind one prompt, each with its own z or none.

And what the model believes of z: the prior, and the posterior of any answer, the wrong ones too.

Letters in shapes: N samples, B branches of a sample, R of all, O options of a sample, k slots, j <= k of them,
d latent width, L layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data.processor import Encoded
from model.attention_probe import IMAGES, Probe
from model.batch import Batch, Markers, collate, without_pictures
from model.generate import likelihoods
from model.latent import Gaussian
from model.latent_vlm import LatentVLM
from model.layout import Layout, next_round
from model.objective import Recipe
from model.thinking import Thinking, check

Latents = Tensor | None  # z [j, d] between the marks, or (None) no marks either


class Beliefs(NamedTuple):
    """Of one sample."""

    prior: Gaussian  # p(z | x), each [k, d]
    posteriors: Gaussian  # q(z | x, y) of each answer asked about, each [answers, k, d]


@torch.no_grad()
def believe(
    model: LatentVLM, samples: Sequence[Encoded], markers: Markers, about: Sequence[Sequence[Tensor]]
) -> list[Beliefs]:
    """Prior and posteriors of each sample in one pass; `about`: token ids of each of its answers, the end mark last.

    ThoughtError where the model has no prior. Where it has no posterior, `about` has to be empty.
    """
    check(model.recipe, Thinking("given"))
    batch = collate(list(samples), model.recipe, model.config, model.backbone, markers, answers=False, about=about).to(
        model.scale.device
    )
    states, _ = model.prompt_round(batch)
    prior = model.prior_of(batch, states)
    counts = [len(ys) for ys in about] or [0] * len(samples)
    none = Gaussian(prior.mean[:0], prior.log_sigma[:0])
    found = model.posterior_of(batch, states) if any(counts) else none
    posteriors = zip(found.mean.split(counts), found.log_sigma.split(counts), strict=True)
    priors = zip(prior.mean, prior.log_sigma, strict=True)
    return [Beliefs(Gaussian(*p), Gaussian(*q)) for p, q in zip(priors, posteriors, strict=True)]


@torch.no_grad()
def replaced(
    model: LatentVLM,
    samples: Sequence[Encoded],
    markers: Markers,
    options: list[list[list[int]]],
    latents: Sequence[Sequence[Latents]],
    probed: int | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Log-likelihood of each sample's options with each of its `latents` [B, O], nats, float64. One at least has a z.

    And what the row that predicts an answer's first token attends to, with each sample's latents number `probed`:
    [N, L, 2], the mass on latents and on pictures, mean over heads (empty without).
    """
    device = model.scale.device
    if model.recipe.bottleneck:
        samples = [without_pictures(s, model.backbone) for s in samples]
    batch = collate(list(samples), Recipe("none"), model.config, model.backbone, markers, answers=False).to(device)
    prefixes, first = model.prompt_round(batch)
    behind = [[0 if z is None else len(z) + 2 for z in of_sample] for of_sample in latents]
    layout = next_round(first.layout, behind, [[0] * len(of_sample) for of_sample in behind], keep=True)
    z_rows = [row for s in layout.branches for row in range(s.row + 1, s.row + s.length - 1)]
    ids = [i for s in layout.branches for i in (markers.start, *[0] * (s.length - 2), markers.end)]
    ends = {(s.sample, s.branch): s.row + s.length - 1 for s in layout.branches}  # of those with marks
    queries = [ends[n, probed] for n in range(len(samples))] if probed is not None else []
    probe = _probe(model, batch, layout, z_rows, queries) if probed is not None else None
    round_ = model.round(layout.to(device), first, probe=probe)
    vectors = _injected(model, [z for of_sample in latents for z in of_sample if z is not None])
    inputs = model.backbone.embedding(torch.tensor(ids, device=device))
    inputs = inputs.index_copy(0, torch.tensor(z_rows, dtype=torch.long, device=device), vectors.to(inputs.dtype))
    states = model.backbone.states(inputs, round_)
    starts = prefixes[first.layout.prefix_ends()]
    last = torch.stack(
        [
            states[ends[n, b]] if (n, b) in ends else starts[n]
            for n, of_sample in enumerate(latents)
            for b in range(len(of_sample))
        ]
    )
    return likelihoods(model, last, round_, behind, options), _by_layer(probe) if probe else torch.empty(0)


@torch.no_grad()
def look(model: LatentVLM, samples: Sequence[Encoded], markers: Markers) -> Tensor:
    """What the prior's slots attend to in the pictures: mass, mean over slots and heads [N, L]."""
    check(model.recipe, Thinking("given"))
    device, k, count = model.scale.device, model.config.slots, len(samples)
    batch = collate(list(samples), Recipe("none"), model.config, model.backbone, markers, answers=False).to(device)
    _, first = model.prompt_round(batch)
    layout = next_round(first.layout, [[k]] * count, [[0]] * count)
    rows = list(range(k * count))
    probe = _probe(model, batch, layout, rows, rows)
    inputs = model.slots(model.scale).to(model.backbone.embedding.weight.dtype).repeat(count, 1)
    model.backbone.states(inputs, model.round(layout.to(device), first, probe=probe))
    return _by_layer(probe)[:, :, IMAGES].unflatten(0, (count, k)).mean(1)


def _by_layer(probe: Probe) -> Tensor:
    """[Q, L, 2]"""
    return torch.stack([probe.found[layer] for layer in sorted(probe.found)], 1)


def _injected(model: LatentVLM, latents: Sequence[Tensor]) -> Tensor:
    """Input vectors [sum of j, C] of z [j, d] each: what the first j of the k slots would get."""
    k = model.config.slots
    whole = torch.stack([F.pad(z, (0, 0, 0, k - len(z))) for z in latents]).to(model.scale.device)
    slots = torch.tensor([slot < len(z) for z in latents for slot in range(k)], device=whole.device)
    return model.injection(whole, model.scale).flatten(0, 1)[slots]


def _probe(model: LatentVLM, batch: Batch, layout: Layout, z_rows: list[int], queries: list[int]) -> Probe:
    latents = torch.zeros(layout.tokens, dtype=torch.bool)
    latents[z_rows] = True
    images = torch.zeros(batch.first.tokens, dtype=torch.bool)
    images[batch.image_rows.cpu()] = True
    layers = frozenset(range(model.backbone.config.text_config.num_hidden_layers))
    return Probe(layers, torch.tensor(queries), latents, images)
