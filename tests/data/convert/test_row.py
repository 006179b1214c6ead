"""Rows become samples, or one line that says why not; pictures never come from outside their folder."""

import os
import pickle
from pathlib import Path

import pytest

from data.convert.row import Row, build, load, make
from data.sample import DataError, Sample, Text
from tests.data.convert.support import folder_of, picture
from tests.refusal import refusal

ROW = Row(key="k-0", place="x.json: row 1", question="What?", answer="3", task="t", source="s")


def test_a_row_becomes_a_sample(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png", "deep/b.png")
    row = ROW._replace(images=(Path("deep/b.png"), picture(9, "JPEG"), Path("a.png")), folder=tmp_path, rationale="r")
    sample = load(pickle.loads(pickle.dumps(row)))  # as it goes to a worker
    assert sample == Sample(
        key="k-0",
        text=Text(question="What?", answer="3", rationale="r", task="t", source="s"),
        images=(picture(1), picture(9, "JPEG"), picture(0)),
        origin="x.json: row 1",
    )


def test_keys_are_unique_and_fit_for_file_names() -> None:
    rows = list(build("a.b/c d", ((str(n), n) for n in range(3)), lambda n: [make("q", "a")] * n))
    assert [row.key for row in rows] == ["a_b_c_d-000000000", "a_b_c_d-000000001", "a_b_c_d-000000002"]
    assert [row.place for row in rows] == ["1", "2", "2"] and {row.task for row in rows} == {"a.b/c d"}


def test_faults_keep_their_place_and_number() -> None:
    def parse(record: str) -> list[Row]:
        return [make(record, "a")]

    rows = list(build("s", [("one", "q"), ("two", ""), ("three", DataError("torn")), ("four", "q")], parse))
    assert [row.key[-1] for row in rows] == ["0", "1", "2", "3"]
    assert [bool(row.fault) for row in rows] == [False, True, True, False]
    assert refusal(lambda: load(rows[1])).startswith("two: no question;")
    assert refusal(lambda: load(rows[2])) == "three: torn"


OUTSIDE = ["../secret.png", "/etc/hostname", "in/../../secret.png"]
OUTSIDE += ["link.png", "linked/secret.png", "loop", "up/secret.png"]  # links


@pytest.mark.parametrize("name", OUTSIDE)
def test_pictures_from_outside_are_refused(tmp_path: Path, name: str) -> None:
    folder_of(tmp_path, "secret.png", "images/in/a.png", "other/secret.png")
    (tmp_path / "images/link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "images/linked").symlink_to(tmp_path / "other")
    (tmp_path / "images/up").symlink_to("..")
    (tmp_path / "images/loop").symlink_to("loop")
    row = ROW._replace(images=(Path(name),), folder=tmp_path / "images")
    text = refusal(lambda: load(row))
    assert text.startswith("x.json: row 1: ") and repr(name) in text and str(tmp_path / "images") in text


def test_links_within_the_folder_and_a_folder_that_is_a_link(tmp_path: Path) -> None:
    folder_of(tmp_path, "images/a.png")
    (tmp_path / "images/b.png").symlink_to("a.png")
    (tmp_path / "link").symlink_to("images")
    assert load(ROW._replace(images=(Path("b.png"),), folder=tmp_path / "link")).images == (picture(0),)


@pytest.mark.parametrize("name", ["none.png", "", "a\0b.png", "x" * 5000, "http://example.org/a.png", "pipe"])
def test_pictures_that_are_not_there(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading one would wait without end
    assert "check --images" in refusal(lambda: load(ROW._replace(images=(Path(name),), folder=tmp_path)))


def test_a_path_without_a_folder() -> None:
    assert "--images" in refusal(lambda: load(ROW._replace(images=(Path("a.png"),))))


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_no_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for image, name in ((content, "picture"), (Path("a.png"), "a.png")):
        text = refusal(lambda image=image: load(ROW._replace(images=(image,), folder=tmp_path)))
        assert text.startswith(f"x.json: row 1: {name}: ")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**40)  # takes no room on disk, and would not fit into memory
    text = refusal(lambda: load(ROW._replace(images=(Path("a.png"),), folder=tmp_path)))
    assert "1,099,511,627,776 bytes" in text and "shrink it" in text


@pytest.mark.parametrize("question", ["<image> or <image>?", "a \ud800 b"])
def test_text_that_the_schema_refuses(question: str) -> None:
    text = refusal(lambda: load(ROW._replace(question=question, images=(picture(),))))
    assert text.startswith("x.json: row 1: ") and "leave the row out" in text


def test_choices_that_are_pictures_are_written_in_the_question() -> None:
    row = make("Which?", "B", choices=["<image>", "<image>"], images=[picture(0), picture(1)])
    assert (row.question, row.choices, row.answer) == ("Which?\nA. <image>\nB. <image>", None, "B")


def test_marks_stay_in_the_question_alone() -> None:
    row = make("<image> What?", "a <image>", rationale="see <image>")
    assert (row.question, row.answer, row.rationale) == ("<image> What?", "a [image]", "see [image]")


@pytest.mark.parametrize(("question", "answer"), [("", "a"), ("<image>\n", "a"), ("q", " "), ("q", "")])
def test_parts_that_are_missing(question: str, answer: str) -> None:
    assert "leave the row out" in refusal(lambda: make(question, answer))
