"""The PyPI package `easy-vqa` (MIT): 5,000 pictures of one shape, 48,248 questions, its own split kept."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import easy_vqa

from data.convert.row import Row, load, text_of
from data.sample import Sample

__all__ = ["ANSWERS", "Split", "add_arguments", "load", "of_arguments", "read", "rows"]

Split = Literal["train", "heldout"]
ANSWERS = tuple(easy_vqa.get_answers())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("split", choices=get_args(Split), help="the package's training or test split")


def of_arguments(arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows as the command line asks for them."""
    return rows(arguments.split)


def rows(split: Split) -> Iterator[Row]:
    """All questions of a split in the package's order; `heldout` is its test split."""
    train = split == "train"
    questions, answers, image_ids = easy_vqa.get_train_questions() if train else easy_vqa.get_test_questions()
    paths = easy_vqa.get_train_image_paths() if train else easy_vqa.get_test_image_paths()
    for number, (question, answer, image) in enumerate(zip(questions, answers, image_ids, strict=True)):
        path = Path(paths[image])
        yield Row(
            key=f"easy_vqa-{split}-{number:06d}",
            place=f"easy-vqa: {split} {number}",
            question=question,
            answer=answer,
            task="easy_vqa",
            source="easy-vqa 1.0",
            images=(Path(path.name),),
            folder=path.parent,
        )


def read(split: Split) -> Iterator[Sample]:
    """The samples of a split; the package's own pictures are not checked one by one."""
    for row in rows(split):
        paths = (row.folder / path for path in row.images if row.folder and isinstance(path, Path))
        yield Sample(key=row.key, text=text_of(row), images=tuple(path.read_bytes() for path in paths))
