"""What every converter hands out: light rows, and `load`, which reads the pictures of one and makes the sample.

A record that cannot be used becomes a row with a fault, so that whoever loads it can count it and go on.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from data.convert.text import folded, letter_of, split_choices
from data.pictures import LIMITS, header
from data.sample import IMAGE_MARK, DataError, Sample, Text

Record = TypeVar("Record")


class Row(NamedTuple):
    """One sample to be: its text, and where its pictures are."""

    key: str = ""
    place: str = ""  # file and line or row, for messages
    question: str = ""
    answer: str = ""
    choices: tuple[str, ...] | None = None
    rationale: str | None = None
    task: str = ""
    source: str = ""
    images: tuple[Path | bytes, ...] = ()  # encoded, or a path below `folder`
    folder: Path | None = None
    fault: str = ""  # why it cannot be used; `load` raises it


def make(
    question: str,
    answer: str | int,
    *,
    before: str = "",
    choices: Sequence[str] | None = None,
    rationale: str | None = None,
    task: str = "",
    images: Iterable[Path | bytes] = (),
) -> Row:
    """A row of a record's parts. Without choices, they are taken from the question where it lists them plainly.

    An image mark stays in the question and in what stands before it; elsewhere it is written `[image]`. Choices that
    hold pictures are written below the question, as the schema has no place for them. DataError when a part is missing.
    """
    question = question.strip()
    if not (before + question).replace(IMAGE_MARK, "").strip():
        raise DataError("no question; write one or leave the row out")
    if not str(answer).strip():
        raise DataError("no answer; write one or leave the row out")
    if choices:
        reply = letter_of(answer, choices)
        if any(IMAGE_MARK in choice for choice in choices):
            question, choices = folded(question, choices), None
    else:
        question, choices, reply = split_choices(question, str(answer).strip())
    return Row(
        question=before + question,
        answer=plain(reply) or "",
        choices=tuple(choices) if choices else None,
        rationale=plain(rationale),
        task=task,
        images=tuple(images),
    )


def plain(text: str | None) -> str | None:
    """Text with image marks in words; None when nothing is left."""
    return (text or "").replace(IMAGE_MARK, "[image]").strip() or None


def build(
    source: str,
    records: Iterable[tuple[str, Record | DataError]],
    parse: Callable[[Record], Iterable[Row]],
    folder: Path | None = None,
) -> Iterator[Row]:
    """Rows of all records, numbered through; a record that cannot be parsed becomes a row with a fault."""
    stem, number = re.sub(r"[^A-Za-z0-9_-]+", "_", source), 0  # a key is part of a file name
    for place, record in records:
        try:
            if isinstance(record, DataError):
                raise record
            parsed = list(parse(record))
        except DataError as error:
            parsed = [Row(fault=str(error))]
        for row in parsed:
            yield row._replace(
                key=f"{stem}-{number:09d}", place=place, source=source, task=row.task or source, folder=folder
            )
            number += 1


def load(row: Row) -> Sample:
    """The sample of a row with its pictures read. DataError names the place, what is wrong and the mend."""
    try:
        if row.fault:
            raise DataError(row.fault)
        images = tuple(_picture(image, row.folder) for image in row.images)
        return Sample(key=row.key, text=text_of(row), images=images, origin=row.place)
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join([*(str(part) for part in first["loc"][:1]), first["msg"].removeprefix("Value error, ")])
        raise DataError(f"{row.place}: {what}; mend it or leave the row out") from error
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from error


def text_of(row: Row) -> Text:
    """The text fields of a row as the schema has them."""
    return Text(
        question=row.question,
        answer=row.answer,
        choices=row.choices,
        rationale=row.rationale,
        task=row.task,
        source=row.source,
    )


def _picture(image: Path | bytes, folder: Path | None) -> bytes:
    name, content = ("picture", image) if isinstance(image, bytes) else (str(image), _read(image, folder))
    header(content, name)  # no more than the header is decoded
    return content


def _read(path: Path, folder: Path | None) -> bytes:
    """The file at a path that came with the data: it has to lie below the folder, links followed."""
    if folder is None:
        raise DataError(f"picture {str(path)!r} is a path; name the folder it is below with --images")
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"picture {str(path)!r} leads out of {folder}; write its path relative to that folder")
    try:
        whole = (folder / path).resolve(strict=True)
        if not whole.is_relative_to(_real(folder)):
            raise DataError(f"picture {str(path)!r} is a link out of {folder}; copy it in, or give --images its target")
        if not whole.is_file():
            raise DataError(f"picture {str(path)!r} is not a file in {folder}; check --images")
        if (size := whole.stat().st_size) > LIMITS.image_bytes:
            raise DataError(f"{path}: {size:,} bytes, more than {LIMITS.image_bytes:,}; shrink it or leave the row out")
        return whole.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # missing, a name with a null byte, a loop of links
        raise DataError(f"no picture {str(path)!r} in {folder}; check --images or leave the row out") from error


@lru_cache
def _real(folder: Path) -> Path:
    return folder.resolve()
