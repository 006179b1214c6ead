"""The self-contained page of an evaluation: scores with intervals, pictures of items right and wrong."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from data.sample import IMAGE_MARK, LETTERS, Sample
from eval.scores import Score

SHOWN = 3  # wrong and right items of each task in the gallery

PAGE = Path(__file__).with_name("report.html")


def write_report(
    path: Path, name: str, scores: dict[str, Score], samples: list[Sample], predictions: list[dict[str, Any]]
) -> Path:
    """Write the page and return its path. All text is escaped."""
    gallery: dict[str, list[dict[str, Any]]] = {task: [] for task in scores if task != "all"}
    for wanted in (False, True):
        for task, items in gallery.items():
            fitting = (
                _item(s, p)
                for s, p in zip(samples, predictions, strict=True)
                if s.text.task == task and p["correct"] is wanted
            )
            items.extend(item for item, _ in zip(fitting, range(SHOWN), strict=False))
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE.read_text(encoding="utf-8"))
    path.write_text(page.render(name=name, scores=scores, gallery=gallery), encoding="utf-8")
    return path


def _item(sample: Sample, prediction: dict[str, Any]) -> dict[str, Any]:
    text = sample.text
    return {
        "key": sample.key,
        "question": text.question.replace(IMAGE_MARK, "[picture]"),
        "choices": " ".join(f"({a}) {c}" for a, c in zip(LETTERS, text.choices or (), strict=False)),
        "reply": prediction["reply"],
        "answer": text.answer,
        "correct": prediction["correct"],
        "images": ["data:image/png;base64," + base64.b64encode(c).decode() for c in sample.images],
    }
