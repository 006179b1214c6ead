"""The plain way to take a step, to be compared with: every sample a row of its own, right-padded to the longest.

`separate_loss` takes an AMVL step in three passes of transformers' own model over [prompt, slots], [prompt, answer,
slots] and [prompt, start, z, end, answer] (research code does it so; in a bottleneck, the last prompt without its
pictures), and shares nothing but the weights with the packed rounds. `separate_policy_loss` does so with completions,
in two passes each. `transformers_loss` is the fine-tuning loss as transformers gives it for input_ids and labels.
"""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.processor import Encoded
from model.batch import Markers, noise_of, without_pictures
from model.completion import Completion
from model.latent_vlm import LatentVLM, Weights
from model.objective import kl_terms
from model.policy import Old, Policy, Step

Model = TypeVar("Model", bound=LatentVLM)


def plain_copy(model: Model) -> Model:
    """The same weights with transformers' own scaled-dot-product attention, in the vision tower too."""
    plain = copy.deepcopy(model)
    plain.backbone.model.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
    return plain


def separate_loss(plain: LatentVLM, samples: list[Encoded], markers: Markers, seed: int, weights: Weights) -> Tensor:
    """The loss of N samples of any lengths; the prompts' images are looked at once for all passes."""
    backbone, k = plain.backbone, plain.config.slots
    states = _passes(plain, samples)
    start, end = (backbone.embedding(torch.tensor([i])) for i in (markers.start, markers.end))
    answers = [backbone.embedding(s.answer) for s in samples]  # each [A, C]

    def at_slots(branches: list[Tensor]) -> Tensor:
        return torch.stack([h[-k:] for h in states(branches)])

    zero = start.new_zeros(())
    forward, reverse = zero, zero
    if plain.recipe.latents == "none":
        predicting = torch.cat(states([y[:-1] for y in answers]))
    else:
        slots = plain.slots(plain.scale)
        if plain.recipe.latents == "pause":
            z = slots.expand(len(samples), -1, -1)
        else:
            prior = plain.prior(at_slots([slots] * len(samples)))
            latents = prior.mean
            if plain.recipe.latents == "posterior":
                own = plain.posterior_slots(plain.scale)
                posterior = plain.posterior(at_slots([torch.cat([y, own]) for y in answers]))
                latents = posterior.sample(torch.stack([noise_of(s.sample, seed, plain.config) for s in samples]))
                forward, reverse = kl_terms(plain.recipe, prior, posterior)
            z = plain.injection(latents, plain.scale)
        if plain.recipe.bottleneck:
            states = _passes(plain, [without_pictures(s, backbone) for s in samples])
        found = states([torch.cat([start, latent, end, y[:-1]]) for latent, y in zip(z, answers, strict=True)])
        predicting = torch.cat([h[k + 2 :] for h in found])
    targets = torch.cat([s.answer for s in samples])
    ntp = F.cross_entropy(backbone.logits(predicting).float(), targets, reduction="sum")
    return weights.per_token * ntp + weights.per_nat * (weights.beta * forward + weights.gamma * reverse)


def separate_policy_loss(
    plain: Policy, samples: list[Encoded], completions: list[Completion], markers: Markers, old: Old, step: Step
) -> Tensor:
    """GRPO's loss of N completions, each in two passes of its own, [prompt, slots] and [prompt, start, z, end, text],
    at temperature 1; the latents with their recorded noise or, for the other two ways, as recorded."""
    backbone, k = plain.backbone, plain.config.slots
    states = _passes(plain, samples)
    embed = backbone.embedding
    latents: list[Any] = [None] * len(samples)
    if plain.recipe.latents != "none":
        prior = plain.prior(torch.stack([h[-k:] for h in states([plain.slots(plain.scale)] * len(samples))]))
        pairs = zip(samples, completions, strict=True)
        noise = torch.stack([noise_of(s.sample, c.noise, plain.config) for s, c in pairs])
        drawn = prior.sample(noise) if plain.recipe.latents == "posterior" else prior.mean
        z = drawn if step.latents == "eps_replay" else old.z
        latents = list(plain.injection(z, plain.scale))
    start, end = (embed(torch.tensor([i])) for i in (markers.start, markers.end))
    branches, rows = [], []  # rows that predict: 0 is the prompt's last
    for completion, latent in zip(completions, latents, strict=True):
        text, at = embed(torch.tensor(completion.inputs, dtype=torch.long)), completion.latent_at
        if at is None:
            parts, skipped = [text], 0
        elif at:
            parts, skipped = [text[:at], latent, end, text[at:]], k + 1
        else:
            parts, skipped = [start, latent, end, text], k + 2
        branches.append(torch.cat(parts))
        rows.append([n + (skipped if at is not None and n >= at else 0) for n in range(len(completion.ids))])
    loss, first = start.new_zeros(()), 0
    for n, (h, own, completion) in enumerate(zip(states(branches), rows, completions, strict=True)):
        logs = backbone.logits(h[own]).float().log_softmax(-1)
        logps, last = logs[range(len(own)), completion.ids], first + len(own)
        loss = loss - _surrogate(logps - old.logps[first:last], old.advantages[n], step).sum()
        if old.reference is not None:
            apart = old.reference[first:last] - logps
            loss = loss + step.kl * (apart.exp() - apart - 1).sum()
        first = last
        if step.latents == "density_ratio" and completion.latent_at is not None:
            now = torch.distributions.Normal(prior.mean[n], prior.log_sigma[n].exp()).log_prob(old.z[n])
            then = torch.distributions.Normal(old.mean[n], old.log_sigma[n].exp()).log_prob(old.z[n])
            loss = loss - _surrogate((now - then).mean(-1), old.advantages[n], step).sum()
    return step.per_token * loss


def _surrogate(change: Tensor, advantage: Tensor, step: Step) -> Tensor:
    ratio = change.exp()
    return torch.min(ratio * advantage, ratio.clamp(1 - step.clip[0], 1 + step.clip[1]) * advantage)


def _passes(plain: LatentVLM, samples: list[Encoded]) -> Callable[[list[Tensor]], list[Tensor]]:
    """A function from branches, each [B, C], to their last hidden states from the prompt's end on, each [1 + B, C]."""
    prompts, prompt_positions, deep = _prompts(plain, samples)

    def states(branches: list[Tensor]) -> list[Tensor]:
        rows = [torch.cat(pair) for pair in zip(prompts, branches, strict=True)]
        positions = [
            torch.cat([p, (p.max() + 1 + torch.arange(len(b))).expand(3, -1)], 1).T
            for p, b in zip(prompt_positions, branches, strict=True)
        ]
        mask = _padded([torch.ones(len(row), dtype=torch.long) for row in rows])
        more = {n: F.pad(x, (0, mask.shape[1] - x.shape[1])) if "mask" in n else x for n, x in deep.items()}
        hidden = plain.backbone.model.model.language_model(
            inputs_embeds=_padded(rows),
            position_ids=_padded(positions).permute(2, 0, 1),
            attention_mask=mask,
            use_cache=False,
            **more,
        ).last_hidden_state
        return [h[len(p) - 1 : len(row)] for h, p, row in zip(hidden, prompts, rows, strict=True)]

    return states


def prompt_inputs(plain: LatentVLM, sample: Encoded) -> tuple[Tensor, Tensor]:
    """A prompt's embeddings [P, C] with its images, and transformers' own positions [3, P]. Not of Qwen3-VL."""
    (prompt,), (positions,), _ = _prompts(plain, [sample])
    return prompt, positions


def transformers_loss(plain: LatentVLM, samples: list[Encoded]) -> Tensor:
    """Mean next-token loss by transformers' own forward, which makes logits of every token, padding included."""
    ids = [torch.cat([s.prompt, s.answer]) for s in samples]
    labels = [torch.cat([torch.full_like(s.prompt, -100), s.answer]) for s in samples]
    rows = _padded(ids)
    images = {}
    if any(len(s.grids) for s in samples):
        images = {
            "pixel_values": torch.cat([s.pixels for s in samples]),
            "image_grid_thw": torch.cat([s.grids for s in samples]),
            "mm_token_type_ids": (rows == plain.backbone.config.image_token_id).int(),
        }
    mask = _padded([torch.ones_like(x) for x in ids])
    loss: Tensor = plain.backbone.model(
        input_ids=rows, attention_mask=mask, labels=_padded(labels, -100), use_cache=False, **images
    ).loss
    return loss


def _padded(rows: list[Tensor], value: int = 0) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


def _prompts(plain: LatentVLM, samples: list[Encoded]) -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
    """Prompt embeddings, each [P, C], with their images, transformers' own positions, each [3, P], and DeepStack's."""
    hf = plain.backbone.model.model
    ids, grids = _padded([s.prompt for s in samples]), torch.cat([s.grids for s in samples])
    mask = _padded([torch.ones_like(s.prompt) for s in samples])
    is_image = ids == plain.backbone.config.image_token_id
    embedded, deep = plain.backbone.embedding(ids), {}
    if len(grids):
        seen = hf.get_image_features(torch.cat([s.pixels for s in samples]), grids)
        embedded = embedded.masked_scatter(is_image[..., None], torch.cat(seen.pooler_output))
        if hasattr(seen, "deepstack_features"):
            # Not split by image in transformers 5.17.
            features = [x if isinstance(x, Tensor) else torch.cat(x) for x in seen.deepstack_features]
            deep = {"visual_pos_masks": is_image, "deepstack_visual_embeds": features}
    positions, _ = hf.get_rope_index(
        ids, is_image.int(), image_grid_thw=grids if len(grids) else None, attention_mask=mask
    )
    lengths = [len(s.prompt) for s in samples]
    trimmed = [positions[:, n, :length] for n, length in enumerate(lengths)]
    return [x[:length] for x, length in zip(embedded, lengths, strict=True)], trimmed, deep
