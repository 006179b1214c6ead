"""Zebra-CoT (https://huggingface.co/datasets/multimodal-reasoning-lab/Zebra-CoT): reasoning in text and pictures.

Parquet with the columns `Question`, `Text Reasoning Trace`, `Final Answer`, `problem_image_1`, ... and
`reasoning_image_1`, ..., as the data cards have them; `<image_start>[problem_image_1]<image_end>` stands for a
picture, as in data/interleave_datasets/think_trace_dataset.py of github.com/multimodal-reasoning-lab/Bagel-Zebra-CoT.

Rules: the pictures are those the question names, in its order; when it names none, all problem pictures before the
text. The rationale is the trace, with `[image]` for each picture; reasoning pictures are not even read. The answer is
`Final Answer` as it is. The task is the folder of the file (`2D Visual Reasoning - Visual Search`), if not `data`.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from data.convert import tables
from data.convert.records import in_part
from data.convert.row import Row, build, load, make
from data.convert.text import text_in
from data.sample import IMAGE_MARK, DataError

__all__ = ["add_arguments", "load", "of_arguments", "rows"]

SOURCE = "zebra_cot"
TEXTS = ("Question", "Text Reasoning Trace", "Final Answer")
_PICTURE = re.compile(r"<image_start>\s*\[([^\]]*)\]\s*<image_end>")
_PROBLEM = re.compile(r"problem_image_(\d+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("path", type=Path, help="parquet file, or folder of the data set or of one of its parts")


def of_arguments(arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows as the command line asks for them."""
    return rows(arguments.path)


def rows(path: Path) -> Iterator[Row]:
    """Rows of all files in order of their names."""
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no *.parquet in this folder; check the path")
    parts = (in_part(tables.records(file, _columns), file.absolute().parent.name) for file in files)
    return build(SOURCE, chain.from_iterable(parts), _parse)


def _columns(there: Sequence[str]) -> list[str]:
    if missing := [name for name in TEXTS if name not in there]:
        raise DataError(f"no column {missing[0]!r}; give the parquet files of Zebra-CoT")
    problems = sorted((int(match[1]), name) for name in there if (match := _PROBLEM.fullmatch(name)))
    return [*TEXTS, *(name for _, name in problems)]


def _parse(record: dict[str, Any]) -> list[Row]:
    question = text_in(record, "Question")
    if names := _PICTURE.findall(question):
        if unknown := [name for name in names if not _PROBLEM.fullmatch(name) or not record.get(name)]:
            raise DataError(f"the question names picture {unknown[0]!r}, which is not there; leave the row out")
    else:
        names = [name for name in record if _PROBLEM.fullmatch(name) and record[name]]
    return [
        make(
            _PICTURE.sub(IMAGE_MARK, question),
            text_in(record, "Final Answer"),
            rationale=_PICTURE.sub("[image]", record["Text Reasoning Trace"] or ""),
            task="" if record["part"] == "data" else record["part"],
            images=[picture for name in names for picture in tables.pictures(record[name])],
        )
    ]
