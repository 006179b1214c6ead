"""CogCoM (https://huggingface.co/datasets/qijimrc/CoMDataset): chains of manipulations; com.jsonl, com_math.jsonl.

A line is one picture, `image_path`, with questions under `metadata`: `question`, `answer`, and under `final_com` a
tree of steps by `parent--child` (`-1,0--0,0`; `*` for every parent of a level), each with `desc`, `variables` and
`found`. The layout is that of the release's reader, cogcom/utils/com_dataset.py of github.com/THUDM/CogCoM.

Rules: one sample per question. The picture is the whole one, crops are left out. The rationale is the first chain that
finds the answer, its steps one after the other, with texts and boxes written in for their names (`txt_1`, `bbx_1`) and
`[image]` for new pictures (`img_1`); none when no chain finds it. The task is `dataset_name`, where there is one.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.convert.records import records
from data.convert.row import Row, build, load, make
from data.convert.text import paths_in, text_in
from data.sample import DataError

__all__ = ["add_arguments", "load", "of_arguments", "rows"]

SOURCE = "cogcom"
MOST_STEPS = 200  # of one question
_NAME = re.compile(r"`([a-z]+_\d+)`")
Step = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("file", type=Path, help="com.jsonl or com_math.jsonl")
    parser.add_argument("--images", type=Path, required=True, help="folder that holds images/, from images.tar.gz")


def of_arguments(arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows as the command line asks for them."""
    return rows(arguments.file, arguments.images)


def rows(file: Path, images: Path) -> Iterator[Row]:
    """Rows of the file in its order."""
    return build(SOURCE, records(file), _parse, images)


def _parse(record: dict[str, Any]) -> Iterator[Row]:
    images, asked = paths_in(record, "image_path"), record.get("metadata")
    if not images:
        raise DataError("no 'image_path'; mend the row or leave it out")
    if not isinstance(asked, list) or not asked or not all(isinstance(one, dict) for one in asked):
        raise DataError("no questions under 'metadata'; mend the row or leave it out")
    for one in asked:
        steps = _chain(one.get("final_com") or {})
        task = str(one.get("dataset_name") or record.get("dataset_name") or "")
        try:
            yield make(
                text_in(one, "question"), text_in(one, "answer"), rationale=_written(steps), task=task, images=images
            )
        except DataError as error:
            yield Row(fault=str(error))


def _chain(steps: object) -> list[Step]:
    """The first chain from a root to a step that finds the answer."""
    if not isinstance(steps, dict):
        raise DataError("'final_com' is not an object of steps; mend the row or leave it out")
    children: dict[str, list[tuple[str, Step]]] = {}
    levels: dict[str, list[str]] = {}
    for name in sorted(steps, key=lambda name: name.replace("*", "~")):
        parent, _, child = name.partition("--")
        level, _, order = parent.partition(",")
        # A root has no step above it; `*` stands for every step of the level above.
        parents = levels.get(level, ["-1,0"] if level == "-1" else []) if order in ("*", "~") else [parent]
        for each in parents:
            children.setdefault(each, []).append((child, steps[name]))
        if child not in levels.setdefault(child.partition(",")[0], []):
            levels[child.partition(",")[0]].append(child)

    if len(steps) > MOST_STEPS:
        raise DataError(f"{len(steps)} steps, more than {MOST_STEPS}; leave the row out")
    seen = set()

    def find(node: str) -> list[Step]:
        seen.add(node)
        for child, step in children.get(node, []):
            if isinstance(step, dict) and child not in seen:
                if step.get("found"):
                    return [step]
                if behind := find(child):
                    return [step, *behind]
        return []

    return find("-1,0")


def _written(steps: list[Step]) -> str:
    values: dict[str, Any] = {}
    said = []
    for step in steps:
        values.update(step["variables"] if isinstance(step.get("variables"), dict) else {})
        said.append(_NAME.sub(lambda name: _value(name[1], values), str(step.get("desc") or "").strip()))
    return " ".join(filter(None, said))


def _value(name: str, values: dict[str, Any]) -> str:
    if name.startswith("img_"):
        return "[image]"
    return str(values.get(name) or name)
