"""A VLMEvalKit TSV: `index`, `image` or `image_path`, `question`, `hint`, options `A`, `B`, ..., `answer`, `category`.

The layout that https://github.com/open-compass/VLMEvalKit/blob/main/vlmeval/dataset/image_base.py and image_mcq.py
read. An `image` cell is base64, a list of base64 written out in Python, or, up to 64 characters long, the index of
the row that holds the picture. Rules: a hint is written in front of the question as `Hint: ..`; `<image 2>` in a
question or option (MMMU) takes the second picture, and pictures not named are left out; the task is `category`, or
the file's name; a row without an answer, as in test splits, is an error.
"""

import argparse
import ast
import base64
import csv
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from data.convert.row import Row, build, load, make
from data.sample import IMAGE_MARK, LETTERS, DataError

__all__ = ["add_arguments", "load", "of_arguments", "options", "parse", "records", "rows"]

MOST_BYTES = 64 * 2**20  # of one row; the csv module takes four times that
SHORT = 64  # an image cell up to this length names another row, as in VLMEvalKit
_NUMBERED = re.compile(r"<image (\d+)>")
Record = dict[str, str]
Full = tuple[Record, list[Path | bytes]]  # the cells of a row and its pictures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("file", type=Path, help="TSV file")
    parser.add_argument("--images", type=Path, help="folder that the paths in image_path begin in")
    parser.add_argument("--split", help="take only the rows whose split is this")
    parser.add_argument("--source", help="name of the data set (default: the file's)")


def of_arguments(arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows as the command line asks for them."""
    return rows(arguments.file, arguments.images, arguments.split, arguments.source)


def rows(file: Path, images: Path | None = None, split: str | None = None, source: str | None = None) -> Iterator[Row]:
    """Rows of the file in its order."""
    yield from build(source or file.stem, records(file, split), lambda full: [parse(*full)], images)


def records(file: Path, split: str | None = None) -> Iterator[tuple[str, Full | DataError]]:
    """(place, (cells, pictures)) of the rows of a split in their order, or what is wrong with a row."""
    try:
        with file.open("rb") as lines, file.open("rb") as again, closing(_Shared(file, again)) as shared:
            for place, record in _Table(file, lines):
                if isinstance(record, DataError):
                    yield place, record
                elif split is None or record.get("split") == split:
                    yield place, _full(record, shared)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); check the path") from error


def _full(record: Record, shared: "_Shared") -> Full | DataError:
    try:
        return record, _images(record, shared)
    except DataError as error:
        return error


class _Table:
    """(place, record) of the rows of a TSV; `start` is where the latest begins in the file."""

    def __init__(self, file: Path, lines: BinaryIO) -> None:
        self.file, self.lines = file, lines
        self.start = self.end = self.number = 0
        csv.field_size_limit(MOST_BYTES)
        self.reader = csv.reader(self._text(), delimiter="\t")
        self.header = next(self.reader, [])
        if "question" not in self.header or "index" not in self.header:
            raise DataError(f"{file}: no columns 'index' and 'question'; give a TSV as VLMEvalKit has them")

    def _text(self) -> Iterator[str]:
        while line := self.lines.readline(MOST_BYTES):
            self.number += 1
            self.end += len(line)
            place = f"{self.file}: line {self.number}"
            if len(line) == MOST_BYTES:
                raise DataError(f"{place}: more than {MOST_BYTES:,} bytes; shrink its pictures or take it out")
            try:
                yield line.decode("utf-8-sig" if self.number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{place}: not UTF-8 ({error.reason}); convert the file") from error

    def __iter__(self) -> Iterator[tuple[str, Record | DataError]]:
        while True:
            self.start, place = self.end, f"{self.file}: line {self.number + 1}"
            try:
                cells = next(self.reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{place}: broken TSV ({error}); fetch the file again") from error
            if len(cells) == len(self.header):
                yield place, dict(zip(self.header, cells, strict=True))
            elif cells:
                what = f"{len(cells)} cells for {len(self.header)} columns"
                yield place, DataError(f"{what}; mend the line or take it out")

    def at(self, start: int) -> Record:
        """The record that begins there."""
        self.lines.seek(start)
        return dict(zip(self.header, next(csv.reader(self._text(), delimiter="\t")), strict=False))


class _Shared:
    """Pictures that rows share, found by the index of the row that holds them.

    Where each row begins is kept on disk, in a database without a name that goes away with it.
    """

    def __init__(self, file: Path, lines: BinaryIO) -> None:
        self.file, self.lines = file, lines
        self.starts: sqlite3.Connection | None = None
        self.latest = ("", "")

    def close(self) -> None:
        """Let go of the file on disk."""
        if self.starts is not None:
            self.starts.close()

    def cell(self, index: str) -> str:
        """The image cell of the row with this index."""
        if self.latest[0] == index:
            return self.latest[1]
        if self.starts is None:
            self.starts = sqlite3.connect("")
            self.starts.execute("CREATE TABLE starts (name TEXT PRIMARY KEY, start INTEGER)")
            self.table = _Table(self.file, self.lines)
            found = ((r["index"], self.table.start) for _, r in self.table if not isinstance(r, DataError))
            self.starts.executemany("INSERT OR REPLACE INTO starts VALUES (?, ?)", found)
        start = self.starts.execute("SELECT start FROM starts WHERE name = ?", (index,)).fetchone()
        cell = self.table.at(start[0]).get("image", "") if start else ""
        if len(cell) <= SHORT:
            raise DataError(f"image {index!r} is not the index of a row with a picture; mend it or leave the row out")
        self.latest = (index, cell)
        return cell


def parse(record: Record, images: list[Path | bytes]) -> Row:
    """The row of a record, not yet numbered."""
    hint = record.get("hint", "").strip()
    texts, images = _placed([record["question"].strip(), *options(record)], images)
    if hint and record["question"].strip():
        texts[0] = f"Hint: {hint}\n{texts[0]}"
    answer, task = record.get("answer", "").strip(), record.get("category", "").strip()
    return make(texts[0], answer, choices=texts[1:], task=task, images=images)


def options(record: Record) -> list[str]:
    """The texts of its options `A`, `B`, ..., without the empty ones at the end."""
    found = [record.get(letter, "").strip() for letter in LETTERS]
    while found and not found[-1]:
        found.pop()
    if "" in found:
        raise DataError(f"option {LETTERS[found.index('')]} is empty before others; mend it or leave the row out")
    return found


def _images(record: Record, shared: _Shared) -> list[Path | bytes]:
    cell = record.get("image", "").strip()
    if cell:
        listed = _listed(shared.cell(cell) if len(cell) <= SHORT else cell)
        return [_decoded(part) for part in listed]
    if paths := record.get("image_path", "").strip():
        return [Path(part) for part in _listed(paths)]
    if "image" in record or "image_path" in record:
        raise DataError("no picture; mend the row or leave it out")
    return []


def _listed(cell: str) -> list[str]:
    if not (cell.startswith("[") and cell.endswith("]")):
        return [cell]
    try:
        listed = ast.literal_eval(cell)
        return [str(part) for part in listed]
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError("a list of pictures that is broken; mend it or leave the row out") from error


def _decoded(cell: str) -> bytes:
    _, comma, content = cell.partition(";base64,")  # data:image/png;base64,...
    try:
        return base64.b64decode("".join((content if comma else cell).split()), validate=True)
    except ValueError as error:
        raise DataError(f"a picture that is not base64 ({error}); mend it or leave the row out") from error


def _placed(texts: list[str], images: list[Path | bytes]) -> tuple[list[str], list[Path | bytes]]:
    """Texts with numbered marks made plain ones, and the pictures in the order of the marks."""
    numbers = [int(number) for text in texts for number in _NUMBERED.findall(text)]
    if not numbers:
        return texts, images
    if not all(1 <= number <= len(images) for number in numbers):
        raise DataError(f"<image {max(numbers)}> for {len(images)} pictures; mend the row or leave it out")
    return [_NUMBERED.sub(IMAGE_MARK, text) for text in texts], [images[number - 1] for number in numbers]
