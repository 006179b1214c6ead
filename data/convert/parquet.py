"""A parquet file or folder as Hugging Face writes them; which column is what is said by flags or by a file.

python -m data.convert parquet FOLDER --question question --answer answer --images image_1,image_2 --out SHARDS
python -m data.convert parquet FOLDER --mapping columns.yaml --out SHARDS

The file is YAML or JSON with the flags as keys. A value that begins with = is the same for all rows: `task: =charts`.
Pictures are cells of bytes, of {bytes, path} (https://huggingface.co/docs/hub/datasets-image), of a path below
`--images-folder`, or lists of these. Choices are one column that holds a list (as such, or written out in JSON or
Python), or several columns. With choices the answer is a letter, the text of one of them or its index from 0.
"""

import argparse
import ast
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from data.convert.row import Row, build, load, make
from data.convert.tables import pictures, records
from data.convert.text import text_in, unlabelled
from data.sample import DataError

__all__ = ["Columns", "add_arguments", "load", "of_arguments", "read_mapping", "rows"]


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class Columns(BaseModel):
    """Which column holds what; a value that begins with = is a constant."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    answer: str
    images: Names = ()
    choices: Names = ()
    rationale: str | None = None
    task: str | None = None

    def read(self) -> list[str]:
        """The columns that have to be read."""
        named = [self.question, self.answer, *self.images, *self.choices, self.rationale, self.task]
        return list(dict.fromkeys(name for name in named if name and not name.startswith("=")))

    def chosen(self, there: Sequence[str]) -> list[str]:
        """The same, once they are known to be there."""
        if missing := [name for name in self.read() if name not in there]:
            raise DataError(f"no column {missing[0]!r}; the columns are {', '.join(there)}")
        return self.read()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("path", type=Path, help="parquet file, or folder with parquet files")
    parser.add_argument("--mapping", type=Path, help="YAML or JSON file that says what the flags below say")
    for name in Columns.model_fields:
        if name in ("images", "choices"):
            parser.add_argument(f"--{name}", metavar="COL[,COL]", help=f"column or columns of the {name}")
        else:
            parser.add_argument(f"--{name}", metavar="COL", help=f"column of the {name}, or =CONSTANT")
    parser.add_argument("--images-folder", type=Path, help="folder that paths of pictures begin in")
    parser.add_argument("--source", help="name of the data set (default: the path's)")


def of_arguments(arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows as the command line asks for them."""
    flags = {name: value for name in Columns.model_fields if (value := getattr(arguments, name)) is not None}
    columns = read_mapping(arguments.mapping, flags)
    return rows(arguments.path, columns, arguments.images_folder, arguments.source)


def read_mapping(file: Path | None, flags: dict[str, str]) -> Columns:
    """The columns that a file and the flags name; a flag wins."""
    try:
        named = yaml.safe_load(file.read_text(encoding="utf-8")) if file else {}
        return Columns.model_validate({**named, **flags})
    except (OSError, yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise DataError(f"{file}: not a mapping of columns ({error}); see python -m data.convert parquet -h") from error
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{name}: {first['msg']}; name its column with --{name} or in --mapping") from error


def rows(path: Path, columns: Columns, folder: Path | None = None, source: str | None = None) -> Iterator[Row]:
    """Rows of all files in order of their names."""
    return build(source or path.stem, records(path, columns.chosen), partial(_parse, columns=columns), folder)


def _parse(record: dict[str, Any], columns: Columns) -> list[Row]:
    def text(name: str) -> str:
        return name[1:] if name.startswith("=") else text_in(record, name)

    def optional(name: str | None) -> str:
        return text(name) if name and (name.startswith("=") or record[name] is not None) else ""

    answer = columns.answer if columns.answer.startswith("=") else record[columns.answer]
    index = isinstance(answer, int) and not isinstance(answer, bool)
    return [
        make(
            text(columns.question),
            answer if index else text(columns.answer),
            choices=_choices([record[name] for name in columns.choices]),
            rationale=optional(columns.rationale),
            task=optional(columns.task),
            images=[picture for name in columns.images for picture in pictures(record[name])],
        )
    ]


def _choices(cells: list[Any]) -> tuple[str, ...]:
    listed: object = cells
    if len(cells) == 1:
        listed = _written(cells[0]) if isinstance(cells[0], str) else cells[0] or []
    else:
        empty = next((n for n, cell in enumerate(reversed(cells)) if cell not in (None, "")), len(cells))
        listed = cells[: len(cells) - empty]  # a row may have fewer choices than there are columns
    if not isinstance(listed, list) or any(isinstance(c, bool) or not isinstance(c, str | int | float) for c in listed):
        raise DataError("choices that are no list of texts; mend the row or leave it out")
    return unlabelled([str(choice) for choice in listed])


def _written(cell: str) -> object:
    """A list written out in JSON or Python."""
    try:
        return json.loads(cell) if cell.strip() else []
    except ValueError:
        try:
            return ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return cell
