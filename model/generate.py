"""Greedy answers from the prior: a prefix and its prior once, then token by token over their memory."""

import torch
from torch import Tensor

from data.processor import Encoded
from model.attention import Round
from model.batch import Markers, collate
from model.latent_vlm import LatentVLM
from model.layout import next_round


@torch.no_grad()
def answer(
    model: LatentVLM, samples: list[Encoded], markers: Markers, end: int, max_new_tokens: int
) -> list[list[int]]:
    """Token ids of the reply to each sample, without the end mark, with z = the prior's mean.

    What a sample is answered does not depend on the samples beside it.
    """
    device = model.scale.device
    batch = collate(samples, model.recipe, model.config, model.backbone, markers, answers=False)
    batch = batch.to(device)
    states, round_ = model.prompt_round(batch)
    rows = _last_rows(round_, len(samples))
    behind = 0  # decoded inputs so far, the same for all samples that are not done
    if model.recipe.latents == "pause":
        behind = model.config.slots + 2
    elif model.recipe.latents != "none":
        z = model.prior_of(batch, states).mean  # [N, k, d]
        behind = model.config.slots + 2
        states, round_ = _decode_latents(model, z, round_, markers)
        rows = _last_rows(round_, len(samples))
    replies: list[list[int]] = [[] for _ in samples]
    open_ = list(range(len(samples)))
    for step in range(max_new_tokens):
        tokens = model.backbone.logits(states[rows]).argmax(-1).tolist()  # one per open sample
        for sample, token in zip(open_, tokens, strict=True):
            if token != end:
                replies[sample].append(token)
        open_ = [sample for sample, token in zip(open_, tokens, strict=True) if token != end]
        if not open_ or step == max_new_tokens - 1:
            break
        new = [[0] for _ in samples]
        for sample in open_:
            new[sample] = [1]
        layout = next_round(round_.layout, new, [[behind + step]] * len(samples), keep=True).to(device)
        round_ = model.round(layout, round_)
        ids = torch.tensor([replies[sample][-1] for sample in open_], device=device)
        states = model.backbone.states(model.backbone.embedding(ids), round_)
        rows = list(range(len(open_)))
    return replies


def _decode_latents(model: LatentVLM, z: Tensor, prompt: Round, markers: Markers) -> tuple[Tensor, Round]:
    """The decode branch up to the end marker: start, z [N, k, d], end."""
    n, k, _ = z.shape
    ids = torch.tensor([markers.start, *[0] * k, markers.end], device=z.device).repeat(n)
    layout = next_round(prompt.layout, [[k + 2]] * n, [[0]] * n, keep=True).to(z.device)
    z_rows = torch.arange(n * (k + 2), device=z.device).view(n, -1)[:, 1:-1].flatten()
    round_ = model.round(layout, prompt)
    return model.backbone.states(model.decode_inputs(ids, z_rows, z), round_), round_


def _last_rows(round_: Round, samples: int) -> list[int]:
    """The last row of every sample in a round."""
    rows = [0] * samples
    for segment in round_.layout.segments:
        rows[segment.sample] = max(rows[segment.sample], segment.row + segment.length - 1)
    return rows
