"""What the tests of the converters share."""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from data.convert.row import Row, load
from data.sample import Sample
from tests.refusal import refusal


def picture(shade: int = 0, kind: str = "PNG") -> bytes:
    """A picture that differs from those of other shades."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 255 - shade, 7)).save(out, kind)
    return out.getvalue()


def folder_of(path: Path, *names: str) -> Path:
    """A folder with pictures of these names, of shades 0, 1, 2, ..."""
    for shade, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(picture(shade))
    return path


def array(path: Path, *records: object) -> Path:
    """A JSON array in a file."""
    path.write_text(json.dumps(records, indent=1))
    return path


def lines(path: Path, *records: object) -> Path:
    """JSON lines in a file; texts are written as they are."""
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def one(rows: Iterator[Row]) -> Sample:
    """The sample of the only row."""
    (row,) = rows
    return load(row)


def fault(rows: Iterable[Row]) -> str:
    """The text of the DataError that loading the only row ends in: one line that begins with its place."""
    (row,) = rows
    text = refusal(lambda: load(row))
    assert text.startswith(f"{row.place}: ") and row.place
    return text
