"""The plain way to take an AMVL step, to be compared with: three separate, unpacked passes per sample.

It runs transformers' own attention over [prompt, slots], [prompt, answer, slots] and [prompt, start, z, end,
answer] (research code does it so) and shares nothing but the weights with the packed rounds.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data.processor import Encoded
from model.batch import Markers, noise_of
from model.latent_vlm import LatentVLM, Weights
from model.objective import kl_terms


def plain_copy(model: LatentVLM) -> LatentVLM:
    """The same weights with transformers' own scaled-dot-product attention."""
    plain = copy.deepcopy(model)
    plain.backbone.model.set_attn_implementation({"text_config": "sdpa"})
    return plain


def separate_loss(plain: LatentVLM, samples: list[Encoded], markers: Markers, seed: int, weights: Weights) -> Tensor:
    """The loss of samples of one shape (equal prompt and answer lengths), batched without packing."""
    backbone, k = plain.backbone, plain.config.slots
    n, length = len(samples), len(samples[0].prompt)
    prompt, prompt_positions, images = _prompts(plain, samples)
    answers = torch.stack([s.answer for s in samples])  # [N, A]
    start, end = (backbone.embedding(torch.full((n, 1), i)) for i in (markers.start, markers.end))
    y = backbone.embedding(answers)

    def states(branch: Tensor) -> Tensor:  # [N, B, C] behind the prompt -> last hidden states [N, P + B, C]
        following = prompt_positions.amax((0, 2))[None, :, None] + 1 + torch.arange(branch.shape[1])
        deep = images | {name: F.pad(mask, (0, branch.shape[1])) for name, mask in images.items() if "mask" in name}
        return backbone.model.model.language_model(
            inputs_embeds=torch.cat([prompt, branch], 1),
            position_ids=torch.cat([prompt_positions, following.expand(3, -1, -1)], 2),
            use_cache=False,
            **deep,
        ).last_hidden_state

    def slots(module: torch.nn.Module) -> Tensor:
        return module(plain.scale).expand(n, -1, -1)

    zero = prompt.new_zeros(())
    forward, reverse = zero, zero
    if plain.recipe.latents == "none":
        inputs, ahead = y[:, :-1], 0
    else:
        if plain.recipe.latents == "pause":
            z = slots(plain.slots)
        else:
            prior = plain.prior(states(slots(plain.slots))[:, -k:])
            latents = prior.mean
            if plain.recipe.latents == "posterior":
                posterior = plain.posterior(states(torch.cat([y, slots(plain.posterior_slots)], 1))[:, -k:])
                noise = torch.stack([noise_of(s.sample, seed, plain.config) for s in samples])
                latents = posterior.sample(noise)
                forward, reverse = kl_terms(plain.recipe, prior, posterior)
            z = plain.injection(latents, plain.scale)
        inputs, ahead = torch.cat([start, z, end, y[:, :-1]], 1), k + 2
    predicting = states(inputs)[:, length + ahead - 1 :]
    ntp = F.cross_entropy(backbone.logits(predicting).flatten(0, 1).float(), answers.flatten(), reduction="sum")
    return weights.per_token * ntp + weights.per_nat * (weights.beta * forward + weights.gamma * reverse)


def _prompts(plain: LatentVLM, samples: list[Encoded]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Prompt embeddings [N, P, C] with their images, transformers' own positions [3, N, P], and what DeepStack adds."""
    hf = plain.backbone.model.model
    ids = torch.stack([s.prompt for s in samples])
    grids = torch.cat([s.grids for s in samples])
    is_image = ids == plain.backbone.config.image_token_id
    embedded, deep = plain.backbone.embedding(ids), {}
    if len(grids):
        seen = hf.get_image_features(torch.cat([s.pixels for s in samples]), grids)
        embedded = embedded.masked_scatter(is_image[..., None], torch.cat(seen.pooler_output))
        if hasattr(seen, "deepstack_features"):
            features = [torch.cat(layer) for layer in seen.deepstack_features]
            deep = {"visual_pos_masks": is_image, "deepstack_visual_embeds": features}
    positions, _ = hf.get_rope_index(ids, is_image.int(), image_grid_thw=grids if len(grids) else None)
    return embedded, positions, deep
