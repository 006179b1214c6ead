"""Visual CoT (https://huggingface.co/datasets/deepcs233/Visual-CoT): a question, the box that helps, an answer.

Two layouts, told apart by row. `viscot_363k.json` (turns as its trainer, github.com/deepcs233/Visual-CoT, and public
readers of it have them): `image` is the picture and the same with `###[box]`, `conversations` are question with a
request for the box, box, a mark for the crop, answer. `metadata/*.jsonl` and `cot_with_detailed_reasoning_steps/
*.jsonl`: `question`, `answer`, `image`, `bboxs` in pixels, `width`, `height`, `dataset`, and `thought` in the latter.

Rules: the picture is the whole one; the request for the box is taken out of the question; the rationale is the thought,
then the box as `The region that helps is [x, y, x, y].` in parts of the width and height; the task is `dataset`.
Paths are taken as they are written, below --images: `cot/gqa/1.jpg` in the first layout, the bare name in the second.
Rows of viscot_mixed_2m.json without a box are errors: its other parts are for the `llava` converter.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.convert.llava import conversation
from data.convert.records import records
from data.convert.row import Row, build, load, make
from data.convert.text import paths_in, text_in
from data.sample import IMAGE_MARK, DataError

__all__ = ["add_arguments", "load", "of_arguments", "rows"]

SOURCE = "visual_cot"
_REQUEST = re.compile(r"\s*Please provide the bounding box coordinate of the region[^.]*\.?\s*$")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("file", type=Path, help="viscot_363k.json, or a JSONL file of its metadata")
    parser.add_argument("--images", type=Path, required=True, help="folder that the paths of pictures begin in")


def of_arguments(arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows as the command line asks for them."""
    return rows(arguments.file, arguments.images)


def rows(file: Path, images: Path) -> Iterator[Row]:
    """Rows of the file in its order."""
    return build(SOURCE, records(file), _parse, images)


def _parse(record: dict[str, Any]) -> list[Row]:
    picture = Path(str(paths_in(record, "image")[0] if record.get("image") else "").partition("###")[0])
    task = str(record.get("dataset") or "")
    if "conversations" in record:
        _, pairs = conversation(record)
        if len(pairs) != 2 or not re.fullmatch(r"\[[\d., -]+\]", pairs[0][1]):
            raise DataError("not question, box, mark and answer; convert rows without a box as llava")
        (question, box), (_, answer) = pairs
        question = _REQUEST.sub("", question).replace(IMAGE_MARK, "")
    else:
        question, answer, box = text_in(record, "question"), text_in(record, "answer"), _box(record)
    thought = text_in(record, "thought") if record.get("thought") else ""
    rationale = " ".join(filter(None, [thought, f"The region that helps is {box}." if box else ""]))
    return [make(question, answer, rationale=rationale, task=task, images=[picture])]


def _box(record: dict[str, Any]) -> str:
    """The first box in parts of the picture, as the first layout has it."""
    try:
        width, height, corners = record["width"], record["height"], record["bboxs"][0]
        parts = [corner / size for corner, size in zip(corners, (width, height) * 2, strict=True)]
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):
        return ""
    return f"[{', '.join(f'{part:.3f}' for part in parts)}]"
