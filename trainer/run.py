"""A run from its start, or from its newest checkpoint, to its end or to a signal."""

import os
import socket
from functools import partial
from typing import Any

import deepspeed
import deepspeed.comm as dist
from deepspeed.accelerator import get_accelerator

from data.pack import Packs, Prompts
from data.pipeline import packs_of, prompts_of
from data.processor import Processor
from model.batch import cost
from model.branches import prompt_cost
from model.build import load_processor, markers_of
from trainer import checkpoint, finish, loop, resume
from trainer.checkpoint import Progress
from trainer.config import Config
from trainer.engine import build
from trainer.report import Reporter
from trainer.rl import config as rl_config
from trainer.rl import loop as rl_loop
from trainer.rl.report import RLReporter
from trainer.signals import STOPPED, Stop
from trainer.tracking import Tracker
from trainer.watch import Watch

# What the launcher would set: without it, one rank on its own.
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def run(config: Config, stop: Stop) -> int:
    """Train, and export the end. Returns the exit code: 0, or STOPPED after a signal."""
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))  # or objects sent between ranks all go by GPU 0
    deepspeed.init_distributed()
    with Watch(config.watch, config.run.path / "stacks", dist.get_rank(), dist.get_world_size()) as watch:
        return _train(config, stop, watch)


def _train(config: Config, stop: Stop, watch: Watch) -> int:
    rank, ranks, path = dist.get_rank(), dist.get_world_size(), config.run.path
    lock = resume.lock(path) if rank == 0 and resume.is_claimed(path) else None
    last = resume.newest(path)
    changes = resume.refuse_change(config, last, ranks)
    facts = checkpoint.facts_of(last) if last else {}
    if last and finish.is_finished(config):
        if rank == 0:
            print(f"{path}: all {config.train.steps} steps are done; delete the folder to train again")
        return 0
    processor = load_processor(config.model)
    packs = _data(config, processor, rank, ranks)
    if last:
        resume.restore_stream(last, packs)
        resume.prepare(last)
    packs.prime()
    engine = build(config, universal=resume.other_ranks(last))
    if last:
        resume.restore_engine(last, engine)
    progress = Progress(**facts.get("progress", {}))
    tracker = None
    if rank == 0:
        lock = resume.claim(config, lock, last)
        tracker = Tracker(config.tracking, config.run.folder, config.run.name, path, facts.get("mlflow_run_id"))
        tracker.begin(_attempt(ranks, progress), same=not changes and not resume.other_ranks(last), step=progress.step)
        tracker.parameters(config.model_dump(mode="json") | {"ranks": ranks}, [path / "config.yaml"])
        backbone = engine.module.backbone
        print(f"attention: {backbone.attention}; of the vision tower: {backbone.vision_attention}")
        print(processor.describe())
        print(f"{path}: {ranks} ranks, step {progress.step} of {config.train.steps}")
        for change in changes:
            print(f"changed since {last.name if last else ''}: {change}")
    reporter = (RLReporter if config.rl else Reporter)(config, tracker, ranks, progress.step)
    watch.at_end = partial(reporter.close, "FAILED")
    try:
        if isinstance(packs, Prompts) and isinstance(reporter, RLReporter):
            rl_loop.train(config, engine, packs, processor, progress, reporter, stop, watch, last)
        else:
            loop.train(config, engine, packs, markers_of(processor), progress, reporter, stop, watch)
        stopped = progress.step < config.train.steps
        # The others are done: an export may take longer than they would wait for rank 0.
        watch.at(progress.step, "end")
        dist.barrier()
        dist.destroy_process_group()
        if tracker and stopped:
            reporter.say(f"{path}: stopped ({stop.reason or 'another rank was asked to'}) after step {progress.step}")
            reporter.close("KILLED")
        elif tracker:
            finish.finish(config, progress, tracker, ranks)
    except BaseException:
        reporter.close("FAILED")
        raise
    if lock:
        lock.close()
    return STOPPED if stopped else 0


def _data(config: Config, processor: Processor, rank: int, ranks: int) -> Packs:
    """This rank's samples: in packs, or so many at a time as a rollout has prompts."""
    data, seed, quarantine, slots = config.data, config.run.seed, config.run.path / "quarantine", config.latent.slots
    if config.rl:
        count = rl_config.check(config, ranks)
        measure = partial(prompt_cost, behind=rl_config.completion_cost(config))
        return prompts_of(data, processor.encode, measure, config.train.tokens, count, seed, rank, ranks, quarantine)
    measure = partial(cost, recipe=config.objective.recipe, slots=slots)
    return packs_of(data, processor.encode, measure, config.train.tokens, seed, rank, ranks, quarantine)


def _attempt(ranks: int, progress: Progress) -> dict[str, Any]:
    """What MLflow is told of this start of the run."""
    facts = {"ranks": ranks, "step": progress.step, "host": socket.gethostname()}
    return facts | ({"slurm_job": job} if (job := os.environ.get("SLURM_JOB_ID")) else {})
