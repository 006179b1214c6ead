"""LLaVA-style conversations, as LLaVA's own data and its followers write them."""

from pathlib import Path
from typing import Any

import pytest

from data.convert.llava import load, rows
from tests.data.convert.support import array, fault, folder_of, lines, one, picture


def talk(*turns: str, **fields: Any) -> dict[str, Any]:
    roles = ("human", "gpt") * len(turns)
    return {"id": "1", "conversations": [{"from": r, "value": v} for r, v in zip(roles, turns, strict=False)], **fields}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "images", "coco/0.png", "coco/1.png", "coco/2.png")


CHOICES = "<image>\nWhat is it?\nA. a dog\nB. a cat\nAnswer with the option's letter from the given choices directly."


def test_one_picture_one_turn(tmp_path: Path, images: Path) -> None:
    record = talk("<image>\nWhat is it?", "A dog.", image="coco/1.png")
    sample = one(rows(array(tmp_path / "mix.json", record), images))
    assert (sample.text.question, sample.text.answer) == ("<image>\nWhat is it?", "A dog.")
    assert (sample.text.choices, sample.text.rationale) == (None, None)
    assert (sample.text.source, sample.text.task, sample.key) == ("mix", "mix", "mix-000000000")
    assert sample.images == (picture(1),)


def test_choices_and_a_rationale(tmp_path: Path, images: Path) -> None:
    record = talk(CHOICES, "<think>It purrs in <image>.</think><answer>B</answer>", image="coco/0.png")
    record["conversations"][1]["value"] = record["conversations"][1]["value"].replace("<image>", "it")
    text = one(rows(lines(tmp_path / "x.jsonl", record), images, source="vqa")).text
    asked = "<image>\nWhat is it?\nAnswer with the option's letter from the given choices directly."
    assert (text.question, text.choices, text.answer) == (asked, ("a dog", "a cat"), "B")
    assert (text.rationale, text.source) == ("It purrs in it.", "vqa")


SAID = ("<image>\nWhat is it?", "A dog.", "What colour?\nA. red\nB. blue", "A", "Sure?", "Yes.")
TURNS = talk(*SAID, image="coco/0.png")


def test_turns_become_one_sample(tmp_path: Path, images: Path) -> None:
    sample = one(rows(array(tmp_path / "x.json", TURNS), images))
    assert sample.text.answer == "Yes." and sample.text.choices is None and len(sample.images) == 1
    assert sample.text.question == (
        "User: <image>\nWhat is it?\nAssistant: A dog.\nUser: What colour?\nA. red\nB. blue\nAssistant: A\nUser: Sure?"
    )


def test_the_first_turn(tmp_path: Path, images: Path) -> None:
    text = one(rows(array(tmp_path / "x.json", TURNS), images, "first")).text
    assert (text.question, text.answer) == ("<image>\nWhat is it?", "A dog.")


def test_each_turn(tmp_path: Path, images: Path) -> None:
    samples = [load(row) for row in rows(array(tmp_path / "x.json", TURNS, TURNS), images, "each")]
    assert [s.text.answer for s in samples] == ["A dog.", "A", "Yes."] * 2
    assert samples[1].text.question == "User: <image>\nWhat is it?\nAssistant: A dog.\nUser: What colour?"
    assert samples[1].text.choices == ("red", "blue")
    assert len({s.key for s in samples}) == 6 and all(len(s.images) == 1 for s in samples)


def test_pictures_go_to_their_marks(tmp_path: Path, images: Path) -> None:
    paths = ["coco/0.png", "coco/1.png", "coco/2.png"]
    record = talk("<image> What?", "This: <image>", "And <image>?", "3", image=paths)
    path = array(tmp_path / "x.json", record)
    last, first = one(rows(path, images)), one(rows(path, images, "first"))
    assert last.images == (picture(0), picture(2))
    assert last.text.question == "User: <image> What?\nAssistant: This: [image]\nUser: And <image>?"
    assert first.images == (picture(0),) and first.text.answer == "This: [image]"


def test_without_marks_all_pictures_come_first(tmp_path: Path, images: Path) -> None:
    record = talk("What?", "1", "And?", "2", images=["coco/0.png", "coco/1.png"])
    assert one(rows(array(tmp_path / "x.json", record), images)).images == (picture(0), picture(1))


def test_no_picture_at_all(tmp_path: Path) -> None:
    assert one(rows(array(tmp_path / "x.json", talk("What?", "1")))).images == ()


@pytest.mark.parametrize("where", ["turn", "field"])
def test_system_prompts(tmp_path: Path, images: Path, where: str) -> None:
    record = talk("What?", "1")
    if where == "turn":
        record["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    else:
        record["system"] = "Be brief."
    assert one(rows(array(tmp_path / "x.json", record), images)).text.question == "Be brief.\n\nWhat?"


def test_messages_with_roles(tmp_path: Path) -> None:
    record = {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "1"}]}
    assert one(rows(array(tmp_path / "x.json", record))).text.answer == "1"


BROKEN = {
    "no conversations": ({"id": 1, "image": "coco/0.png"}, "no list of turns"),
    "no turns": (talk(), "no list of turns"),
    "no answer": (talk("What?"), "turns of human"),
    "empty answer": (talk("What?", ""), "no answer"),
    "empty answer tag": (talk("What?", "<think>x</think><answer></answer>"), "no answer"),
    "a mark alone": (talk("<image>", "1", image="coco/0.png"), "no question"),
    "two questions": ({"conversations": [{"from": "human", "value": "a"}] * 2}, "turns of human, human"),
    "a wrong role": ({"conversations": [{"from": "x\ny", "value": "a"}] * 2}, "turns of x y, x y"),
    "turn of no object": ({"conversations": ["a", "b"]}, "no list of turns"),
    "turn of no text": (talk("What?", ["1"]), "not text"),  # type: ignore[arg-type]
    "more marks": (talk("<image> <image>?", "1", image="coco/0.png"), "1 pictures for 2 <image> marks"),
    "more pictures": (talk("<image>?", "1", image=["coco/0.png", "coco/1.png"]), "2 pictures for 1 <image> marks"),
    "no such picture": (talk("<image>?", "1", image="coco/9.png"), "no picture 'coco/9.png'"),
    "no path": (talk("<image>?", "1", image=7), "'image' is 7, not a path"),
    "paths of no text": (talk("<image>?", "1", image=[None]), "'image' is [None], not a path"),
    "outside": (talk("<image>?", "1", image="../x.json"), "leads out of"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rows(tmp_path: Path, images: Path, name: str) -> None:
    record, part = BROKEN[name]
    text = fault(rows(array(tmp_path / "x.json", record), images))
    assert text.startswith(f"{tmp_path}/x.json: row 1: ") and part in text
