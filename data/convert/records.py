"""The records of a JSON array or of JSON lines, one at a time, whatever the file's size.

Arrays are read with the standard library's decoder over a window of the file. It is as fast as ijson with its C
library, takes the NaN that pandas writes, which that refuses, and limits the memory that one broken record can take.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from data.sample import DataError

WINDOW = 2**20  # characters read at a time
MOST_CHARACTERS = 2**24  # of one record
LINES = (".jsonl", ".ndjson")
_BLANK = re.compile(r"[ \t\r\n]*")

Found = tuple[str, dict[str, Any] | DataError]


def records(path: Path) -> Iterator[Found]:
    """(place, record) of each; a broken line is handed out as DataError. Where an array breaks, DataError ends it."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            first = "{" if path.suffix.lower() in LINES else file.read(WINDOW).lstrip()[:1]
            file.seek(0)
            if first == "[":
                yield from _array(path, file)
            elif first == "{":
                yield from _lines(path, file)
            else:
                raise DataError(f"{path}: neither a JSON array nor JSON lines; check the path")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); convert it or fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def in_part(found: Iterable[Found], part: str) -> Iterator[Found]:
    """The same, with the name of the part of the data set under `part`."""
    for place, record in found:
        yield place, record if isinstance(record, DataError) else {**record, "part": part}


def _lines(path: Path, file: TextIO) -> Iterator[Found]:
    number = 0
    while line := file.readline(MOST_CHARACTERS):
        number += 1
        place, record = f"{path}: line {number}", None
        if len(line) == MOST_CHARACTERS and not line.endswith("\n"):
            raise DataError(f"{place}: more than {MOST_CHARACTERS:,} characters; write one record per line")
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield place, DataError(f"broken JSON ({error}); mend the line or take it out")
            continue
        yield place, _checked(record)


def _array(path: Path, file: TextIO) -> Iterator[Found]:
    decoder = json.JSONDecoder()
    text, position, number, ended = "", 0, 1, False

    def more(amount: int) -> None:
        nonlocal text, position, ended
        added = file.read(amount)
        text, position, ended = text[position:] + added, 0, not added

    def ahead() -> str:
        """The next character that is no blank; position is on it."""
        nonlocal position
        while (position := _BLANK.match(text, position).end()) == len(text) and not ended:  # type: ignore[union-attr]
            more(WINDOW)
        return text[position : position + 1]

    ahead()
    position += 1  # behind the bracket
    if ahead() == "]":
        return
    while True:
        ahead()
        try:
            record, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            if ended or len(text) - position > MOST_CHARACTERS:
                why = f"{error.msg}, or a record of more than {MOST_CHARACTERS:,} characters"
                raise DataError(f"{path}: row {number}: broken JSON ({why}); fetch the file again") from error
            more(max(WINDOW, len(text) - position))  # it may merely go on behind the window
            continue
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: row {number}: broken JSON ({error}); mend it or fetch it again") from error
        yield f"{path}: row {number}", _checked(record)
        if (behind := ahead()) == "]":
            return
        if behind != ",":
            raise DataError(f"{path}: row {number}: no , or ] behind it; fetch the file again")
        position, number = position + 1, number + 1


def _checked(record: object) -> dict[str, Any] | DataError:
    if isinstance(record, dict):
        return record
    return DataError(f"a {type(record).__name__}, not an object; mend the row or take it out")
