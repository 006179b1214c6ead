"""A rollout that is being learned from, and how a checkpoint keeps it.

What was drawn, measured and rated is kept as it is; the prompts are drawn from the stream again, which is put to where
it was before them.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import torch

from data.pack import Prompts
from data.processor import Encoded
from trainer.checkpoint import facts_of
from trainer.config import Config
from trainer.rl.group import Group
from trainer.rl.weights import over_ranks


@dataclass
class Underway:
    """Of this rank."""

    before: dict[str, Any]  # the stream's state before its prompts were drawn
    groups: list[Group]
    done: int = 0  # steps taken on it


def files(now: Underway | None, rank: int) -> dict[str, Any]:
    """This rank's file of a checkpoint, by name; none between rollouts."""
    if now is None:
        return {}
    groups = [replace(group, prompt=None) for group in now.groups]  # type: ignore[arg-type]
    prompts = [_name(group.prompt) for group in now.groups]
    return {_file(rank): {"groups": groups, "prompts": prompts, "done": now.done}}


def restored(last: Path | None, prompts: Prompts, config: Config, device: torch.device) -> Underway | None:
    """What a checkpoint had underway, with its prompts drawn again. None between rollouts, and where prompts, ranks or
    the size of a rollout are others: then a new one begins with the next prompts. Collective.
    """
    assert config.rl
    if last is None:
        return None
    path, ranks = last / _file(dist.get_rank()), dist.get_world_size()
    kept = torch.load(path, weights_only=False) if path.is_file() else None
    fits = (
        kept is not None
        and facts_of(last)["ranks"] == ranks
        and kept["done"] < config.rl.steps_per_rollout
        and kept["prompts"] == [_name(prompt) for prompt in prompts.peek()]
    )
    if over_ranks(device, not fits):
        return None
    assert kept
    before = prompts.state()
    groups = [replace(group, prompt=prompt) for group, prompt in zip(kept["groups"], next(prompts), strict=True)]
    return Underway(before, groups, kept["done"])


def _name(prompt: Encoded) -> tuple[str, int]:
    return prompt.sample.place, prompt.sample.epoch


def _file(rank: int) -> str:
    return f"rollout_{rank}.pt"
