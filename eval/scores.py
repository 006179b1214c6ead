"""Accuracy with intervals, beside chance and what can be had without looking at the pictures."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from data.sample import LETTERS, Text


class Blind:
    """The baseline that sees no picture: the commonest training answer to the same text.

    Where choices come in another order than in training, it takes the offered choice whose content was most
    often right for the same question, and for a question never seen the commonest answer of its task.
    """

    def __init__(self, texts: Iterable[Text]) -> None:
        by_text: dict[str, Counter[str]] = defaultdict(Counter)
        by_task: dict[str, Counter[str]] = defaultdict(Counter)
        self._right_choices: dict[str, Counter[str]] = defaultdict(Counter)
        for text in texts:
            by_text[_seen(text)][text.answer] += 1
            by_task[text.task][text.answer] += 1
            if text.choices is not None:
                self._right_choices[_question(text)][text.choices[LETTERS.index(text.answer)]] += 1
        self._by_text = {seen: _commonest(answers) for seen, answers in by_text.items()}
        self._by_task = {task: _commonest(answers) for task, answers in by_task.items()}
        self.answers = {task: len(answers) for task, answers in by_task.items()}

    def answer(self, text: Text) -> str:
        """Its answer: a letter where there are choices."""
        if _seen(text) in self._by_text:
            return self._by_text[_seen(text)]
        right = self._right_choices.get(_question(text), Counter())
        counts = [right[choice] for choice in text.choices or ()]
        if any(counts):
            return LETTERS[counts.index(max(counts))]
        return self._by_task.get(text.task, "")


def _question(text: Text) -> str:
    return f"{text.task}\n{text.question}"


def _seen(text: Text) -> str:
    return "\n".join((_question(text), *(text.choices or ())))


def _commonest(answers: Counter[str]) -> str:
    return min(answers, key=lambda answer: (-answers[answer], answer))


@dataclass(frozen=True)
class Score:
    """One group of items. Intervals are of 95 %: Wilson's for the accuracy, normal for the paired gain."""

    n: int
    accuracy: float
    low: float
    high: float
    blind: float
    chance: float
    gain: float  # accuracy minus blind, on the same items
    gain_low: float
    gain_high: float


def score(correct: list[bool], blind: list[bool], chance: list[float]) -> Score:
    """Scores of items that are in the same order in all three lists."""
    n = len(correct)
    interval = binomtest(sum(correct), n).proportion_ci(method="wilson")
    differences = np.asarray(correct, float) - np.asarray(blind, float)
    gain = float(differences.mean())
    margin = 1.96 * float(differences.std(ddof=1)) / n**0.5 if n > 1 else 2.0  # one item says nothing
    return Score(
        n=n,
        accuracy=sum(correct) / n,
        low=float(interval.low),
        high=float(interval.high),
        blind=sum(blind) / n,
        chance=sum(chance) / n,
        gain=gain,
        gain_low=gain - margin,
        gain_high=gain + margin,
    )


def by_task(predictions: list[dict[str, Any]], texts: list[Text], blind: Blind) -> dict[str, Score]:
    """Scores of all items (under `all`) and of every task. Predictions and texts in the same order."""
    groups: dict[str, list[int]] = {"all": list(range(len(texts)))}
    for index, text in enumerate(texts):
        groups.setdefault(text.task, []).append(index)
    correct = [bool(p["correct"]) for p in predictions]
    without = [blind.answer(text) == text.answer for text in texts]
    chance = [1 / (len(t.choices) if t.choices else max(1, blind.answers.get(t.task, 1))) for t in texts]
    return {
        name: score([correct[i] for i in group], [without[i] for i in group], [chance[i] for i in group])
        for name, group in groups.items()
    }


def table(scores: dict[str, Score]) -> str:
    """Scores as a text table, all items first; every interval is of 95 %."""
    columns = f"{'task':<20}{'n':>6}{'accuracy':>10}  {'interval':<16}{'blind':>7}{'chance':>8}"
    lines = [f"{columns}{'gain':>8}  interval"]
    for name, s in scores.items():
        accuracy = f"{s.accuracy:>10.3f}  {f'[{s.low:.3f}, {s.high:.3f}]':<16}"
        gain = f"{s.gain:>+8.3f}  [{s.gain_low:+.3f}, {s.gain_high:+.3f}]"
        lines.append(f"{name:<20}{s.n:>6}{accuracy}{s.blind:>7.3f}{s.chance:>8.3f}{gain}")
    return "\n".join(lines)
