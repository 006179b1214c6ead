"""One job of the study, in one process: train by the trainer, measure the export, keep the numbers."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.study.jobs import STARTS, Job, result_of
from benchmarks.study.measure import keep, measured
from benchmarks.study.prepare import start_of
from trainer import config as configuration
from trainer.config import Config
from trainer.run import run
from trainer.signals import STOPPED, Stop


def config_of(job: Job, config: Path, out: Path) -> Config:
    start = start_of(config, out, STARTS[job.task], job.slots)
    return configuration.load(config, job.overrides(out, start))


def do(job: Job, config: Path, out: Path, stop: Stop) -> int:
    """Train, measure and write the result, unless it is there. Returns the exit code."""
    target = result_of(out, job.name)
    if target.exists():
        return 0
    started, settings = time.time(), config_of(job, config, out)
    if run(settings, stop) == STOPPED:
        return STOPPED
    trained = time.time()
    found = measured(settings.run.path, out, job.task)
    seconds = {"train_seconds": trained - started, "measure_seconds": time.time() - trained}
    facts = {"task": job.task, "variant": job.variant, "seed": job.seed, "settings": list(job.settings)}
    keep(target, facts | seconds | found)
    shutil.rmtree(settings.run.path / "checkpoints")  # the export stays
    return 0


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
