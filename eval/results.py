"""One line of results.jsonl: an item, what the model said to it, and what was read out of that.

predictions.jsonl keeps what the model said alone (eval/predictions.py), which is expensive; results.jsonl is made from
it anew each time, so that other extraction rules need no model.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.sample import DataError

FREE = ("tokens", "processes", "zero3")  # settings that change no reply


class Result(BaseModel):
    """One item and its verdict. An unresolved reply and an item that could not be run have no answer and are wrong."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    task: str
    groups: dict[str, str] = Field(default_factory=dict)
    n_choices: int
    label: str
    replies: list[str] = Field(default_factory=list)  # one, or as many as votes; empty with `score`
    finish: list[str] = Field(default_factory=list)  # why each reply ended: end, stop or length
    scores: list[float] | None = None  # with `score`: log-likelihood of every option, nats
    failed: str | None = None  # why it could not be run
    answer: str | None = None  # the letter read (of an open question: the reply)
    rule: str = "none"  # the name of the rule that read it
    correct: bool = False


def write_results(path: Path, results: Iterable[Result]) -> None:
    """As a whole."""
    write_whole(path, "".join(r.model_dump_json() + "\n" for r in results))


def write_whole(path: Path, text: str) -> None:
    """All or nothing; DataError when it cannot be written."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8", errors="replace")  # a reply can hold half a character
        part.rename(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror}); make room, or name another --out") from error


def read_results(path: Path) -> list[Result]:
    """DataError when the file is missing or not of this form."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # a reply may hold U+2028
        return [Result.model_validate_json(line) for line in lines]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a folder that an evaluation wrote") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}: not results of an evaluation ({first['msg']}); evaluate again") from error


def as_json(value: Any) -> str:
    """For files that people read as well."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
