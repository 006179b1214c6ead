"""Encoded samples to the rounds of one micro-step: token ids, layouts, and which row plays which part.

Letters in shapes: N samples, k slots, d latent width, T rows of a round, M target tokens, I image tokens.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from data.processor import Encoded
from data.sample import Sample
from model.backbones.backbone import Backbone
from model.latent import LatentConfig
from model.layout import PREFIX, Layout, first_round, next_round
from model.objective import Recipe

FIRST = 0  # branch number of the prior's slots, and of what is decoded; posteriors come behind


@dataclass(frozen=True)
class Markers:
    """Token ids that stand around the latents."""

    start: int
    end: int


@dataclass(frozen=True)
class Batch:
    """One micro-step. Rows are numbers of rows in the round named."""

    ids: Tensor  # [T1] token ids of round 1 (0 where a vector stands instead)
    first: Layout
    pixels: Tensor  # [patches, patch width], at least one image
    grids: Tensor  # [images, 3]
    image_rows: Tensor  # [I] rows of round 1; empty when the only image is the dummy
    slot_rows: Tensor  # [N * k] round 1: the slots of the prior, or those of `pause`
    posterior_rows: Tensor  # [answers * k] round 1; an answer of each sample, or all those asked about
    noise: Tensor  # [N, k, d] standard normal; empty without answers
    ids2: Tensor  # [T2]
    second: Layout | None  # the decode round, where z comes from round 1; with prefixes of its own in a bottleneck
    z_rows: Tensor  # [N * k] round 2
    target_rows: Tensor  # [M] rows of the last round that predict a target
    targets: Tensor  # [M] token ids
    names: tuple[str, ...]  # of the samples, with their epochs

    @property
    def samples(self) -> int:
        """How many samples they are."""
        return len(self.names)

    @property
    def tokens(self) -> int:
        """Tokens that pass the language model."""
        return self.first.tokens + (self.second.tokens if self.second else 0)

    def to(self, device: torch.device | str) -> "Batch":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {n: v.to(device) for n, v in values.items() if isinstance(v, Tensor | Layout)}
        return replace(self, **moved)


def cost(sample: Encoded, recipe: Recipe, slots: int) -> int:
    """Tokens a sample adds to the rounds of a micro-step."""
    prompt, answer = len(sample.prompt), len(sample.answer)
    decode = answer - 1 + (0 if recipe.latents == "none" else slots + 2)
    before = {"none": 0, "pause": 0, "prior": slots, "posterior": answer + 2 * slots}[recipe.latents]
    again = prompt - sample.image_tokens if recipe.bottleneck else 0
    return prompt + before + decode + again


def noise_of(sample: Sample, seed: int | str, config: LatentConfig) -> Tensor:
    """[k, d] noise that depends on seed, sample and epoch alone, whatever rank or batch it is in."""
    generator = generator_of(f"{seed}/{sample.key}/{sample.epoch}")
    return torch.randn(config.slots, config.width, generator=generator)


def generator_of(name: str) -> torch.Generator:
    """Random numbers that depend on a name alone."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def collate(
    samples: list[Encoded],
    recipe: Recipe,
    config: LatentConfig,
    backbone: Backbone,
    markers: Markers,
    seed: int = 0,
    answers: bool = True,
    about: Sequence[Sequence[Tensor]] = (),
) -> Batch:
    """Lay out N samples. Without `answers` (inference) no round 2 is made, and round 1 has no posterior but of those
    answers (token ids) that are asked `about`, any number per sample.
    """
    k = config.slots
    latents = recipe.latents
    start, end, blank = torch.tensor([markers.start]), torch.tensor([markers.end]), torch.zeros(k, dtype=torch.long)
    inputs = [s.answer[:-1] if answers else s.answer[:0] for s in samples]
    decode = inputs if latents == "none" else [torch.cat([start, blank, end, y]) for y in inputs]
    known: list[list[Tensor]]  # per sample the ids of each branch of round 1
    if latents in ("none", "pause"):
        known = [[ids] for ids in decode]
    else:
        shown = [[s.answer] for s in samples] if latents == "posterior" and answers else about or [()] * len(samples)
        known = [[blank, *(torch.cat([y, blank]) for y in ys)] for ys in shown]
    first = first_round(
        [backbone.positions(s.prompt, s.grids) for s in samples],
        [[len(b) for b in branches] for branches in known],
        keep=not answers and latents in ("none", "pause"),
    )
    second, ids2 = None, decode
    if answers and recipe.bottleneck:
        texts = [without_pictures(s, backbone) for s in samples]
        prefixes = [backbone.positions(s.prompt, s.grids) for s in texts]
        second = first_round(prefixes, [[len(ids)] for ids in decode])
        ids2 = [s.prompt for s in texts] + decode
    elif answers and recipe.rounds == 2:
        second = next_round(first, [[len(ids)] for ids in decode], [[0] for _ in samples])
    ids = torch.cat([s.prompt for s in samples] + [b for branches in known for b in branches])
    real = any(len(s.grids) for s in samples)
    slot_rows = first.branch_rows(FIRST) if latents != "none" else []
    if latents == "pause":
        slot_rows = [rows[1 : 1 + k] for rows in slot_rows]  # between the marks
    prompt_tokens = sum(len(s.prompt) for s in samples)
    return Batch(
        ids=ids,
        first=first,
        pixels=torch.cat([s.pixels for s in samples]) if real else _dummy_pixels(backbone),
        grids=torch.cat([s.grids for s in samples]) if real else _dummy_grid(backbone),
        image_rows=(ids[:prompt_tokens] == backbone.config.image_token_id).nonzero()[:, 0],
        slot_rows=_flat(slot_rows),
        posterior_rows=_flat(
            [range(s.row + s.length - k, s.row + s.length) for s in first.branches if s.branch > FIRST]
        ),
        noise=torch.stack([noise_of(s.sample, seed, config) for s in samples]) if answers else torch.empty(0),
        ids2=torch.cat(ids2) if second else blank[:0],
        second=second,
        z_rows=_flat([rows[1 : 1 + k] for rows in second.branch_rows(FIRST)] if second else []),
        target_rows=_target_rows(second or first, latents, k) if answers else blank[:0],
        targets=torch.cat([s.answer for s in samples]) if answers else blank[:0],
        names=tuple(f"{s.sample.place} (epoch {s.sample.epoch})" for s in samples),
    )


def without_pictures(sample: Encoded, backbone: Backbone) -> Encoded:
    """The same sample with nothing in the places of its pictures."""
    text = sample.prompt[sample.prompt != backbone.config.image_token_id]
    return replace(sample, prompt=text, pixels=sample.pixels[:0], grids=sample.grids[:0], image_tokens=0)


def _flat(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([row for sample in rows for row in sample], dtype=torch.long)


def _target_rows(layout: Layout, latents: str, slots: int) -> Tensor:
    """Rows that predict the answers' tokens: from the end mark on, or from the prompt's last token on."""
    if latents != "none":
        return _flat([rows[slots + 1 :] for rows in layout.branch_rows(FIRST)])
    ends = [rows[-1:] for rows in layout.branch_rows(PREFIX)]
    return _flat([[*end, *rows] for end, rows in zip(ends, layout.branch_rows(FIRST), strict=True)])


def _dummy_grid(backbone: Backbone) -> Tensor:
    merge = backbone.config.vision_config.spatial_merge_size
    return torch.tensor([[1, merge, merge]])


def _dummy_pixels(backbone: Backbone) -> Tensor:
    """The smallest image: a rank without pictures runs the vision tower all the same (ZeRO-3 needs it)."""
    return torch.zeros(int(_dummy_grid(backbone).prod()), backbone.patch_width)
