"""The loop of reinforcement learning: a rollout, then so many optimizer steps on it, on one screen."""

import contextlib
from pathlib import Path

import deepspeed.comm as dist
from deepspeed import DeepSpeedEngine

from data.pack import Prompts
from data.processor import Processor
from trainer.checkpoint import Progress
from trainer.config import Config
from trainer.health import Health
from trainer.ledger import Ledger
from trainer.profiler import Profiler
from trainer.rl import underway as states
from trainer.rl.learn import learn
from trainer.rl.pace import Pace
from trainer.rl.report import RLReporter
from trainer.rl.rollout import Rollouts
from trainer.rl.underway import Underway
from trainer.rl.weights import over_ranks
from trainer.saver import Saver
from trainer.signals import Stop
from trainer.watch import Watch


def train(
    config: Config,
    engine: DeepSpeedEngine,
    prompts: Prompts,
    processor: Processor,
    progress: Progress,
    reporter: RLReporter,
    stop: Stop,
    watch: Watch,
    last: Path | None,
) -> None:
    """Take the steps that are left, or those until a rank is asked to stop, saving on the way and at the end."""
    assert config.rl
    engine.train()
    rank = dist.get_rank()
    rollouts, saver = Rollouts(config, engine, processor), Saver(config, engine)
    profiler, ledger = Profiler(config, rank), Ledger(config.run.path / "samples", rank)
    # Losses are around 0 whatever happens, so that none of them stands out.
    health = Health(config.health.model_copy(update={"spike": 0.0}), config.run.path, rank)
    first = progress.step
    stopping, broken_off, now = False, False, states.restored(last, prompts, config, engine.device)
    with contextlib.closing(prompts):
        while progress.step < config.train.steps and not stopping:
            before = prompts.state()
            if now is None:
                share, pace = progress.step / config.train.steps, Pace(stop, watch, progress.step + 1)
                pace.at("data")
                groups = rollouts.draw(next(prompts), progress.rollouts, share, pace)
                stopping = broken_off = groups is None
                if groups is not None:
                    now = Underway(before, groups)
                    progress.seconds += sum(rollouts.seconds.values())
                    reporter.rollout(progress, groups, rollouts.seconds, before["counts"])
            if now is not None:
                with profiler.step(progress.step + 1):
                    watch.at(progress.step + 1, "step")
                    step = learn(config, engine, rollouts, now)
                progress.step += 1
                progress.skipped += step.skipped
                progress.tokens += step.tokens
                progress.seconds += step.seconds
                if now.done == config.rl.steps_per_rollout:
                    progress.rollouts += 1
                    progress.samples += config.rl.rollout.prompts
                    now = None
                reporter.step(progress, engine, step, saver.seconds)
                if config.train.record:
                    ledger.write(progress.step, step.samples)
                reporter.say(health.check(progress.step, step.loss, step.skipped, step.samples))
                saver.settle(*(over_ranks(engine.device, x, dist.ReduceOp.SUM) for x in saver.status()))
                stopping = over_ranks(engine.device, stop.reason is not None) > 0
            last_step = progress.step == config.train.steps
            if progress.step > first and (stopping or last_step or progress.step % config.train.save_every == 0):
                watch.at(progress.step, "save")
                stream = now.before if now else before if broken_off else prompts.state()
                saver.save(progress.step, stream, reporter.facts(progress), states.files(now, rank))
        if progress.step > first:
            saver.close(progress.step)
