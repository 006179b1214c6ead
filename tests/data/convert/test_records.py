"""JSON is read as a stream: the same records as json.loads finds, wherever the window ends."""

import json
import random
from pathlib import Path

import pytest

from data.convert import records as module
from data.convert.records import records
from data.sample import DataError
from tests.data.convert.support import lines
from tests.refusal import refusal

RANDOM = random.Random(0)
TEXTS = ['é"\\\U0001f600 ]},{[' * RANDOM.randrange(9) for _ in range(200)]
PLENTY = [{"n": n, "text": text, "deep": {"a": [1, {"b": []}]}} for n, text in enumerate(TEXTS)]


@pytest.mark.parametrize("window", [1, 2, 3, 7, 64, 1000, 2**20])
@pytest.mark.parametrize("form", [{}, {"indent": 2}, {"separators": (",", ":"), "ensure_ascii": False}])
def test_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, form: dict[str, object]) -> None:
    monkeypatch.setattr(module, "WINDOW", window)
    path, plenty = tmp_path / "x.json", PLENTY[: 20 if window < 64 else None]
    path.write_text(json.dumps(plenty, **form) + " \n")
    found = list(records(path))
    assert [record for _, record in found] == plenty
    assert [place for place, _ in found] == [f"{path}: row {n + 1}" for n in range(len(plenty))]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.ndjson"])
def test_lines(tmp_path: Path, name: str) -> None:
    path = lines(tmp_path / name, *PLENTY[:3], "", PLENTY[3])
    assert [(place, record) for place, record in records(path)] == [
        (f"{path}: line {n}", record) for n, record in zip((1, 2, 3, 5), PLENTY, strict=False)
    ]


def test_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": NaN}\r\n')
    assert len([record for _, record in records(path) if isinstance(record, dict)]) == 2


@pytest.mark.parametrize("content", ["[]", " [ \n] "])
def test_empty_array(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert list(records(path)) == []


def test_a_broken_line_is_one_fault(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    path = lines(tmp_path / "x.jsonl", {"a": 1}, '{"a": ', "[1]", f'{{"a": {"9" * 5000}}}', deep, {"a": 2})
    found = list(records(path))
    assert [isinstance(record, dict) for _, record in found] == [True, False, False, False, False, True]
    assert "broken JSON" in str(found[1][1]) and "not an object" in str(found[2][1])


@pytest.mark.parametrize(
    "content",
    ['[{"a": 1}, {"a": ', '[{"a": 1} {"a": 2}]', '[{"a": 1}, {"a" 2}]', '[{"a": 1},]', '[{"a": 1}', '[{"a": 1}, \x00]'],
)
@pytest.mark.parametrize("window", [1, 2**20])
def test_a_broken_array_ends_with_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, window: int
) -> None:
    monkeypatch.setattr(module, "WINDOW", window)
    path = tmp_path / "x.json"
    path.write_text(content)
    found = records(path)
    assert next(found)[1] == {"a": 1}
    text = refusal(lambda: list(found))
    assert f"{path}: row " in text and "fetch the file again" in text


def test_a_record_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CHARACTERS", 1000)
    monkeypatch.setattr(module, "WINDOW", 100)
    for path, content in ((tmp_path / "x.json", '[{"a": "'), (tmp_path / "x.jsonl", '{"a": "')):
        path.write_text(content + "x" * 5000 + '"}]')
        assert "more than 1,000 characters" in refusal(lambda path=path: list(records(path)))


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xfe[", b'["\xff"]'])
def test_what_is_no_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert str(tmp_path / "x.json") in refusal(lambda: list(records(tmp_path / "x.json")))


def test_no_file(tmp_path: Path) -> None:
    assert "check the path" in refusal(lambda: list(records(tmp_path / "x.json")))
    assert "check the path" in refusal(lambda: list(records(tmp_path)))


def test_not_an_object(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('[{"a": 1}, "text", null]')
    assert [isinstance(record, DataError) for _, record in records(tmp_path / "x.json")] == [False, True, True]
