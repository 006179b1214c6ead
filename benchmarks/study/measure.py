"""What the study asks of a model: on clean held-out items, and for the gap on the same items with noisy answers."""

from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.study.data import CLEAN
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

BATCH = 64  # items of a batch, where answers alone are ranked


def keep(path: Path, result: dict[str, Any]) -> None:
    """Write a result, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, as_json(result))


def measured(run: Path, out: Path, task: str) -> dict[str, Any]:
    """Of the newest model of a run, on a task's held-out items."""
    clean, noisy = (list(read_set(str(out / "data" / name / "heldout"))) for name in (CLEAN, task))
    return measure(find_model(run), clean, noisy)


def measure(model: Model, clean: list[Sample], noisy: list[Sample]) -> dict[str, Any]:
    """Findings and, by arm, accuracy on items with right answers; the gap on the same items with noisy ones, which is
    what was trained for.
    """
    settings = model.effective(Settings())
    if model.recipe.rounds == 1:
        return {"accuracy": {"kept": likeliest(model, clean, settings)}, "findings": None, "gap": None}
    found = diagnose(model, clean, settings, {}, alterations=())
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
