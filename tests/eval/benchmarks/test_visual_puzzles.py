"""VisualPuzzles in every layout it comes in, what is refused and warned of, and its prompts in full."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from eval.benchmarks import files, visual_puzzles
from eval.benchmarks.item import Benchmark, Item, label_hash
from tests.eval.benchmarks.layouts import (
    OF_PUZZLES,
    Record,
    puzzle_records,
    write_parquet,
    write_tsv,
    write_visual_puzzles,
)
from tests.refusal import refusal

COLUMNS = (*OF_PUZZLES, "difficulty")


@pytest.mark.parametrize("layout", ["train", "data", "saved", "tsv"])
def test_every_layout_reads_to_the_same(tmp_path: Path, layout: str) -> None:
    benchmark = visual_puzzles.read(write_visual_puzzles(tmp_path, layout))
    records = puzzle_records()
    assert len(records) == len(benchmark.items) == 1168 and not benchmark.warnings
    assert (benchmark.name, benchmark.split, benchmark.mean) == ("visual_puzzles", "train", "micro")
    assert (benchmark.rules, benchmark.labels.version) == ("visual_puzzles", "unknown")
    assert benchmark.labels.hash == label_hash(benchmark.items)
    for item, record in zip(benchmark.items, records, strict=True):
        assert item.key == str(record["id"]) and item.task == record["category"]
        assert (item.question, item.label) == (record["question"], record["answer"])
        assert item.choices == (tuple(record["options"]) if record["options"] else None) and item.n_choices == 4
        assert item.images == (record["image"]["bytes"],) and item.prompt is None
        assert item.groups == ({} if layout == "data" else {"difficulty": record["difficulty"]})


def test_one_file_is_enough(tmp_path: Path) -> None:
    write_visual_puzzles(tmp_path, "data", 5)
    assert len(visual_puzzles.read(tmp_path / "data.parquet").items) == 5


def read_one(folder: Path, **cells: object) -> Benchmark:
    """Of ten items, the second with these cells."""
    records = puzzle_records(10)
    records[1] |= cells
    write_parquet(folder / "data.parquet", records, COLUMNS)
    return visual_puzzles.read(folder)


@pytest.mark.parametrize(
    ("cells", "part"),
    [
        ({"id": 1}, "id '1' is there twice"),
        ({"id": None}, "row 2: id is missing, not a text"),
        ({"answer": "E"}, "row 2: answer 'E' is none of 4 choices; give A to D"),
        ({"options": None, "answer": "E"}, "row 2: answer 'E' is none of 4 choices; give A to D"),
        ({"options": ["a", None, "c", "d"]}, "row 2: options is missing, not a text"),
        ({"category": None}, "row 2: category is missing"),
        ({"question": None}, "row 2: question is missing"),
        ({"image": None}, "row 2: no picture"),
    ],
)
def test_what_is_refused(tmp_path: Path, cells: Record, part: str) -> None:
    text = refusal(lambda: read_one(tmp_path, **cells))
    assert part in text and str(tmp_path) in text


@pytest.mark.parametrize("name", OF_PUZZLES)
def test_a_missing_column(tmp_path: Path, name: str) -> None:
    write_parquet(tmp_path / "a.parquet", puzzle_records(3), [column for column in COLUMNS if column != name])
    assert f"no column {name!r} among " in refusal(lambda: visual_puzzles.read(tmp_path))


def test_nothing_to_read(tmp_path: Path) -> None:
    assert "check the path" in refusal(lambda: visual_puzzles.read(tmp_path / "none"))
    write_parquet(tmp_path / "a.parquet", [], COLUMNS)
    assert "no items" in refusal(lambda: visual_puzzles.read(tmp_path))


def test_what_differs_is_a_warning(tmp_path: Path) -> None:
    assert read_one(tmp_path, category="lateral", options=["a", "b", "c"], answer="C").warnings == (
        "algorithmic: 2 items, not 262 as published",
        "analogical: 1 items, not 211 as published",
        "deductive: 2 items, not 200 as published",
        "inductive: 2 items, not 209 as published",
        "lateral: 1 items of a category that is not published",
        "spatial: 2 items, not 286 as published",
        "1 items with another number of choices than 4, the first 2 with 3",
    )


@pytest.mark.parametrize(
    ("cell", "choices"),
    [
        ("""["it's", 'two, or', "'3'", 4]""", ("it's", "two, or", "'3'", "4")),
        ("", None),
        ("nan", None),
        ("None", None),
        ("[]", None),
    ],
)
def test_options_of_a_tsv(tmp_path: Path, cell: str, choices: tuple[str, ...] | None) -> None:
    """A list written out in Python, whose apostrophes and commas stay in the options."""
    assert visual_puzzles.read(with_options(tmp_path, cell)).items[0].choices == choices


@pytest.mark.parametrize(
    ("cell", "part"),
    [
        ("['a', 'b", "no list of Python"),
        ("__import__('os')", "no list of Python"),
        ("'a'", "options is 'a', not a list"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, cell: str, part: str) -> None:
    text = refusal(lambda: visual_puzzles.read(with_options(tmp_path, cell)))
    assert f"{tmp_path}/VisualPuzzles.tsv: line 2: " in text and part in text


def with_options(folder: Path, cell: str) -> Path:
    path = write_visual_puzzles(folder, "tsv", 1)
    with path.open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    return write_tsv(path, [row | {"options": cell, "answer": "A"}])


def test_a_tsv_that_is_another(tmp_path: Path) -> None:
    row = {"index": 0, "question": "q", "answer": "A", "category": "spatial"}
    assert "no column 'options'" in refusal(lambda: visual_puzzles.read(write_tsv(tmp_path / "x.tsv", [row])))


def test_the_version_of_the_tsv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "md5", lambda _: "12bcc3f6dd7a11b33ffcd526b5601076")
    version = visual_puzzles.read(write_visual_puzzles(tmp_path, "tsv", 3)).labels.version
    assert version == "VLMEvalKit's VisualPuzzles.tsv (MD5 12bcc3f6)"


ITEM = Item(
    key="7",
    task="deductive",
    question="Who of <image1> is next?",
    label="B",
    choices=("it's 1", "2", "3", "4"),
    n_choices=4,
    images=(b"1",),
)


def test_prompts_with_options() -> None:
    assert {name: prompt.build(ITEM) for name, prompt in visual_puzzles.PROMPTS.items()} == {
        "cot": "<image>Question: Who of <image1> is next?\nOptions:\n(A) it's 1\n(B) 2\n(C) 3\n(D) 4\n"
        "Solve the multiple-choice question and then answer with the option letter from the given choices. The last "
        "line of your response should be of the following format: 'Answer: $LETTER' (without quotes) where LETTER is "
        "one of options. Think step by step before answering.",
        "direct": "<image>Question: Who of <image1> is next?\nOptions:\n(A) it's 1\n(B) 2\n(C) 3\n(D) 4\n"
        "Answer the question with the option's letter from the given choices directly.",
        "vlmevalkit": "<image>Who of <image1> is next?\nOptions:\n(A) it's 1\n(B) 2\n(C) 3\n(D) 4\n"
        "Solve the multiple-choice question and then answer with the option letter from the given choices. The last "
        "line of your response should be of the following format:'Answer: $LETTER' (without quotes) where LETTER is "
        "one of options. Think step by step before answering.",
        "amvl": "<image>Who of <image1> is next? (A) it's 1 (B) 2 (C) 3 (D) 4",
    }


def test_prompts_with_options_in_the_picture() -> None:
    item = replace(ITEM, choices=None)
    built = {name: prompt.build(item) for name, prompt in visual_puzzles.PROMPTS.items()}
    assert built["direct"] == (
        "<image>Question: Who of <image1> is next?\nOptions: Choose from (A) (B) (C) (D) in the image.\n"
        "Answer the question with the option's letter from the given choices directly."
    )
    assert built["cot"].startswith(
        "<image>Question: Who of <image1> is next?\nOptions: Choose from (A) (B) (C) (D) in the image.\nSolve the "
    )
    assert built["vlmevalkit"].startswith(
        "<image>Who of <image1> is next?\nOptions: Choose from (A) (B) (C) (D) in the image.\nSolve the "
    )
    assert built["amvl"] == "<image>Who of <image1> is next?"


def test_names_and_replies_of_prompts() -> None:
    assert {name: (prompt.id, prompt.reply) for name, prompt in visual_puzzles.PROMPTS.items()} == {
        "cot": ("visual_puzzles/cot-1", "Answer: {letter}"),
        "direct": ("visual_puzzles/direct-1", "{letter}"),
        "vlmevalkit": ("visual_puzzles/vlmevalkit-1", "Answer: {letter}"),
        "amvl": ("visual_puzzles/amvl-1", "{letter}"),
    }


def test_a_mark_in_a_text_is_no_place_of_an_image(tmp_path: Path) -> None:
    item = read_one(tmp_path, question="Is <image> in <image1>?", options=["<image>", "b", "c", "d"]).items[1]
    for prompt in visual_puzzles.PROMPTS.values():
        text = prompt.build(item)
        assert text.count("<image>") == 1 and "Is [image] in <image1>?" in text and "(A) [image]" in text
