"""LLaVA-style JSON or JSON lines with an image folder: `id`, `image`, `conversations` of human and gpt turns.

The layout of https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md; `image` may be a list
(or `images`), as in LLaVA-NeXT-Interleave. Rules:

- One sample per conversation: its last reply is the answer, earlier turns are written in front of the last question
  (`User: ..`, `Assistant: ..`). `--turns first` takes the first reply alone, `--turns each` every reply.
- A system prompt (a turn `system`, or the field) is written in front of it all.
- <image> marks stay where they are. Each takes the next picture, those in a reply too; pictures of replies are left
  out. Without any mark all pictures stand before the text. Any other number of marks is an error.
- The answer and its rationale: `data.convert.text.split_reply`. Choices: `data.convert.text.split_choices`.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from data.convert.records import records
from data.convert.row import Row, build, load, make
from data.convert.text import paths_in, split_reply
from data.sample import IMAGE_MARK, DataError

__all__ = ["Turns", "add_arguments", "load", "of_arguments", "rows"]

Turns = Literal["last", "first", "each"]
HUMAN, REPLY, SYSTEM = ("human", "user"), ("gpt", "assistant"), ("system",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("file", type=Path, help="JSON array or JSON lines")
    parser.add_argument("--images", type=Path, help="folder that the paths of pictures begin in")
    parser.add_argument("--turns", choices=get_args(Turns), default="last", help="replies that become samples")
    parser.add_argument("--source", help="name of the data set (default: the file's)")


def of_arguments(arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows as the command line asks for them."""
    return rows(arguments.file, arguments.images, arguments.turns, arguments.source)


def rows(file: Path, images: Path | None = None, turns: Turns = "last", source: str | None = None) -> Iterator[Row]:
    """Rows of all conversations in the file's order."""
    return build(source or file.stem, records(file), partial(_parse, turns=turns), images)


def _parse(record: dict[str, Any], turns: Turns) -> list[Row]:
    system, pairs = conversation(record)
    images = paths_in(record, "image", "images")
    marks = sum(turn.count(IMAGE_MARK) for pair in pairs for turn in pair) + system.count(IMAGE_MARK)
    if marks and marks != len(images):
        raise DataError(f"{len(images)} pictures for {marks} {IMAGE_MARK} marks; mend the row or leave it out")
    wanted = {"last": [len(pairs)], "first": [1], "each": [*range(1, len(pairs) + 1)]}[turns]
    return [_row(system, pairs[:length], images, bool(marks)) for length in wanted]


def _row(system: str, pairs: list[tuple[str, str]], images: tuple[Path, ...], marked: bool) -> Row:
    earlier, (question, reply) = pairs[:-1], pairs[-1]
    taken, kept = system.count(IMAGE_MARK), list(images[: system.count(IMAGE_MARK)])
    for asked, replied in pairs:
        kept += images[taken : taken + asked.count(IMAGE_MARK)]
        taken += asked.count(IMAGE_MARK) + replied.count(IMAGE_MARK)
    answer, rationale = split_reply(reply)
    said = [f"User: {q}\nAssistant: {a.replace(IMAGE_MARK, '[image]')}\n" for q, a in earlier]
    before = f"{system}\n\n" * bool(system) + "".join(said) + "User: " * bool(earlier)
    return make(question, answer, before=before, rationale=rationale, images=kept if marked else images)


def conversation(record: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """(system prompt, turns as pairs of question and reply) of a record. DataError when they do not alternate."""
    listed = record.get("conversations") or record.get("messages")
    if not isinstance(listed, list) or not all(isinstance(turn, dict) for turn in listed):
        raise DataError("no list of turns under 'conversations'; mend the row or leave it out")
    turns = [(turn.get("from") or turn.get("role"), turn.get("value") or turn.get("content") or "") for turn in listed]
    if not all(isinstance(value, str) for _, value in turns):
        raise DataError("a turn whose 'value' is not text; mend the row or leave it out")
    system = str(record.get("system") or "")
    if turns and turns[0][0] in SYSTEM:
        system = turns.pop(0)[1]
    expected = (HUMAN, REPLY)
    if not turns or len(turns) % 2 or any(role not in expected[n % 2] for n, (role, _) in enumerate(turns)):
        named = ", ".join(str(role) for role, _ in turns[:6]) or "none"
        raise DataError(f"turns of {named}, not of human and gpt in turn; mend the row or leave it out")
    values = [value.strip() for _, value in turns]
    return system.strip(), list(zip(values[::2], values[1::2], strict=True))
