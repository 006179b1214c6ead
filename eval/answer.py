"""Batched answers of an exported checkpoint, appended item by item so that a killed run goes on."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data.processor import Encoded, Processor
from data.sample import Sample
from model.batch import cost
from model.build import ModelError, load_export, markers_of
from model.generate import answer


class Answerer:
    """A checkpoint that replies to samples with z = the prior's mean, greedily."""

    def __init__(self, export: Path, budget: int, max_new_tokens: int) -> None:
        path = export / "latent.json"
        if not path.is_file():
            raise ModelError(f"{path}: no such file; name an export, e.g. runs/quickstart/export/step_875")
        facts = json.loads(path.read_text())
        self.processor = Processor(str(export), facts["min_pixels"], facts["max_pixels"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_export(export).to(device).eval()
        self.export_id: str = facts["id"]
        self.budget, self.max_new_tokens = budget, max_new_tokens

    def batches(self, samples: Iterable[Sample]) -> Iterator[list[Encoded]]:
        """Samples in batches of at most `budget` tokens (at least one sample), the longest first."""
        encoded = sorted((self.processor.encode(s) for s in samples), key=lambda e: -self._cost(e))
        batch: list[Encoded] = []
        room = self.budget
        for item in encoded:
            if batch and self._cost(item) > room:
                yield batch
                batch, room = [], self.budget
            batch.append(item)
            room -= self._cost(item)
        if batch:
            yield batch

    def reply(self, batch: list[Encoded]) -> list[str]:
        """The reply to every sample."""
        markers = markers_of(self.processor)
        ids = answer(self.model, batch, markers, self.processor.end, self.max_new_tokens)
        return [self.processor.decode(reply) for reply in ids]

    def item_id(self, sample: Sample) -> str:
        """Tells a prediction apart by everything it depends on: export, text, pictures, settings."""
        digest = hashlib.sha256(f"{self.export_id}/{self.max_new_tokens}/{sample.key}/".encode())
        digest.update(sample.text.model_dump_json().encode())
        for image in sample.images:
            digest.update(hashlib.sha256(image).digest())
        return digest.hexdigest()[:16]

    def _cost(self, item: Encoded) -> int:
        return cost(item, self.model.recipe, self.model.config.slots) + self.max_new_tokens


def predict(answerer: Answerer, samples: list[Sample], path: Path) -> list[dict[str, Any]]:
    """Predictions of all samples; those the file has of this very item are kept, the rest appended as they come."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {line["id"]: line for line in _whole_lines(path)}
    ids = [answerer.item_id(s) for s in samples]
    rest = [s for s, item_id in zip(samples, ids, strict=True) if item_id not in known]
    with path.open("a") as file, tqdm(total=len(samples), initial=len(samples) - len(rest), unit="item") as bar:
        for batch in answerer.batches(rest):
            for item, reply in zip(batch, answerer.reply(batch), strict=True):
                text, item_id = item.sample.text, answerer.item_id(item.sample)
                known[item_id] = {
                    "id": item_id,
                    "key": item.sample.key,
                    "task": text.task,
                    "reply": reply,
                    "answer": text.answer,
                    "correct": reply == text.answer.strip(),
                }
                file.write(json.dumps(known[item_id]) + "\n")
            file.flush()
            bar.update(len(batch))
    return [known[item_id] for item_id in ids]


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Predictions of an earlier run. A line torn by a kill is cut off, and its item answered again."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    for line in whole.splitlines():
        yield json.loads(line)
