"""One optimizer step on a part of a rollout."""

import time
from functools import partial
from typing import NamedTuple

import deepspeed.comm as dist
import torch
from deepspeed import DeepSpeedEngine

from model.policy import SUMS, Policy, Step, update
from trainer.config import Config
from trainer.engine import take_step
from trainer.rl.group import Piece, kept
from trainer.rl.rollout import Rollouts
from trainer.rl.underway import Underway
from trainer.rl.weights import over_ranks

ROUNDS = 2  # of a micro-step


class Learned(NamedTuple):
    """A step, for whoever reports it. Sums are those over all ranks."""

    sums: dict[str, float]  # by the names of SUMS
    furthest: float  # of a ratio from 1
    kl: float  # the weight of sums["kl"]
    tokens: int  # through the language model
    skipped: bool  # the gradient was not finite, so that nothing was changed
    seconds: float  # on this rank
    samples: list[str]  # of this rank

    @property
    def empty(self) -> bool:
        """Whether there was nothing to learn from, on any rank."""
        return not self.sums["tokens"]

    @property
    def loss(self) -> float:
        """Per token, as it is optimised."""
        count = self.sums["tokens"] + self.sums["latents"]
        return (self.sums["policy"] + self.kl * self.sums["kl"]) / max(1.0, count)


def learn(config: Config, engine: DeepSpeedEngine, rollouts: Rollouts, now: Underway) -> Learned:
    """Take the next step on a rollout. Where nothing is left to learn from on any rank, weights and optimizer rest."""
    assert config.rl
    started, settings = time.perf_counter(), config.rl.update
    groups = kept(now.groups)[now.done % settings.minibatches :: settings.minibatches]
    mine = rollouts.learnable(groups)
    now.done += 1
    drawn = [one for piece in mine for one in piece.seen]
    counted = sum(
        len(one.logps) + (one.z.shape[:2].numel() if settings.latents == "density_ratio" else 0) for one in drawn
    )
    total = over_ranks(engine.device, counted, dist.ReduceOp.SUM)
    samples = [group.prompt.sample.place for group in groups]
    if not total:
        engine.lr_scheduler.step()  # it goes by steps, as the weights of the reward do
        return Learned(dict.fromkeys(SUMS, 0.0), 0.0, settings.kl, 0, False, time.perf_counter() - started, samples)
    clip, tokens = (settings.clip_below, settings.clip_above), 0

    def micro_step(model: Policy, piece: Piece):
        nonlocal tokens
        branches = rollouts.lay_out(model, piece)
        tokens += branches.tokens
        weight = 0.0 if piece is rollouts.nothing else dist.get_world_size() / total
        step = Step(weight, clip, settings.kl, settings.latents)
        return update(model, branches, rollouts.reading, piece.old.to(engine.device), step)

    all_of_them, skipped = rollouts.padded(mine), engine.skipped_steps
    found = take_step(engine, [(partial(micro_step, piece=piece),) for piece in all_of_them], ROUNDS)
    real = [x for piece, x in zip(all_of_them, found, strict=True) if piece is not rollouts.nothing]
    sums = torch.stack([*(sums for sums, _ in real), torch.zeros(len(SUMS), device=engine.device)]).sum(0).double()
    dist.all_reduce(sums)
    furthest = over_ranks(engine.device, max([float(furthest) for _, furthest in real], default=0.0))
    tokens = int(over_ranks(engine.device, tokens, dist.ReduceOp.SUM))
    by_name = dict(zip(SUMS, sums.tolist(), strict=True))
    seconds, was_skipped = time.perf_counter() - started, engine.skipped_steps > skipped
    return Learned(by_name, furthest, settings.kl, tokens, was_skipped, seconds, samples)
