"""A prompt with its completions, as it goes from the rollout through rewards and advantages to the update."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from data.processor import Encoded
from model.branches import branch_cost
from model.completion import Completion
from model.policy import Old


class Seen(NamedTuple):
    """A completion as the policy that drew it sees it, on the CPU. T tokens, k slots, d latent width."""

    logps: Tensor  # [T] nats
    z: Tensor  # [1, k, d]; [0, k, d] without latents
    mean: Tensor  # of the prior, as z
    log_sigma: Tensor  # as z
    entropy: float  # nats per token
    to_latents: float  # attention, as the rewards' layers pay it: mean over the words behind the latents
    to_images: float
    reference: Tensor | None = None  # [T] log-probabilities of the reference


@dataclass
class Group:
    """Lists have one entry per completion."""

    prompt: Encoded  # its sample has the pictures as well
    completions: list[Completion]
    texts: list[str]  # without special tokens
    seen: list[Seen] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)  # of the reward, by name, before they are weighted
    weights: dict[str, float] = field(default_factory=dict)  # of these parts
    rewards: list[float] = field(default_factory=list)  # their weighted sum; not finite: the completion is left out
    advantages: list[float] = field(default_factory=list)  # 0 where it is left out
    dropped: str | None = None  # why no completion of it is trained on

    @property
    def valid(self) -> list[int]:
        """Which completions have a reward."""
        return [i for i, reward in enumerate(self.rewards) if math.isfinite(reward)]


def kept(groups: Sequence[Group]) -> list[Group]:
    """Those that are learned from."""
    return [group for group in groups if group.dropped is None]


class Piece(NamedTuple):
    """Completions of one micro-step: of each group some."""

    groups: list[Group]
    chosen: list[list[int]]

    @property
    def completions(self) -> list[list[Completion]]:
        return [
            [group.completions[i] for i in of_group] for group, of_group in zip(self.groups, self.chosen, strict=True)
        ]

    @property
    def seen(self) -> list[Seen]:
        return [group.seen[i] for group, of_group in zip(self.groups, self.chosen, strict=True) for i in of_group]

    @property
    def old(self) -> Old:
        """What an update of it compares with."""
        seen = self.seen
        pairs = zip(self.groups, self.chosen, strict=True)
        references = [one.reference for one in seen if one.reference is not None]
        return Old(
            advantages=torch.tensor([group.advantages[i] for group, of_group in pairs for i in of_group]),
            logps=torch.cat([one.logps for one in seen]),
            reference=torch.cat(references) if references else None,
            z=torch.cat([one.z for one in seen]),
            mean=torch.cat([one.mean for one in seen]),
            log_sigma=torch.cat([one.log_sigma for one in seen]),
        )


def pieces(groups: Sequence[Group], chosen: Sequence[list[int]], costs: "Costs") -> list[Piece]:
    """All chosen completions of all groups in as few pieces as their order allows; a group may be parted."""
    found: list[Piece] = []
    room = 0
    for group, of_group in zip(groups, chosen, strict=True):
        inside = False  # whether the prompt is in the last piece
        for i in of_group:
            branch = costs.branch(group.completions[i])
            if not found or branch + (0 if inside else costs.prompt(group.prompt)) > room:
                found.append(Piece([], []))
                room, inside = costs.budget, False
            if not inside:
                found[-1].groups.append(group)
                found[-1].chosen.append([])
                room -= costs.prompt(group.prompt)
                inside = True
            found[-1].chosen[-1].append(i)
            room -= branch
    return found


class Costs(NamedTuple):
    """Tokens of prompts and completions in a micro-step."""

    budget: int
    slots: int  # k, 0 without latents
    prior: bool  # whether the prior's slots stand behind each prompt

    def prompt(self, prompt: Encoded) -> int:
        return len(prompt.prompt) + self.slots * self.prior

    def branch(self, completion: Completion) -> int:
        return branch_cost(completion, self.slots)
