"""Items to diagnose: each with its candidates for an answer, the wrong ones that a posterior is shown, and its prompt
altered in ways that should reach the latents.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data.processor import Encoded, Processor
from data.sample import IMAGE_MARK, LETTERS, DataError, Sample
from model.batch import generator_of

MOST = 4  # candidates of an open question, the right one among them
SHOWN = 3  # wrong answers that a posterior is shown
ALTERATIONS = {
    "image_swap": "another item's pictures, others of the same sizes",
    "blank_image": "pictures of one colour, the mean of all",
    "patches": "the patches of each picture in another order",
    "words": "the words of the question in another order",
}


@dataclass(frozen=True)
class Case:
    """One item."""

    item: Encoded
    candidates: tuple[str, ...]  # texts
    answers: tuple[Tensor, ...]  # their token ids, the end mark last
    right: int  # number of the candidate that is right
    wrong: tuple[int, ...]  # numbers of those that a posterior is shown

    @property
    def key(self) -> str:
        return self.item.sample.key

    @property
    def options(self) -> list[list[int]]:
        """The candidates' token ids."""
        return [answer.tolist() for answer in self.answers]


def cases(samples: Sequence[Sample], processor: Processor, seed: int) -> tuple[list[Case], list[str]]:
    """The samples that can be diagnosed, in their order, and why each of the others cannot.

    With choices the candidates are their letters; of an open question, the right answer and others that were given to
    the same question, or where there is none, in the same task.
    """
    pools = _Pools(samples)
    found, left_out = [], []
    for sample in samples:
        rng = random.Random(f"{seed}/{sample.key}")
        candidates = pools.candidates(sample, rng)
        if len(candidates) < 2:
            left_out.append(f"{sample.place}: no other answer than {sample.text.answer!r} is known in its task")
            continue
        try:
            item = processor.encode(sample)
        except DataError as error:
            left_out.append(str(error))
            continue
        right = candidates.index(sample.text.answer)
        others = [number for number in range(len(candidates)) if number != right]
        shown = tuple(sorted(rng.sample(others, min(SHOWN, len(others)))))
        found.append(Case(item, candidates, tuple(_ids(text, processor) for text in candidates), right, shown))
    return found, left_out


def _ids(text: str, processor: Processor) -> Tensor:
    return torch.tensor([*processor.tokenizer(text, add_special_tokens=False)["input_ids"], processor.end])


class _Pools:
    """Answers that were given to open questions, by question and by task, the commonest first."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.by_question: dict[str, dict[str, int]] = {}
        self.by_task: dict[str, dict[str, int]] = {}
        for sample in (sample for sample in samples if not sample.text.choices):  # a letter answers no other question
            for pool, name in ((self.by_question, sample.text.question), (self.by_task, sample.text.task)):
                counts = pool.setdefault(name, {})
                counts[sample.text.answer] = counts.get(sample.text.answer, 0) + 1

    def candidates(self, sample: Sample, rng: random.Random) -> tuple[str, ...]:
        """The right one is anywhere among them."""
        text = sample.text
        if text.choices:
            return tuple(LETTERS[: len(text.choices)])
        there = self.by_question[text.question]
        if len(there) < 2:
            there = self.by_task[text.task]
        others = sorted((a for a in there if a != text.answer), key=lambda a: (-there[a], a))
        chosen = [text.answer, *others[: MOST - 1]]
        rng.shuffle(chosen)
        return tuple(chosen)


def altered(name: str, chosen: Sequence[Case], processor: Processor, seed: int) -> dict[str, Encoded]:
    """By key, the prompts altered; items that have nothing to alter are left out."""
    donors = _donors(chosen, seed) if name == "image_swap" else {}
    found: dict[str, Encoded] = {}
    for case in chosen:
        generator = generator_of(f"{seed}/{name}/{case.key}")
        if name == "image_swap":
            item = donors.get(case.key)
        elif name == "words":
            item = _other_words(case.item, processor, generator)
        else:
            item = _other_pixels(name, case.item, generator)
        if item is not None:
            found[case.key] = item
    return found


def _donors(chosen: Sequence[Case], seed: int) -> dict[str, Encoded]:
    """By key, items with another's pictures, of all that have pictures of the same sizes; never with the same pictures,
    as questions on one picture would have.
    """
    alike: dict[str, list[Encoded]] = {}
    for case in chosen:
        if len(case.item.grids):
            alike.setdefault(str(case.item.grids.tolist()), []).append(case.item)
    found: dict[str, Encoded] = {}
    for name, items in alike.items():
        items.sort(key=lambda item: item.sample.key)
        random.Random(f"{seed}/{name}").shuffle(items)
        by_pictures: dict[tuple[bytes, ...], list[Encoded]] = {}
        for item in items:
            by_pictures.setdefault(item.sample.images, []).append(item)
        circle = [item for group in by_pictures.values() for item in group]
        step = max(map(len, by_pictures.values()))  # out of every group that is no more than half of all
        for item, other in zip(circle, circle[step:] + circle[:step], strict=True):
            if other.sample.images != item.sample.images:
                found[item.sample.key] = replace(item, pixels=other.pixels)
    return found


def _other_pixels(name: str, item: Encoded, generator: torch.Generator) -> Encoded | None:
    """Blank, or the patches of each picture in another order; None without a picture."""
    if not len(item.grids):
        return None
    if name == "blank_image":
        return replace(item, pixels=torch.zeros_like(item.pixels))  # pixels are normalised: their mean is 0
    parts = item.pixels.split(item.grids.prod(1).tolist())
    return replace(item, pixels=torch.cat([p[torch.randperm(len(p), generator=generator)] for p in parts]))


def _other_words(item: Encoded, processor: Processor, generator: torch.Generator) -> Encoded | None:
    """None where no other order of the words reads differently."""
    words = item.sample.text.question.split()
    places = [n for n, word in enumerate(words) if IMAGE_MARK not in word]
    if len({words[n] for n in places}) < 2:
        return None
    mixed = list(words)
    while mixed == words:
        for place, n in zip(places, torch.randperm(len(places), generator=generator).tolist(), strict=True):
            mixed[place] = words[places[n]]
    text = item.sample.text.model_copy(update={"question": " ".join(mixed)})
    return processor.encode(item.sample.model_copy(update={"text": text}))
