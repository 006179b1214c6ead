"""ReFocus (https://huggingface.co/datasets/ReFocus/ReFocus_Data): questions on charts, with thoughts and edited charts.

Two layouts, told apart by the file. `data/train-*.parquet` of the data set: `question`, `answer`, `image`, `thoughts`,
`edited_image`, boxes, `source` (columns as public readers of it have them). `train.jsonl`, which the trainer
github.com/zeyofu/ReFocus_Code reads: `query`, `answer`, `conversations` of `images` and `response`, `source`.

Rules: the pictures are `image`, or those of the first turn; edited ones are left out. The rationale is the thoughts,
or responses, one after the other, as in that trainer. The task is `source` (chartqa_h_bar, ...).
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data.convert import tables
from data.convert.records import LINES, records
from data.convert.row import Row, build, load, make
from data.convert.text import paths_in, text_in
from data.sample import DataError

__all__ = ["add_arguments", "load", "of_arguments", "rows"]

SOURCE = "refocus"
COLUMNS = ("question", "answer", "image", "thoughts", "source")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("path", type=Path, help="folder with the parquet files, or train.jsonl")
    parser.add_argument("--images", type=Path, help="folder that paths of pictures begin in, for train.jsonl")


def of_arguments(arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows as the command line asks for them."""
    return rows(arguments.path, arguments.images)


def rows(path: Path, images: Path | None = None) -> Iterator[Row]:
    """Rows of all files in order of their names."""
    if path.suffix.lower() in (".json", *LINES):
        return build(SOURCE, records(path), _turns, images)
    return build(SOURCE, tables.records(path, _columns), _columnar, images)


def _columns(there: Sequence[str]) -> tuple[str, ...]:
    if missing := [name for name in COLUMNS if name not in there]:
        raise DataError(f"no column {missing[0]!r}; give the parquet files of ReFocus/ReFocus_Data")
    return COLUMNS


def _columnar(record: dict[str, Any]) -> list[Row]:
    images = tables.pictures(record["image"])
    if not images:
        raise DataError("no picture; fetch the file again or leave the row out")
    thoughts = record["thoughts"] or []
    return [_row(record, "question", [thoughts] if isinstance(thoughts, str) else thoughts, images)]


def _turns(record: dict[str, Any]) -> list[Row]:
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise DataError("no turns under 'conversations'; mend the row or leave it out")
    images = paths_in(turns[0], "images")
    if not images:
        raise DataError("no picture in the first turn; mend the row or leave it out")
    return [_row(record, "query", [turn.get("response") or "" for turn in turns], images)]


def _row(record: dict[str, Any], question: str, thoughts: list[Any], images: Iterable[Path | bytes]) -> Row:
    rationale = " ".join(str(thought).strip() for thought in thoughts if thought)
    task = str(record.get("source") or "")
    return make(text_in(record, question), text_in(record, "answer"), rationale=rationale, task=task, images=images)
