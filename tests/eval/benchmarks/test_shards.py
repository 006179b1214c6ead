"""A set of shards as a benchmark is asked token for token as it was trained on."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from data import shards as sets
from data.processor import Processor
from data.sample import Sample, Text
from eval.benchmarks import shards
from eval.benchmarks.item import label_hash, sample_of
from tests.eval.benchmarks.layouts import jpeg
from tests.refusal import refusal


def test_items(tiny_shards: Path) -> None:
    benchmark = shards.read(tiny_shards)
    samples = list(sets.read_set(tiny_shards))
    assert (benchmark.name, benchmark.split, benchmark.mean, benchmark.rules) == ("shards", "all", "micro", "plain")
    assert benchmark.labels.hash == label_hash(benchmark.items) and not benchmark.warnings
    assert list(benchmark.prompts) == ["amvl"] and benchmark.prompts["amvl"].id == "shards/amvl-1"
    for item, sample in zip(benchmark.items, samples, strict=True):
        text = sample.text
        assert (item.key, item.task, item.label, item.images) == (sample.key, text.task, text.answer, sample.images)
        assert item.choices == text.choices and item.n_choices == len(text.choices or ())
    assert {item.n_choices for item in benchmark.items} >= {0, 3}
    assert shards.read(str(tiny_shards)) == benchmark


def test_asked_as_trained(tiny_shards: Path, processor: Processor) -> None:
    benchmark = shards.read(tiny_shards)
    for item, sample in zip(benchmark.items, sets.read_set(tiny_shards), strict=True):
        equal(processor, sample, sample_of(item, benchmark.prompts["amvl"]))


@pytest.mark.parametrize(
    "question", ["<image>Is it as <image>? ", "<image><image>Same", " <image>\n<image> ", "Is it?", "Is it?\n"]
)
@pytest.mark.parametrize("choices", [None, ("yes", " no {} "), ("",)])
def test_marks_stay_in_their_places(question: str, choices: Sequence[str] | None, processor: Processor) -> None:
    text = Text(question=question, answer="A", choices=choices, task="t", source="s")
    sample = Sample(key="k", text=text, images=(jpeg(64, 64, 1), jpeg(64, 96, 2)))
    equal(processor, sample, sample_of(shards.item_of(sample), shards.PROMPTS["amvl"]))


def equal(processor: Processor, sample: Sample, asked: Sample) -> None:
    one, other = processor.encode(sample), processor.encode(asked)
    assert one.prompt.tolist() == other.prompt.tolist()
    assert one.answer.tolist() == other.answer.tolist()
    assert one.grids.tolist() == other.grids.tolist() and one.pixels.equal(other.pixels)


def test_an_image_mark_in_a_choice_is_no_place(processor: Processor) -> None:
    """Training refuses such a sample."""
    text = Text(question="Which?", answer="A", choices=("<image>", "b"), task="t", source="s")
    sample = Sample(key="k", text=text, images=(jpeg(64, 64, 1),))
    assert "2 image places for 1 images" in refusal(lambda: processor.encode(sample))
    asked = sample_of(shards.item_of(sample), shards.PROMPTS["amvl"])
    assert asked.text.question == "<image>Which? (A) [image] (B) b"


def test_what_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refusal(lambda: shards.read(tmp_path / "none"))
