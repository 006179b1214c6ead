"""The PyPI package `easy-vqa` (MIT): 5,000 pictures of one shape, 48,248 questions, its own split kept."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import easy_vqa

from data.sample import Sample, Text

Split = Literal["train", "heldout"]
ANSWERS = tuple(easy_vqa.get_answers())


def read(split: Split) -> Iterator[Sample]:
    """All questions of a split in the package's order; `heldout` is its test split."""
    train = split == "train"
    questions, answers, image_ids = easy_vqa.get_train_questions() if train else easy_vqa.get_test_questions()
    paths = easy_vqa.get_train_image_paths() if train else easy_vqa.get_test_image_paths()
    for number, (question, answer, image) in enumerate(zip(questions, answers, image_ids, strict=True)):
        yield Sample(
            key=f"easy_vqa-{split}-{number:06d}",
            text=Text(question=question, answer=answer, task="easy_vqa", source="easy-vqa 1.0"),
            images=(Path(paths[image]).read_bytes(),),
        )
