r"""Monet-SFT-125K (https://huggingface.co/datasets/NOVAglow646/Monet-SFT-125K): six parts, each with a train.json.

A row has `metadata` (`dataset_name`, `sample_id`) and `data`, turns of system, user and assistant whose `content` is a
list of `{type: text, text}` and `{type: image, image}` (in some versions `image_file_name`), with paths from the root
of the data set; so read by src/task.py of github.com/NOVAglow646/Monet and by public converters of the release.

Rules: the question is the user's turn, its pictures where they stand; the system prompt, the same in all rows, and the
request to put the answer into \boxed{} are left out. The answer is what the last \boxed{} holds. The rationale is the
text before that sentence, with `[image]` for each helper picture and without <abs_vis_token> and <observation> tags.
The task is `dataset_name`, or the folder's name.
"""

import argparse
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from data.convert.records import in_part, records
from data.convert.row import Row, build, load, make
from data.convert.text import paths_in, split_boxed, text_in
from data.sample import IMAGE_MARK, DataError

__all__ = ["add_arguments", "load", "of_arguments", "rows"]

SOURCE = "monet"
_REQUEST = re.compile(r"\s*(?:Please )?put (?:your|the) final answer (?:with)?in \\boxed\{\}\.?\s*$", re.IGNORECASE)
_TAGS = re.compile(r"</?(?:abs_vis_token|observation)>")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("path", type=Path, help="root of the data set, or the train.json of one part")
    parser.add_argument("--images", type=Path, help="folder that paths of pictures begin in (default: the root)")


def of_arguments(arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows as the command line asks for them."""
    return rows(arguments.path, arguments.images)


def rows(path: Path, images: Path | None = None) -> Iterator[Row]:
    """Rows of one train.json, or of those of all parts in order of their names."""
    files = sorted(path.glob("*/train.json")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no */train.json in this folder; give the root of the data set")
    root = images or (path if path.is_dir() else path.absolute().parent.parent)
    parts = (in_part(records(file), file.absolute().parent.name) for file in files)
    return build(SOURCE, chain.from_iterable(parts), _parse, root)


def _parse(record: dict[str, Any]) -> list[Row]:
    turns = record.get("data")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError("no turns under 'data'; mend the row or leave it out")
    question, images = _content(turns, "user", IMAGE_MARK)
    reply, _ = _content(turns, "assistant", "[image]")
    boxed = split_boxed(re.sub(r"[ \t]+", " ", _TAGS.sub(" ", reply)))
    if boxed is None:
        raise DataError("no answer in \\boxed{}; mend the row or leave it out")
    metadata = record.get("metadata")
    task = str(metadata.get("dataset_name") or "") if isinstance(metadata, dict) else ""
    return [make(_REQUEST.sub("", question), boxed[0], rationale=boxed[1], task=task or record["part"], images=images)]


def _content(turns: list[dict[str, Any]], role: str, mark: str) -> tuple[str, list[Path]]:
    """(text with marks, pictures) of all turns of a role."""
    said = ""
    images: list[Path] = []
    for turn in turns:
        parts = turn.get("content")
        if turn.get("role") != role:
            continue
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise DataError(f"the content of the turn of {role} is not a list of parts; mend it or leave the row out")
        for part in parts:
            if part.get("type") == "image":
                images += paths_in(part, "image", "image_file_name")
                said += mark if role == "user" else f" {mark} "
            else:
                said += text_in(part, "text") if role == "user" else f"{part.get('text') or ''}"
    return said.strip(), images
