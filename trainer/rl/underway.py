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
from trainer.checkpoint import facts_of
from trainer.config import Config
from trainer.rl.group import Group


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
    return {_file(rank): {"groups": groups, "done": now.done}}


def restored(last: Path | None, prompts: Prompts, config: Config) -> Underway | None:
    """What a checkpoint had underway, with its prompts drawn again. None between rollouts, and where the ranks or the
    size of a rollout are others: then a new one begins with the same prompts.
    """
    assert config.rl
    if last is None or not (last / _file(dist.get_rank())).is_file():
        return None
    ranks = dist.get_world_size()
    kept = torch.load(last / _file(dist.get_rank()), weights_only=False)
    same = len(kept["groups"]) * ranks == config.rl.rollout.prompts and facts_of(last)["ranks"] == ranks
    if not same or kept["done"] >= config.rl.steps_per_rollout:
        return None
    before = prompts.state()
    groups = [replace(group, prompt=prompt) for group, prompt in zip(kept["groups"], next(prompts), strict=True)]
    return Underway(before, groups, kept["done"])


def _file(rank: int) -> str:
    return f"rollout_{rank}.pt"
