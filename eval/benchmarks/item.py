"""What every benchmark is read into: items with a right answer each, and the prompts they can be asked with."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from data.sample import IMAGE_MARK, LETTERS, Sample, Text


@dataclass(frozen=True)
class Item:
    """One question."""

    key: str  # its own name in the benchmark, unique
    task: str  # sub-task or category
    question: str  # without its choices
    label: str  # the right letter; of an open question (no choices at all) the right text
    choices: tuple[str, ...] | None  # their texts; None where they are drawn in the picture, and for open questions
    n_choices: int  # 0: an open question
    images: tuple[bytes, ...] = ()  # encoded, in order
    prompt: str | None = None  # the benchmark's own ready-made prompt, where it has one
    groups: Mapping[str, str] = field(default_factory=dict)  # other groupings, e.g. {"difficulty": "hard"}

    @property
    def letters(self) -> str:
        """The letters on offer, `ABCD` for four choices."""
        return LETTERS[: self.n_choices]


@dataclass(frozen=True)
class Prompt:
    """One way to ask."""

    id: str  # with its benchmark and version, e.g. "blink/official-1": it changes whenever the wording does
    build: Callable[[Item], str]  # the whole text, with an IMAGE_MARK for each of the item's images, in order
    reply: str = "{letter}"  # how a bare answer is written, which `score` measures the likelihood of


@dataclass(frozen=True)
class Labels:
    """The right answers as a set that changes over time."""

    hash: str
    version: str  # by name where it is known


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as it was read."""

    name: str
    split: str
    items: tuple[Item, ...]
    prompts: Mapping[str, Prompt]  # by their short names, the default first
    mean: str  # its official average: "macro" (of sub-tasks) or "micro" (of items)
    labels: Labels
    rules: str = "plain"  # whose `official` extraction fits: "blink" or "visual_puzzles"; "plain": none of its own
    apart: tuple[str, ...] = ()  # sub-tasks without which the means are given as well
    warnings: tuple[str, ...] = ()  # what is not as the benchmark should be, one line each


def label_hash(items: Iterable[Item]) -> str:
    """Twelve digits of SHA-256 over the sorted lines KEY <tab> LABEL."""
    lines = sorted(f"{item.key}\t{item.label}\n" for item in items)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def sample_of(item: Item, prompt: Prompt, blind: bool = False) -> Sample:
    """An item as a sample to encode, its choices written out by the prompt. `blind`: without its pictures."""
    question = prompt.build(item)
    if blind:
        question = question.replace(IMAGE_MARK, "").strip() or "?"  # some are asked by their pictures alone
    text = Text(question=question, answer=item.label, task=item.task, source=item.key)
    return Sample(key=item.key, text=text, images=() if blind else item.images)
