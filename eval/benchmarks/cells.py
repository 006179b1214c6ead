"""What is made of the cells of a benchmark's row, and what is checked of all its items."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from data.convert.tables import pictures
from data.pictures import header
from data.sample import IMAGE_MARK, LETTERS, DataError, Sample
from eval.benchmarks.item import Item

Keyed = TypeVar("Keyed", Item, Sample)


def text(cell: object, name: str, place: str) -> str:
    """A text or number, in which an image mark is no image's place."""
    if isinstance(cell, bool) or not isinstance(cell, str | int | float) or not str(cell).strip():
        raise DataError(f"{place}: {name} is {_short(cell)}, not a text; fetch the benchmark again")
    return unmarked(str(cell))


def unmarked(content: str) -> str:
    """Text with image marks in words."""
    return content.replace(IMAGE_MARK, "[image]")


def texts(cell: object, name: str, place: str) -> tuple[str, ...]:
    """A list of texts."""
    if not isinstance(cell, Sequence) or isinstance(cell, str | bytes) or not cell:
        raise DataError(f"{place}: {name} is {_short(cell)}, not a list of texts; fetch the benchmark again")
    if len(cell) > len(LETTERS):
        raise DataError(f"{place}: {len(cell)} {name}, more than {len(LETTERS)}; fetch the benchmark again")
    return tuple(text(part, name, place) for part in cell)


def letter(cell: object, offered: int, place: str) -> str:
    """The letter of a right answer, written as `A` or `(A)`."""
    found = str(cell).strip().removeprefix("(").removesuffix(")")
    if len(found) != 1 or found not in LETTERS[:offered]:
        what = f"answer {_short(cell)} is none of {offered} choices"
        raise DataError(f"{place}: {what}; give A to {LETTERS[offered - 1]}, or fetch the benchmark again")
    return found


def images(cells: Iterable[object], place: str) -> tuple[bytes, ...]:
    """Encoded pictures of which no more than the headers were read; a cell without bytes and path holds none."""
    filled = [cell for cell in cells if not (isinstance(cell, dict) and not any(cell.values()))]
    found: list[bytes] = []
    for picture in _pictures(filled, place):
        if isinstance(picture, Path):
            raise DataError(f"{place}: picture {str(picture)!r} is a path; give a file that holds the pictures itself")
        header(picture, f"{place}: picture {len(found) + 1}")
        found.append(picture)
    if not found:
        raise DataError(f"{place}: no picture; fetch the benchmark again")
    return tuple(found)


def _pictures(cells: Iterable[object], place: str) -> list[Path | bytes]:
    try:
        return pictures(list(cells))
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def unique(items: Iterable[Keyed], path: object, name: str) -> tuple[Keyed, ...]:
    """The items, once it is known that none bears the name of another."""
    found: dict[str, Keyed] = {}
    for item in items:
        if item.key in found:
            raise DataError(f"{path}: {name} {item.key!r} is there twice; take one of the copies out of it")
        found[item.key] = item
    return tuple(found.values())


def _short(cell: object) -> str:
    whole = "missing" if cell is None else repr(cell)
    return whole if len(whole) <= 60 else f"{whole[:57]}..."
