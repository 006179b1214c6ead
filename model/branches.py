"""Completions laid out as branches of their prompts' prefixes: one prefix for all of a group.

Letters in shapes: N prompts, B completions of all of them, L those with latents, k slots, d latent width, T rows of the
second round, P rows of all prefixes, M target tokens, Q query rows.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from data.processor import Encoded
from model.backbones.backbone import Backbone
from model.batch import Batch, Markers, collate, noise_of
from model.completion import Completion
from model.latent import LatentConfig
from model.layout import Layout, next_round
from model.objective import Recipe


@dataclass(frozen=True)
class Branches:
    """Two rounds: prompts (with the prior's branch where there is a prior), then completions. Rows as named."""

    prompts: Batch
    ids: Tensor  # [T] token ids of round 2 (0 where a latent stands)
    layout: Layout  # of round 2
    z_rows: Tensor  # [L * k] round 2
    z_prompt: Tensor  # [L] number of the prompt
    z_completion: Tensor  # [L] number of the completion
    noise: Tensor  # [L, k, d] standard normal; 0 where latents are not drawn
    target_rows: Tensor  # [M] rows of the prefixes' ends [N] with those of round 2 behind them
    targets: Tensor  # [M] token ids
    target_completion: Tensor  # [M] number of the completion
    query_rows: Tensor  # [Q] round 2: the words behind the latents (all words where there are none)
    query_completion: Tensor  # [Q] number of the completion
    completions: int  # B

    @property
    def tokens(self) -> int:
        """Tokens that pass the language model."""
        return self.prompts.tokens + self.layout.tokens

    @property
    def latents(self) -> Tensor:
        """[T] whether a row of round 2 is a latent."""
        return torch.zeros(len(self.ids), dtype=torch.bool, device=self.ids.device).index_fill(0, self.z_rows, True)

    @property
    def images(self) -> Tensor:
        """[P] whether a prefix's row is an image's."""
        rows = sum(s.length for s in self.prompts.first.prefixes)
        blank = torch.zeros(rows, dtype=torch.bool, device=self.ids.device)
        return blank.index_fill(0, self.prompts.image_rows, True)

    def to(self, device: torch.device | str) -> "Branches":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        kinds = Tensor | Layout | Batch
        moved: dict[str, Any] = {n: v.to(device) for n, v in values.items() if isinstance(v, kinds)}
        return replace(self, **moved)


def prompt_cost(sample: Encoded, behind: int) -> int:
    """Tokens of a prompt and of what may stand `behind` it."""
    return len(sample.prompt) + behind


def branch_cost(completion: Completion, slots: int) -> int:
    """Tokens of a completion's branch."""
    marks = {None: 0, 0: slots + 2}.get(completion.latent_at, slots + 1)
    return marks + len(completion.inputs)


def lay_out(
    prompts: list[Encoded],
    completions: list[list[Completion]],
    recipe: Recipe,
    config: LatentConfig,
    backbone: Backbone,
    markers: Markers,
) -> Branches:
    """The two rounds of N prompts with their completions (at least one in all)."""
    k, prior = config.slots, recipe.latents in ("prior", "posterior")
    batch = collate(prompts, recipe if prior else Recipe("none"), config, backbone, markers, answers=False)
    flat = [(n, c) for n, of_prompt in enumerate(completions) for c in of_prompt]
    branches = [_branch(c, markers, k) for _, c in flat]
    if not any(branches):
        branches[0] = [0]  # a round has a token; nothing is asked of it
    sizes = iter(map(len, branches))
    lengths = [[next(sizes) for _ in of_prompt] for of_prompt in completions]
    layout = next_round(batch.first, lengths, [[0] * len(of_prompt) for of_prompt in completions])
    rows = _Rows()
    start = 0
    for number, ((prompt, one), branch) in enumerate(zip(flat, branches, strict=True)):
        rows.add(number, prompt, len(prompts), start, one, k, markers)
        start += len(branch)
    noise = [
        noise_of(prompts[n].sample, c.noise, config) if recipe.latents == "posterior" else torch.zeros(k, config.width)
        for n, c in flat
        if c.latent_at is not None
    ]
    return Branches(
        prompts=batch,
        ids=_long([token for branch in branches for token in branch]),
        layout=layout,
        z_rows=_long(rows.z),
        z_prompt=_long(rows.z_prompt),
        z_completion=_long(rows.z_completion),
        noise=torch.stack(noise) if noise else torch.zeros(0, k, config.width),
        target_rows=_long(rows.targets),
        targets=_long([token for _, c in flat for token in c.ids]),
        target_completion=_long([number for number, (_, c) in enumerate(flat) for _ in c.ids]),
        query_rows=_long(rows.queries),
        query_completion=_long(rows.query_completion),
        completions=len(flat),
    )


def _branch(one: Completion, markers: Markers, slots: int) -> list[int]:
    """Ids of a branch, 0 in the place of latents."""
    if one.latent_at is None:
        return list(one.inputs)
    before = one.inputs[: one.latent_at] if one.latent_at else (markers.start,)
    return [*before, *[0] * slots, markers.end, *one.inputs[one.latent_at :]]


class _Rows:
    """Which row plays which part, completion by completion."""

    def __init__(self) -> None:
        self.z: list[int] = []
        self.z_prompt: list[int] = []
        self.z_completion: list[int] = []
        self.targets: list[int] = []
        self.queries: list[int] = []
        self.query_completion: list[int] = []

    def add(
        self, number: int, prompt: int, prompts: int, start: int, one: Completion, slots: int, markers: Markers
    ) -> None:
        """A completion whose branch begins at row `start` of round 2."""
        at, behind, words = one.latent_at, 0, list(range(start, start + len(one.inputs)))  # rows of its words
        end_mark = -1
        if at is not None:
            first = start + (at or 1)  # behind the start mark
            behind, end_mark = at, first + slots
            words[at:] = range(end_mark + 1, end_mark + 1 + len(one.inputs) - at)
            self.z += range(first, end_mark)
            self.z_prompt.append(prompt)
            self.z_completion.append(number)
        for place in range(len(one.ids)):
            # A token is predicted from the one before it: behind latents the end mark, at first the prompt's last.
            before = end_mark if place == at else words[place - 1] if place else None
            self.targets.append(prompt if before is None else prompts + before)
        later = zip(words[behind:], one.inputs[behind:], strict=True)
        queries = [row for row, token in later if token not in (markers.start, markers.end)]
        self.queries += queries
        self.query_completion += [number] * len(queries)


def _long(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)
