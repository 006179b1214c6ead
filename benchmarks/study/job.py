"""One job of the study, in one process: train by the trainer, diagnose the export, keep the numbers."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.data import CLEAN
from benchmarks.study.jobs import STARTS, Job
from benchmarks.study.prepare import start_of
from data.processor import Processor
from data.sample import Sample
from data.shards import read_set
from eval.diagnosis.cases import cases
from eval.diagnosis.diagnosis import diagnose
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
    found = measure(model, list(read_set(settings.data.heldout)), clean_answers(out))
    seconds = {"train_seconds": trained - started, "measure_seconds": time.time() - trained}
    facts = {"task": job.task, "variant": job.variant, "seed": job.seed, "settings": list(job.settings)}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, as_json(facts | seconds | found))
    shutil.rmtree(settings.run.path / "checkpoints")  # the export stays
    return 0


def clean_answers(out: Path) -> dict[str, str]:
    """The right answers of the held-out items, by key, where those that are asked have noisy ones."""
    return {sample.key: sample.text.answer for sample in read_set(str(out / "data" / CLEAN / "heldout"))}


def measure(model: Model, samples: list[Sample], clean: dict[str, str]) -> dict[str, Any]:
    """Findings, and by arm the accuracy by right answers and the nats of the noisy ones."""
    settings = model.effective(Settings())
    if model.recipe.rounds == 1:
        said = likeliest(model, samples, settings)
        return {"accuracy": {"kept": _share(said, clean)}, "findings": None}
    found = diagnose(model, samples, settings, {})
    arms = set.intersection(*(set(item["answers"]) for item in found.items))
    return {
        "accuracy": {arm: _share({i["key"]: i["answers"][arm] for i in found.items}, clean) for arm in sorted(arms)},
        "findings": found.findings.model_dump(mode="json"),
    }


def likeliest(model: Model, samples: list[Sample], settings: Settings) -> dict[str, str]:
    """By key, the likeliest candidate of a model without z."""
    processor: Processor = model.processor(settings)
    loaded = model.load(settings).to("cuda" if torch.cuda.is_available() else "cpu")
    chosen, _ = cases(samples, processor, settings.seed)
    thinking = Thinking("off" if model.recipe.latents == "none" else "mean")
    said: dict[str, str] = {}
    for first in range(0, len(chosen), BATCH):
        batch = chosen[first : first + BATCH]
        found = score(loaded, [c.item for c in batch], markers_of(processor), [c.options for c in batch], thinking)
        said |= {c.key: c.candidates[int(x.argmax())] for c, x in zip(batch, found, strict=True)}
    return said


def _share(said: dict[str, str], clean: dict[str, str]) -> float:
    return sum(clean[key] == answer for key, answer in said.items()) / len(said)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
