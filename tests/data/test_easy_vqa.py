"""The easy-vqa converter: the package's own split, whole, with its 13 answers."""

import io
from collections import Counter

import pytest
from PIL import Image

from data.convert.easy_vqa import ANSWERS, read
from data.sample import Sample


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Sample]]:
    return {"train": list(read("train")), "heldout": list(read("heldout"))}


def test_sizes_are_the_packages_own(splits: dict[str, list[Sample]]) -> None:
    assert {name: len(samples) for name, samples in splits.items()} == {"train": 38_575, "heldout": 9_673}
    assert {name: len({s.images for s in samples}) for name, samples in splits.items()} == {
        "train": 4_000,
        "heldout": 1_000,
    }


def test_keys_are_unique_over_both_splits(splits: dict[str, list[Sample]]) -> None:
    keys = Counter(s.key for samples in splits.values() for s in samples)
    assert len(keys) == 38_575 + 9_673 and set(keys.values()) == {1}
    assert not any("." in key or "/" in key for key in keys)


def test_answers_are_the_thirteen(splits: dict[str, list[Sample]]) -> None:
    assert len(set(ANSWERS)) == len(ANSWERS) == 13
    for samples in splits.values():
        assert {s.text.answer for s in samples} == set(ANSWERS)
        assert {(s.text.task, s.text.source, s.text.choices) for s in samples} == {("easy_vqa", "easy-vqa 1.0", None)}


def test_pictures_belong_to_their_questions(splits: dict[str, list[Sample]]) -> None:
    """Where the answer is one of four colours, the darkest pixel of the picture is nearest to it."""
    near = {"black": (0, 0, 0), "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    checked = Counter()
    for sample in splits["heldout"][:400]:
        if sample.text.answer not in near:
            continue
        picture = Image.open(io.BytesIO(sample.images[0])).convert("RGB")
        assert picture.size == (64, 64)
        colours = picture.getcolors(64 * 64)
        darkest = min(colours, key=lambda c: sum(c[1]))[1]
        distances = {name: sum(abs(a - b) for a, b in zip(darkest, value, strict=True)) for name, value in near.items()}
        assert min(distances, key=distances.__getitem__) == sample.text.answer
        checked[sample.text.answer] += 1
    assert len(checked) == 4
