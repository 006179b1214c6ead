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
from trainer.checkpoint import Progress
from trainer.config import Config
from trainer.engine import take_step
from trainer.feed import Feed
from trainer.health import Health
from trainer.ledger import Ledger
from trainer.profiler import Profiler
from trainer.report import Counts, Reporter, Step
from trainer.saver import Saver
from trainer.signals import Stop
from trainer.throughput import Flops
from trainer.vitals import Vitals
from trainer.watch import Watch


def train(
    config: Config,
    engine: DeepSpeedEngine,
    packs: Packs,
    markers: Markers,
    progress: Progress,
    reporter: Reporter,
    stop: Stop,
    watch: Watch,
) -> None:
    """Take the steps that are left, or those until a rank is asked to stop, saving on the way and at the end."""
    engine.train()
    run, rank = config.run.path, dist.get_rank()
    flops, profiler = Flops(engine.module), Profiler(config, rank)
    saver, health, ledger = Saver(config, engine), Health(config.health, run, rank), Ledger(run / "samples", rank)
    vitals = Vitals(config, engine)
    first, stopping = progress.step, False
    with contextlib.closing(_feed(config, engine.module, packs, markers)) as feed:
        while progress.step < config.train.steps and not stopping:
            with profiler.step(progress.step + 1):
                watch.at(progress.step + 1, "data")
                started = time.perf_counter()
                last = progress.step + 1 == config.train.steps
                batches = [batch.to(engine.device) for batch in feed.take(more=not last)]
                waited = time.perf_counter() - started
                watch.at(progress.step + 1, "step")
                counts = _global_counts(batches, feed.state, flops, engine, saver, stop)
                saver.settle(counts.written, counts.unwritten)
                weights, skipped = _weights(config, progress.step, counts), engine.skipped_steps
                if vitals.due(progress.step + 1):
                    reporter.vitals(progress.step + 1, vitals.look(batches, weights))
                    watch.at(progress.step + 1, "step", 1)
                found = take_step(engine, [(batch, weights) for batch in batches], config.objective.recipe.rounds)
                parts = torch.stack(found).sum(0)
                dist.all_reduce(parts)
                totals = parts.tolist()  # waits for the device, so that the clock shows its time too
                step = Step(
                    counts, weights, totals, engine.skipped_steps > skipped, time.perf_counter() - started, waited
                )
                _advance(progress, step)
                reporter.step(progress, engine, step, saver.seconds)
                samples = [name for batch in batches for name in batch.names]
                if config.train.record:
                    ledger.write(progress.step, samples)
                reporter.say(health.check(progress.step, step.loss, step.skipped, samples))
            stopping = counts.stop > 0
            if stopping or last or progress.step % config.train.save_every == 0:
                watch.at(progress.step, "save")
                saver.save(progress.step, feed.state, reporter.facts(progress))
        if progress.step > first:
            saver.close(progress.step)


def _feed(config: Config, model: LatentVLM, packs: Packs, markers: Markers) -> Feed:
    def batch_of(pack: list[Encoded]) -> Batch:
        return collate(pack, model.recipe, model.config, model.backbone, markers, config.run.seed)

    return Feed(packs, batch_of, config.train.accumulation)


def _global_counts(
    batches: list[Batch], state: dict[str, Any], flops: Flops, engine: DeepSpeedEngine, saver: Saver, stop: Stop
) -> Counts:
    """What this step takes in over all ranks and micro-steps, and what the ranks have to tell each other."""
    written, unwritten = saver.status()
    mine = Counts(
        targets=sum(len(batch.targets) for batch in batches),
        samples=sum(batch.samples for batch in batches),
        tokens=sum(batch.tokens for batch in batches),
        image_tokens=sum(len(batch.image_rows) for batch in batches),
        flops=sum(flops(batch) for batch in batches),
        **{name: state["counts"][name] for name in ("shrunk", "dropped", "bad")},
        stop=stop.reason is not None,
        written=written,
        unwritten=unwritten,
    )
    # float64 holds every whole number up to 2^53, and FLOPs above it to 16 digits.
    counts = torch.tensor(mine, dtype=torch.float64, device=engine.device)
    dist.all_reduce(counts)
    return Counts(*counts.tolist())


def _advance(progress: Progress, step: Step) -> None:
    progress.step += 1
    progress.samples += int(step.counts.samples)
    progress.tokens += int(step.counts.tokens)
    progress.skipped += step.skipped
    progress.seconds += step.seconds


def _weights(config: Config, step: int, counts: Counts) -> Weights:
    """Scales that make the mean over ranks, which DeepSpeed takes, the global loss."""
    copies = dist.get_world_size()
    beta, gamma = config.objective.weights(step / config.train.steps)
    per_token = copies / counts.targets
    if config.objective.kl_reduction == "mean":
        return Weights(beta, gamma, per_token, copies / (config.latent.slots * config.latent.width * counts.samples))
    return Weights(beta, gamma, per_token, per_token)
