"""VLMEvalKit TSVs as pandas writes them: base64 cells, lists of them, shared pictures, paths."""

import base64
import csv
from pathlib import Path

import pytest

from data.convert import vlmevalkit
from data.convert.vlmevalkit import load, rows
from tests.data.convert.support import fault, folder_of, one, picture
from tests.refusal import refusal


def encoded(shade: int) -> str:
    return base64.b64encode(picture(shade)).decode()


def tsv(path: Path, *records: dict[str, object]) -> Path:
    """Quoted where a cell needs it, as pandas does."""
    with path.open("w", newline="", encoding="utf-8") as file:
        names = list(dict.fromkeys(name for record in records for name in record))
        writer = csv.DictWriter(file, names, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return path


ROW: dict[str, object] = {
    "index": 0,
    "image": encoded(1),
    "question": 'Which "one"?\nLook.',
    "hint": "",
    "A": "red",
    "B": "blue",
    "C": "",
    "answer": "B",
    "category": "colour",
    "split": "dev",
}


def test_choices_and_a_picture(tmp_path: Path) -> None:
    sample = one(rows(tsv(tmp_path / "Bench.tsv", ROW)))
    text = sample.text
    assert (text.question, text.choices, text.answer) == ('Which "one"?\nLook.', ("red", "blue"), "B")
    assert (text.task, text.source, sample.key) == ("colour", "Bench", "Bench-000000000")
    assert sample.images == (picture(1),)


def test_hint_and_open_question(tmp_path: Path) -> None:
    text = one(rows(tsv(tmp_path / "x.tsv", {**ROW, "A": "", "B": "", "hint": "Count.", "answer": 3}))).text
    assert (text.question, text.choices, text.answer) == ('Hint: Count.\nWhich "one"?\nLook.', None, "3")


def test_a_list_of_pictures(tmp_path: Path) -> None:
    path = tsv(tmp_path / "x.tsv", {**ROW, "image": str([encoded(0), f"data:image/png;base64,{encoded(1)}"])})
    assert one(rows(path)).images == (picture(0), picture(1))


def test_shared_pictures_wherever_they_are(tmp_path: Path) -> None:
    """A picture may stand behind the rows that share it; quoted line ends must not shift where it is found."""
    records = [{**ROW, "index": n, "image": encoded(n)} for n in (10, 11)]
    sharing = [{**ROW, "index": 100 + n, "image": n} for n in (11, 10, 10, 12, 11)]
    path = tsv(tmp_path / "x.tsv", *sharing[:2], *records, *sharing[2:], {**ROW, "index": 12, "image": encoded(12)})
    found = [load(row).images for row in rows(path)]
    assert found == [(picture(n),) for n in (11, 10, 10, 11, 10, 12, 11, 12)]


@pytest.mark.parametrize("image", ["99", "1", "x"])
def test_shared_pictures_that_are_not_there(tmp_path: Path, image: str) -> None:
    path = tsv(tmp_path / "x.tsv", ROW, {**ROW, "index": 1, "image": image})
    text = fault(list(rows(path))[1:])
    assert f"image {image!r} is not the index of a row with a picture" in text


def test_paths(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", "a.png", "b.png")
    record = {key: value for key, value in ROW.items() if key != "image"}
    path = tsv(tmp_path / "x.tsv", {**record, "image_path": "a.png"}, {**record, "image_path": "['b.png', 'a.png']"})
    first, second = rows(path, tmp_path / "images")
    assert load(first).images == (picture(0),) and load(second).images == (picture(1), picture(0))
    assert "leads out of" in fault(rows(tsv(path, {**record, "image_path": "../x.tsv"}), tmp_path / "images"))


def test_numbered_marks(tmp_path: Path) -> None:
    """As in MMMU: pictures are named by number, in options too."""
    images = str([encoded(0), encoded(1), encoded(2)])
    path = tsv(
        tmp_path / "x.tsv",
        {**ROW, "question": "Is <image 3> before <image 1>?", "image": images},
        {**ROW, "question": "Which?", "A": "<image 2>", "B": "<image 1>", "image": images},
    )
    first, second = (load(row) for row in rows(path))
    assert first.images == (picture(2), picture(0)) and first.text.choices == ("red", "blue")
    assert first.text.question == "Is <image> before <image>?"
    assert second.images == (picture(1), picture(0)) and second.text.choices is None
    assert (second.text.question, second.text.answer) == ("Which?\nA. <image>\nB. <image>", "B")


def test_a_split(tmp_path: Path) -> None:
    path = tsv(tmp_path / "x.tsv", ROW, {**ROW, "split": "test", "answer": ""}, {**ROW, "index": 2})
    assert [row.answer for row in rows(path, split="dev")] == ["B", "B"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"answer": ""}, "no answer"),
        ({"answer": "D"}, "'D' is none of 2 choices; give A to B"),
        ({"question": " "}, "no question"),
        ({"image": ""}, "no picture"),
        ({"image": "@" * 80}, "not base64"),
        ({"image": "A" * 81}, "not base64"),
        ({"image": base64.b64encode(b"text" * 30).decode()}, "picture: "),
        ({"image": "['" + "A" * 80 + "]"}, "a list of pictures that is broken"),
        ({"B": "", "C": "x"}, "option B is empty before others"),
        ({"question": "<image 2>?"}, "<image 2> for 1 pictures"),
        ({"question": "<image 0>?"}, "<image 0> for 1 pictures"),
    ],
)
def test_broken_rows(tmp_path: Path, changes: dict[str, object], part: str) -> None:
    text = fault(rows(tsv(tmp_path / "x.tsv", {**ROW, **changes})))
    assert text.startswith(f"{tmp_path}/x.tsv: line 2: ") and part in text


def test_a_line_with_cells_missing_is_one_fault(tmp_path: Path) -> None:
    path = tsv(tmp_path / "x.tsv", ROW)
    path.write_text(path.read_text() + "7\tshort\n\n" + path.read_text().partition("\n")[2])
    found = list(rows(path))
    assert [bool(row.fault) for row in found] == [False, True, False]
    assert "2 cells for 10 columns" in fault(found[1:2]) and found[1].place.endswith("line 4")


@pytest.mark.parametrize("content", [b"", b"a\tb\n1\t2\n", b"index\tquestion\n0\t\xff\n"])
def test_what_is_no_tsv(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tsv").write_bytes(content)
    assert str(tmp_path / "x.tsv") in refusal(lambda: list(rows(tmp_path / "x.tsv")))


def test_no_file(tmp_path: Path) -> None:
    assert "check the path" in refusal(lambda: list(rows(tmp_path / "none.tsv")))


def test_a_quote_that_is_never_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlmevalkit, "MOST_BYTES", 2**16)
    (tmp_path / "x.tsv").write_bytes(b'index\tquestion\n0\t"' + b"x\n" * 2**16)
    assert "broken TSV" in refusal(lambda: list(rows(tmp_path / "x.tsv")))
