"""Parquet with pictures in its cells; columns are named by flags or in a file."""

import argparse
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from data.convert.parquet import Columns, add_arguments, load, of_arguments, read_mapping, rows
from tests.data.convert.support import fault, folder_of, one, picture
from tests.refusal import refusal


def table(path: Path, *records: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(records)), path, **options)
    return path


def cell(shade: int) -> dict[str, Any]:
    return {"bytes": picture(shade), "path": f"{shade}.png"}


PLAIN = Columns(question="question", answer="answer", images=("image",))


def test_structs_of_bytes(tmp_path: Path) -> None:
    path = table(tmp_path / "train-00000-of-00001.parquet", {"question": "What?", "answer": 3, "image": cell(1)})
    sample = one(rows(path, PLAIN, source="nice"))
    assert (sample.text.question, sample.text.answer, sample.text.task) == ("What?", "3", "nice")
    assert sample.images == (picture(1),) and sample.key == "nice-000000000"


@pytest.mark.parametrize("form", ["list of structs", "bytes", "list of bytes", "path", "struct of path"])
def test_other_forms_of_pictures(tmp_path: Path, form: str) -> None:
    folder_of(tmp_path / "images", "0.png", "1.png")
    cells: dict[str, tuple[Any, int]] = {
        "list of structs": ([cell(0), cell(1)], 2),
        "bytes": (picture(0), 1),
        "list of bytes": ([picture(0), picture(1)], 2),
        "path": ("0.png", 1),
        "struct of path": ({"bytes": None, "path": "0.png"}, 1),
    }
    image, count = cells[form]
    path = table(tmp_path / "x.parquet", {"question": "q", "answer": "a", "image": image})
    assert one(rows(path, PLAIN, tmp_path / "images")).images == (picture(0), picture(1))[:count]


def test_several_columns_of_pictures(tmp_path: Path) -> None:
    record = {"question": "<image> or <image>?", "answer": "a", "one": cell(0), "two": cell(1), "three": None}
    columns = Columns(question="question", answer="answer", images="one, two,three")  # type: ignore[arg-type]
    path = table(tmp_path / "x.parquet", record, {**record, "three": cell(2)})
    first, second = rows(path, columns)
    assert load(first).images == (picture(0), picture(1))
    assert "3 images for 2 <image> marks" in fault([second])


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        (["red", "blue"], "B"),
        (["red", "blue"], "(B)"),
        (["red", "blue"], "blue"),
        (["red", "blue"], 1),
        (["red", "blue"], "1"),
        (["(A) red", "(B) blue"], "B"),
        ("['red', 'blue']", "B"),
        ('["red", "blue"]', 1),
    ],
)
def test_choices(tmp_path: Path, choices: Any, answer: Any) -> None:
    path = table(tmp_path / "x.parquet", {"q": "Which?", "a": answer, "c": choices})
    text = one(rows(path, Columns(question="q", answer="a", choices=("c",)))).text
    assert (text.choices, text.answer) == (("red", "blue"), "B")


def test_choices_in_columns_of_their_own(tmp_path: Path) -> None:
    columns = Columns(question="q", answer="a", choices=("A", "B", "C"))
    path = table(
        tmp_path / "x.parquet",
        {"q": "Which?", "a": "C", "A": "x", "B": "y", "C": "z"},
        {"q": "Which?", "a": "B", "A": "x", "B": "y", "C": None},
        {"q": "How many?", "a": "3", "A": None, "B": "", "C": None},
    )
    assert [load(row).text.choices for row in rows(path, columns)] == [("x", "y", "z"), ("x", "y"), None]


def test_constants_and_optional_columns(tmp_path: Path) -> None:
    columns = Columns(question="=What is it?", answer="label", rationale="why", task="=shapes")
    path = table(tmp_path / "x.parquet", {"label": "a", "why": "It is."}, {"label": "b", "why": None})
    texts = [load(row).text for row in rows(path, columns)]
    assert [(t.question, t.answer, t.rationale, t.task) for t in texts] == [
        ("What is it?", "a", "It is.", "shapes"),
        ("What is it?", "b", None, "shapes"),
    ]


def test_folders_are_read_in_order_of_names(tmp_path: Path) -> None:
    for number in (1, 0, 2):
        records = [{"question": f"{number} {n}", "answer": "a", "image": None} for n in range(3)]
        table(tmp_path / "data" / f"train-{number:05d}.parquet", *records, row_group_size=2)
    found = list(rows(tmp_path / "data", PLAIN))
    assert [row.question for row in found] == [f"{number} {n}" for number in range(3) for n in range(3)]
    assert found[4].place == f"{tmp_path}/data/train-00001.parquet: row 2" and found[4].source == "data"


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ({"question": None, "answer": "a", "image": None}, "'question' is missing"),
        ({"question": "q", "answer": None, "image": None}, "'answer' is missing"),
        ({"question": "q", "answer": "", "image": None}, "no answer"),
        ({"question": "q", "answer": ["a"], "image": None}, "'answer' is ['a'], not text"),
        ({"question": "q", "answer": "a", "image": {"bytes": None, "path": None}}, "neither bytes nor path"),
        ({"question": "q", "answer": "a", "image": 7}, "given as int"),
        ({"question": "q", "answer": "a", "image": b"text"}, "picture: "),
        ({"question": "q", "answer": "a", "image": {"bytes": None, "path": "/etc/hostname"}}, "--images"),
    ],
)
def test_broken_rows(tmp_path: Path, record: dict[str, Any], part: str) -> None:
    path = table(tmp_path / "x.parquet", record)
    assert part in fault(rows(path, PLAIN))


@pytest.mark.parametrize("choices", ["not a list", "{'a': 1}", "[[1]]", "[1"])
def test_choices_that_are_none(tmp_path: Path, choices: str) -> None:
    path = table(tmp_path / "x.parquet", {"q": "Which?", "a": "A", "c": choices})
    assert "no list of texts" in fault(rows(path, Columns(question="q", answer="a", choices=("c",))))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", {"question": "q", "answer": "a"})
    text = refusal(lambda: list(rows(path, PLAIN)))
    assert "no column 'image'" in text and "question, answer" in text
    path.write_bytes(path.read_bytes()[:-9])
    assert f"{path}: not a whole parquet file" in refusal(lambda: list(rows(path, PLAIN)))
    assert "check the path" in refusal(lambda: list(rows(tmp_path / "none.parquet", PLAIN)))
    (tmp_path / "empty").mkdir()
    assert "no *.parquet" in refusal(lambda: list(rows(tmp_path / "empty", PLAIN)))


@pytest.mark.parametrize("name", ["columns.yaml", "columns.json"])
def test_flags_and_a_file_say_the_same(tmp_path: Path, name: str) -> None:
    mapping = {"question": "q", "answer": "=yes", "images": ["i", "j"], "task": "=t"}
    (tmp_path / name).write_text(json.dumps(mapping))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    path = table(tmp_path / "x.parquet", {"q": "Sure?", "i": cell(0), "j": cell(1)})
    by_file = parser.parse_args([str(path), "--mapping", str(tmp_path / name)])
    by_flags = parser.parse_args([str(path), "--question", "q", "--answer==yes", "--images", "i,j", "--task", "=t"])
    assert list(of_arguments(by_file)) == list(of_arguments(by_flags)) != []


def test_mappings_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    for content, part in (("- a", "not a mapping"), ("a: [", "not a mapping"), ("question: q\nanser: a", "anser: ")):
        file.write_text(content)
        assert part in refusal(lambda: read_mapping(file, {"answer": "a"}))
    assert "--answer" in refusal(lambda: read_mapping(None, {"question": "q"}))
    assert "not a mapping" in refusal(lambda: read_mapping(tmp_path / "none.yaml", {}))
