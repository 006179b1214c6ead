"""The data sets with a converter of their own, in small files of their layout."""

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from data.convert import cogcom, monet, refocus, visual_cot, zebra_cot
from data.convert.row import load
from tests.data.convert.support import array, fault, folder_of, lines, one, picture
from tests.refusal import refusal

REQUEST = " Please provide the bounding box coordinate of the region that can help you answer the question better."
TURNS = [
    {"from": "human", "value": f"<image>\nWho wears a shirt?{REQUEST}"},
    {"from": "gpt", "value": "[0.428, 0.000, 0.866, 0.997]"},
    {"from": "human", "value": "<image>"},
    {"from": "gpt", "value": "girl"},
]
VISUAL_COT: dict[str, Any] = {
    "question_id": 7,
    "image": ["cot/gqa/1.jpg", "cot/gqa/1.jpg###[214, 0, 433, 374]"],
    "conversations": TURNS,
    "dataset": "gqa",
    "split": "train",
}
DETAILED: dict[str, Any] = {
    "question": "Who wears a shirt?",
    "answer": "girl",
    "full_answer": "The girl does.",
    "image": "1.jpg",
    "width": 500,
    "height": 375,
    "bboxs": [[214, 0, 433, 374]],
    "dataset": "gqa",
    "thought": "1. Look at all people.",
}


def test_visual_cot(tmp_path: Path) -> None:
    folder_of(tmp_path, "cot/gqa/1.jpg")
    sample = one(visual_cot.rows(array(tmp_path / "viscot_363k.json", VISUAL_COT), tmp_path))
    assert (sample.text.question, sample.text.answer, sample.text.task) == ("Who wears a shirt?", "girl", "gqa")
    assert sample.text.rationale == "The region that helps is [0.428, 0.000, 0.866, 0.997]."
    assert sample.images == (picture(0),) and sample.key == "visual_cot-000000000"


def test_visual_cot_with_thoughts(tmp_path: Path) -> None:
    folder_of(tmp_path, "1.jpg")
    short = {key: value for key, value in DETAILED.items() if key not in ("thought", "width")}
    first, second = visual_cot.rows(lines(tmp_path / "gqa_cot_train.jsonl", DETAILED, short), tmp_path)
    text = load(first).text
    assert (text.question, text.answer, text.source) == ("Who wears a shirt?", "girl", "visual_cot")
    assert text.rationale == "1. Look at all people. The region that helps is [0.428, 0.000, 0.866, 0.997]."
    assert load(second).text.rationale is None


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ({**VISUAL_COT, "conversations": TURNS[2:]}, "convert rows without a box as llava"),
        ({**VISUAL_COT, "conversations": [*TURNS[:3], {"from": "gpt", "value": ""}]}, "no answer"),
        ({**VISUAL_COT, "image": []}, "--images"),
        ({**VISUAL_COT, "image": ["../1.jpg###[1]"]}, "leads out of"),
        ({**DETAILED, "answer": None}, "'answer' is missing"),
    ],
)
def test_broken_visual_cot(tmp_path: Path, record: dict[str, Any], part: str) -> None:
    assert part in fault(visual_cot.rows(array(tmp_path / "x.json", record), tmp_path))


def table(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(records)), path)
    return path


def cell(shade: int) -> dict[str, Any]:
    return {"bytes": picture(shade), "path": f"{shade}.png"}


REFOCUS: dict[str, Any] = {
    "id": "train-1",
    "question": "How many wins?",
    "answer": "7",
    "image": cell(0),
    "thoughts": ["I focus on the bar. ", "It says 7."],
    "edited_image": cell(1),
    "focus_areas_bbox": {"x1": [1], "y1": [2], "x2": [3], "y2": [4]},
    "source": "chartqa_h_bar",
    "split": "train",
}


def test_refocus(tmp_path: Path) -> None:
    table(tmp_path / "data" / "train-00000-of-00001.parquet", REFOCUS, {**REFOCUS, "thoughts": None})
    first, second = (load(row) for row in refocus.rows(tmp_path))
    assert (first.text.question, first.text.answer, first.text.task) == ("How many wins?", "7", "chartqa_h_bar")
    assert first.text.rationale == "I focus on the bar. It says 7." and first.images == (picture(0),)
    assert second.text.rationale is None


def test_refocus_as_its_trainer_reads_it(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", "a.png", "edited.png")
    turns = [
        {"images": ["a.png"], "response": "I focus on the bar."},
        {"images": ["edited.png"], "response": "It says 7."},
    ]
    record = {"id": "train-1", "query": "How many wins?", "answer": "7", "source": "h_bar", "conversations": turns}
    sample = one(refocus.rows(lines(tmp_path / "train.jsonl", record), tmp_path / "images"))
    assert sample.images == (picture(0),) and sample.text.rationale == "I focus on the bar. It says 7."
    assert (sample.text.question, sample.text.answer, sample.text.task) == ("How many wins?", "7", "h_bar")
    bare = {**record, "conversations": [{"response": "x"}]}
    assert "no picture in the first turn" in fault(refocus.rows(lines(tmp_path / "train.jsonl", bare)))


def test_broken_refocus(tmp_path: Path) -> None:
    assert "no picture" in fault(refocus.rows(table(tmp_path / "x.parquet", {**REFOCUS, "image": None})))
    assert "'answer' is missing" in fault(refocus.rows(table(tmp_path / "x.parquet", {**REFOCUS, "answer": None})))
    other = table(tmp_path / "x.parquet", {"question": "q"})
    assert "no column 'answer'" in refusal(lambda: list(refocus.rows(other)))


def step(desc: str, found: bool = False, **variables: Any) -> dict[str, Any]:
    return {
        "func": "f",
        "param": "p",
        "onbox": None,
        "variables": variables,
        "return": "",
        "desc": desc,
        "found": found,
    }


def cogcom_row(chain: object) -> dict[str, Any]:
    asked = {"pid": 1, "question": "What is written?", "answer": "copenhagen", "final_com": chain}
    return {"pid": 1, "image_path": "images/TextVQA/a.jpg", "img_size": [8, 8], "metadata": [asked]}


CHAINS: dict[str, tuple[object, str | None]] = {
    "one chain": (
        {
            "-1,0--0,0": step("Using GROUNDING(text) to find `bbx_1`.", bbx_1=[1, 2, 3, 4]),
            "0,0--1,0": step("Using CROP_AND_ZOOMIN(`bbx_1`) to get `img_1`.", img_1="img_1"),
            "1,0--2,0": step("Using OCR(`img_1`) to read `txt_1` and `txt_2`.", found=True, txt_1="copenhagen"),
        },
        "Using GROUNDING(text) to find [1, 2, 3, 4]. Using CROP_AND_ZOOMIN([1, 2, 3, 4]) to get [image]. "
        "Using OCR([image]) to read copenhagen and txt_2.",
    ),
    "first branch finds nothing": (
        {
            "-1,0--0,0": step("a"),
            "0,0--1,0": step("b"),
            "0,0--1,1": step("c"),
            "1,1--2,0": step("d", found=True),
        },
        "a c d",
    ),
    "a step of all parents": ({"-1,0--0,0": step("a"), "0,0--1,0": step("b"), "1,*--2,0": step("c", True)}, "a b c"),
    "one step": ({"-1,0--0,0": step("a", True)}, "a"),
    "nothing found": ({"-1,0--0,0": step("a"), "0,0--1,0": step("b")}, None),
    "a ring": ({"-1,0--0,0": step("a"), "0,0--1,0": step("b"), "1,0--0,0": step("c")}, None),
    "no steps": ({}, None),
    "not there": (None, None),
}


@pytest.mark.parametrize("name", CHAINS)
def test_cogcom(tmp_path: Path, name: str) -> None:
    chain, rationale = CHAINS[name]
    folder_of(tmp_path, "images/TextVQA/a.jpg")
    sample = one(cogcom.rows(lines(tmp_path / "com.jsonl", cogcom_row(chain)), tmp_path))
    assert (sample.text.question, sample.text.answer) == ("What is written?", "copenhagen")
    assert sample.text.rationale == rationale and sample.images == (picture(0),)


def test_cogcom_has_several_questions_of_a_picture(tmp_path: Path) -> None:
    folder_of(tmp_path, "images/TextVQA/a.jpg")
    row = cogcom_row(None)
    row["metadata"] = [*row["metadata"], {"question": "Why?"}, *row["metadata"]]
    first, second, third = cogcom.rows(lines(tmp_path / "com.jsonl", row), tmp_path)
    assert load(first).text == load(third).text and first.key != third.key
    assert "'answer' is missing" in fault([second])


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ({"image_path": "a.jpg"}, "no questions under 'metadata'"),
        ({"metadata": [{}]}, "no 'image_path'"),
        (cogcom_row([1]), "not an object of steps"),
        (cogcom_row({str(n): {} for n in range(201)}), "201 steps, more than 200"),
        (cogcom_row({}), "no picture 'images/TextVQA/a.jpg'"),
    ],
)
def test_broken_cogcom(tmp_path: Path, record: dict[str, Any], part: str) -> None:
    assert part in fault(cogcom.rows(lines(tmp_path / "com.jsonl", record), tmp_path))


def seen(name: str) -> str:
    return f"<image_start>[{name}]<image_end>"


ZEBRA: dict[str, Any] = {
    "Question": f"Does {seen('problem_image_2')} fit {seen('problem_image_1')}?",
    "Text Reasoning Trace": f"THOUGHT 0: I lay it over.\n{seen('reasoning_image_1')}\nTHOUGHT 1: It fits.",
    "Final Answer": "Yes",
    "problem_image_1": cell(1),
    "problem_image_2": cell(2),
    "problem_image_10": cell(10),
    "reasoning_image_1": {"bytes": b"not read", "path": None},
}


def test_zebra_cot(tmp_path: Path) -> None:
    bare = {**ZEBRA, "Question": "Do they fit?", "problem_image_2": None, "Text Reasoning Trace": None}
    table(tmp_path / "2D Visual Reasoning - Visual Jigsaw" / "train-00000-of-00026.parquet", ZEBRA)
    table(tmp_path / "Maze" / "data" / "train-00000-of-00001.parquet", bare)
    first, second = (load(row) for row in zebra_cot.rows(tmp_path))
    assert first.text.question == "Does <image> fit <image>?" and first.images == (picture(2), picture(1))
    assert first.text.rationale == "THOUGHT 0: I lay it over.\n[image]\nTHOUGHT 1: It fits."
    assert (first.text.answer, first.text.task) == ("Yes", "2D Visual Reasoning - Visual Jigsaw")
    assert second.images == (picture(1), picture(10)) and second.text.rationale is None
    assert (second.text.task, second.key) == ("zebra_cot", "zebra_cot-000000001")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"Final Answer": ""}, "no answer"),
        ({"Final Answer": None}, "'Final Answer' is missing"),
        ({"problem_image_2": None}, "'problem_image_2', which is not there"),
        ({"Question": f"What? {seen('reasoning_image_1')}"}, "'reasoning_image_1', which is not there"),
        ({"problem_image_1": {"bytes": b"text", "path": None}}, "picture: "),
    ],
)
def test_broken_zebra_cot(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    assert part in fault(zebra_cot.rows(table(tmp_path / "x.parquet", {**ZEBRA, **changes})))


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def monet_row(*reply: dict[str, str], **metadata: Any) -> dict[str, Any]:
    asked = text("How many eggs?\nPut your final answer within \\boxed{}.")
    return {
        "metadata": metadata,
        "data": [
            {"role": "system", "content": [text("You are a helpful assistant.")]},
            {"role": "user", "content": [{"type": "image", "image": "ReFocus/images/1_0.jpg"}, asked]},
            {"role": "assistant", "content": list(reply)},
        ],
    }


REPLY = (
    text("I look closer. <abs_vis_token></abs_vis_token>"),
    {"type": "image", "image": "ReFocus/images/1_1.jpg"},
    text("<observation>There are two.</observation> Therefore, the final answer is \\boxed{2}."),
)


def test_monet(tmp_path: Path) -> None:
    folder_of(tmp_path, "ReFocus/images/1_0.jpg")
    (tmp_path / "CogCoM").mkdir()
    path = array(tmp_path / "ReFocus" / "train.json", monet_row(*REPLY, dataset_name="ReFocus", sample_id=1))
    other = monet_row(*REPLY)
    other["data"][1]["content"][0] = {"type": "image", "image_file_name": "ReFocus/images/1_0.jpg"}
    array(tmp_path / "CogCoM" / "train.json", other)
    first, second = (load(row) for row in monet.rows(tmp_path))
    assert second.text.question == "<image>How many eggs?" and second.text.answer == "2"
    assert second.text.rationale == "I look closer. [image] There are two."
    assert (second.images, second.text.task) == ((picture(0),), "ReFocus")
    assert first.text == second.text.model_copy(update={"task": "CogCoM"})
    assert one(monet.rows(path)).text == second.text


@pytest.mark.parametrize(
    ("record", "part"),
    [
        (monet_row(text("It is 2.")), "no answer in \\boxed{}"),
        (monet_row(text("\\boxed{}")), "no answer"),
        ({"metadata": {}}, "no turns under 'data'"),
        ({"data": [{"role": "user", "content": "text"}]}, "not a list of parts"),
        ({"data": [{"role": "assistant", "content": [text("\\boxed{2}")]}]}, "no question"),
        (monet_row(text("\\boxed{2}")), "no picture 'ReFocus/images/1_0.jpg'"),
    ],
)
def test_broken_monet(tmp_path: Path, record: dict[str, Any], part: str) -> None:
    assert part in fault(monet.rows(array(tmp_path / "train.json", record), tmp_path))


def test_a_folder_without_parts(tmp_path: Path) -> None:
    assert "give the root of the data set" in refusal(lambda: list(monet.rows(tmp_path)))
    assert "no *.parquet" in refusal(lambda: list(zebra_cot.rows(tmp_path)))
