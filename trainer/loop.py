"""The training loop: one step on one screen."""

import contextlib
import time
from typing import Any

import deepspeed.comm as dist
import torch
from deepspeed import DeepSpeedEngine

from data.pack import Packs
from data.processor import Encoded
from model.batch import Batch, Markers, collate
from model.latent_vlm import LatentVLM, Weights
from trainer import checkpoint
from trainer.checkpoint import Progress
from trainer.config import Config
from trainer.engine import take_step
from trainer.feed import Feed
from trainer.profiler import Profiler
from trainer.report import Counts, Reporter, Step
from trainer.throughput import Flops


def train(
    config: Config, engine: DeepSpeedEngine, packs: Packs, markers: Markers, progress: Progress, reporter: Reporter
) -> None:
    """Take the steps that are left, saving on the way and at the end."""
    engine.train()
    flops, profiler = Flops(engine.module), Profiler(config, dist.get_rank())
    with contextlib.closing(_feed(config, engine.module, packs, markers)) as feed:
        while progress.step < config.train.steps:
            with profiler.step(progress.step + 1):
                started = time.perf_counter()
                last = progress.step + 1 == config.train.steps
                batches = [batch.to(engine.device) for batch in feed.take(more=not last)]
                waited = time.perf_counter() - started
                counts = _global_counts(batches, feed.state, flops, engine)
                weights = _weights(config, progress.step, counts)
                parts = take_step(engine, batches, weights)
                dist.all_reduce(parts)
                totals = parts.tolist()  # waits for the device, so that the clock shows its time too
                seconds = time.perf_counter() - started
                progress.step += 1
                progress.samples += int(counts.samples)
                progress.seconds += seconds
                reporter.step(progress, engine, Step(counts, weights, totals, seconds, waited))
            if progress.step % config.train.save_every == 0 or progress.step == config.train.steps:
                checkpoint.save(config.run.path, progress.step, engine, feed.state, reporter.facts(progress))


def _feed(config: Config, model: LatentVLM, packs: Packs, markers: Markers) -> Feed:
    def batch_of(pack: list[Encoded]) -> Batch:
        return collate(pack, model.recipe, model.config, model.backbone, markers, config.run.seed)

    return Feed(packs, batch_of, config.train.accumulation)


def _global_counts(batches: list[Batch], state: dict[str, Any], flops: Flops, engine: DeepSpeedEngine) -> Counts:
    """What this step takes in over all ranks and micro-steps."""
    mine = Counts(
        targets=sum(len(batch.targets) for batch in batches),
        samples=sum(batch.samples for batch in batches),
        tokens=sum(batch.tokens for batch in batches),
        image_tokens=sum(len(batch.image_rows) for batch in batches),
        flops=sum(flops(batch) for batch in batches),
        **{name: state["counts"][name] for name in ("shrunk", "dropped", "bad")},
    )
    # float64 holds every whole number up to 2^53, and FLOPs above it to 16 digits.
    counts = torch.tensor(mine, dtype=torch.float64, device=engine.device)
    dist.all_reduce(counts)
    return Counts(*counts.tolist())


def _weights(config: Config, step: int, counts: Counts) -> Weights:
    """Scales that make the mean over ranks, which DeepSpeed takes, the global loss."""
    copies = dist.get_world_size()
    beta, gamma = config.objective.weights(step / config.train.steps)
    per_token = copies / counts.targets
    if config.objective.kl_reduction == "mean":
        return Weights(beta, gamma, per_token, copies / (config.latent.slots * config.latent.width * counts.samples))
    return Weights(beta, gamma, per_token, per_token)
