"""A set of shards as a benchmark: its samples as they were trained on, asked as in training."""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from data.sample import DataError, Sample
from data.shards import read_set
from eval.benchmarks import cells, prompts
from eval.benchmarks.item import Benchmark, Item, Labels, label_hash

PROMPTS = prompts.named("shards", [("amvl", prompts.images_first(prompts.amvl), "{letter}")])


def read(folder: str | PathLike[str]) -> Benchmark:
    """All samples of a set. Those with choices are answered by a letter, the others by their text."""
    items = cells.unique(_items(folder), folder, "key")
    if not items:
        raise DataError(f"{folder}: no samples in this set; check the path")
    return Benchmark(
        name=Path(folder).name,
        split="all",
        items=items,
        prompts=PROMPTS,
        mean="micro",
        labels=Labels(label_hash(items), "unknown"),
    )


def _items(folder: str | PathLike[str]) -> Iterator[Item]:
    for sample in read_set(folder):
        yield item_of(sample)


def item_of(sample: Sample) -> Item:
    """A sample as an item. Image marks stay in the question, where they are the images' places."""
    text = sample.text
    return Item(
        key=sample.key,
        task=text.task,
        question=text.question,
        label=text.answer,
        choices=tuple(cells.unmarked(choice) for choice in text.choices) if text.choices else None,
        n_choices=len(text.choices or ()),
        images=sample.images,
    )
