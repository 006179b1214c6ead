"""One job of the study, in one process: train by the trainer, diagnose the export, keep the numbers."""

import json
import shutil
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.study.data import CLEAN
from benchmarks.study.jobs import STARTS, Job
from benchmarks.study.prepare import start_of
from data.processor import Processor
from data.sample import Sample
from data.shards import read_set
from eval.diagnosis.cases import cases
from eval.diagnosis.diagnosis import diagnose, measure_gap
from eval.models import Model, find_model
from eval.results import as_json, write_whole
from eval.settings import Settings
from model.build import markers_of
from model.generate import score
from model.thinking import Thinking
from trainer import config as configuration
from trainer.config import Config
from trainer.run import run
from trainer.signals import STOPPED, Stop

BATCH = 64  # items of a batch, where answers alone are ranked


def result_of(job: Job, out: Path) -> Path:
    return out / "results" / f"{job.name}.json"


def config_of(job: Job, config: Path, out: Path) -> Config:
    start = start_of(config, out, STARTS[job.task], job.slots)
    return configuration.load(config, job.overrides(out, start))


def do(job: Job, config: Path, out: Path, stop: Stop) -> int:
    """Train, measure and write the result, unless it is there. Returns the exit code."""
    target = result_of(job, out)
    if target.exists():
        return 0
    started, settings = time.time(), config_of(job, config, out)
    if run(settings, stop) == STOPPED:
        return STOPPED
    trained = time.time()
    model = find_model(settings.run.path)
    assert settings.data.heldout
    noisy = list(read_set(settings.data.heldout))
    found = measure(model, list(read_set(str(out / "data" / CLEAN / "heldout"))), noisy)
    seconds = {"train_seconds": trained - started, "measure_seconds": time.time() - trained}
    facts = {"task": job.task, "variant": job.variant, "seed": job.seed, "settings": list(job.settings)}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, as_json(facts | seconds | found))
    shutil.rmtree(settings.run.path / "checkpoints")  # the export stays
    return 0


def measure(model: Model, clean: list[Sample], noisy: list[Sample]) -> dict[str, Any]:
    """Findings and, by arm, accuracy on items with right answers; the gap on the same items with noisy ones, which is
    what was trained for.
    """
    settings = model.effective(Settings())
    if model.recipe.rounds == 1:
        return {"accuracy": {"kept": likeliest(model, clean, settings)}, "findings": None, "gap": None}
    found = diagnose(model, clean, settings, {})
    arms = set.intersection(*(set(item["answers"]) for item in found.items))
    return {
        "accuracy": {arm: fmean(i["answers"][arm] == i["label"] for i in found.items) for arm in sorted(arms)},
        "findings": found.findings.model_dump(mode="json"),
        "gap": measure_gap(model, noisy, settings).model_dump(mode="json"),
    }


def likeliest(model: Model, samples: list[Sample], settings: Settings) -> float:
    """Accuracy of a model without z, by the likeliest candidate."""
    processor: Processor = model.processor(settings)
    loaded = model.load(settings).to("cuda" if torch.cuda.is_available() else "cpu")
    chosen, _ = cases(samples, processor, settings.seed)
    thinking = Thinking("off" if model.recipe.latents == "none" else "mean")
    right = 0
    for first in range(0, len(chosen), BATCH):
        batch = chosen[first : first + BATCH]
        found = score(loaded, [c.item for c in batch], markers_of(processor), [c.options for c in batch], thinking)
        right += sum(int(x.argmax()) == c.right for c, x in zip(batch, found, strict=True))
    return right / len(chosen)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
