"""The training loop: one step on one screen."""

import time

import deepspeed.comm as dist
import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor

from data.pack import Packs
from model.batch import Batch, Markers, collate
from model.latent_vlm import PARTS, LatentVLM, Weights
from trainer import checkpoint
from trainer.checkpoint import Progress
from trainer.config import Config
from trainer.report import Reporter


def train(
    config: Config, engine: DeepSpeedEngine, packs: Packs, markers: Markers, progress: Progress, reporter: Reporter
) -> None:
    """Take the steps that are left, saving on the way and at the end."""
    engine.train()
    while progress.step < config.train.steps:
        started = time.perf_counter()
        batches = [_next_batch(config, engine, packs, markers) for _ in range(config.train.accumulation)]
        waited = time.perf_counter() - started
        weights = _weights(config, progress.step, _global_counts(batches, engine))
        parts = torch.zeros(len(PARTS), device=engine.device)
        for batch in batches:
            loss, sums = engine(batch, weights)
            engine.backward(loss)
            engine.step()
            parts += sums
        progress.step += 1
        dist.all_reduce(parts)
        progress.samples += int(parts[PARTS.index("samples")])
        progress.seconds += time.perf_counter() - started
        tokens = sum(batch.tokens for batch in batches)
        reporter.step(progress, weights, parts.tolist(), engine, tokens, time.perf_counter() - started, waited)
        if progress.step % config.train.save_every == 0 or progress.step == config.train.steps:
            checkpoint.save(config.run.path, progress.step, engine, packs, reporter.facts(progress))


def _next_batch(config: Config, engine: DeepSpeedEngine, packs: Packs, markers: Markers) -> Batch:
    model: LatentVLM = engine.module
    batch = collate(next(packs), model.recipe, model.config, model.backbone, markers, config.run.seed)
    return batch.to(engine.device)


def _global_counts(batches: list[Batch], engine: DeepSpeedEngine) -> Tensor:
    """Target tokens and samples of this step over all ranks and micro-steps."""
    counts = torch.tensor(
        [[len(batch.targets), batch.samples] for batch in batches], dtype=torch.float64, device=engine.device
    ).sum(0)
    dist.all_reduce(counts)
    return counts


def _weights(config: Config, step: int, counts: Tensor) -> Weights:
    """Scales that make the mean over ranks and micro-steps, which DeepSpeed takes, the global loss."""
    tokens, samples = counts.tolist()
    copies = dist.get_world_size() * config.train.accumulation
    beta, gamma = config.objective.weights(step / config.train.steps)
    per_token = copies / tokens
    if config.objective.kl_reduction == "mean":
        return Weights(beta, gamma, per_token, copies / (config.latent.slots * config.latent.width * samples))
    return Weights(beta, gamma, per_token, per_token)
