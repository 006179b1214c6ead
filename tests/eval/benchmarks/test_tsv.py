"""Any VLMEvalKit TSV as a benchmark: items under their own names, rows left out, prompts in full."""

import base64
from pathlib import Path

import pytest

from data.convert import vlmevalkit
from data.convert.row import load
from data.processor import Processor
from eval.benchmarks import tsv
from eval.benchmarks.item import label_hash, sample_of
from tests.eval.benchmarks.layouts import Record, jpeg, write_tsv
from tests.refusal import refusal


def encoded(shade: int) -> str:
    return base64.b64encode(jpeg(64, 64, shade)).decode()


ROW: Record = {
    "index": 301,
    "image": encoded(1),
    "question": "Which colour?",
    "hint": "",
    "A": "red",
    "B": "blue",
    "C": "",
    "answer": "B",
    "category": "colour",
    "l2-category": "",
    "split": "dev",
}
IMAGES = str([encoded(0), encoded(1), encoded(2)])


def test_items(tmp_path: Path) -> None:
    path = write_tsv(
        tmp_path / "MMVP.tsv",
        [
            ROW,
            {**ROW, "index": "b7", "A": "", "B": "", "answer": "3 cm", "category": ""},
            {**ROW, "index": 5, "l2-category": "hue", "image": str([encoded(2), encoded(3)]), "C": "green"},
        ],
    )
    benchmark = tsv.read(path, None, None)
    assert (benchmark.name, benchmark.split, benchmark.mean, benchmark.rules) == ("MMVP", "all", "micro", "plain")
    assert benchmark.labels.hash == label_hash(benchmark.items) and benchmark.labels.version == "unknown"
    first, second, third = benchmark.items
    assert (first.key, first.task, first.label, first.n_choices) == ("301", "colour", "B", 2)
    assert first.choices == ("red", "blue") and first.images == (jpeg(64, 64, 1),) and first.groups == {}
    assert (second.key, second.task, second.label, second.choices) == ("b7", "MMVP", "3 cm", None)
    assert second.n_choices == 0
    assert third.groups == {"l2-category": "hue"} and third.n_choices == 3 and len(third.images) == 2
    assert not benchmark.warnings


def test_a_split_and_paths(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(8, 8, 3))
    row = {key: value for key, value in ROW.items() if key != "image"} | {"image_path": "a.jpg"}
    path = write_tsv(tmp_path / "x.tsv", [row, {**row, "index": 2, "split": "test", "answer": ""}])
    benchmark = tsv.read(path, tmp_path, "dev")
    assert benchmark.split == "dev" and not benchmark.warnings
    assert [(item.key, item.images) for item in benchmark.items] == [("301", (jpeg(8, 8, 3),))]
    assert "no rows of split 'val'; check --split" in refusal(lambda: tsv.read(path, tmp_path, "val"))
    assert "with --images" in refusal(lambda: tsv.read(path, None, "dev"))


def test_rows_left_out_are_told(tmp_path: Path) -> None:
    broken: list[Record] = [{"answer": "D"}, {"image": ""}, {"A": ""}, {"index": ""}, {"answer": ""}]
    path = write_tsv(tmp_path / "x.tsv", [ROW, *({**ROW, "index": n, **cells} for n, cells in enumerate(broken))])
    benchmark = tsv.read(path, None, None)
    assert [item.key for item in benchmark.items] == ["301"]
    (warning,) = benchmark.warnings
    assert warning == (
        f"5 of 6 rows left out: {path}: line 3: answer 'D' is none of 2 choices; give A to B, 0 to 1, or a choice's "
        f"text; {path}: line 4: no picture; mend the row or leave it out; {path}: line 5: option A is empty before "
        "others; mend it or leave the row out; ..."
    )


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([{**ROW, "answer": ""}], "no usable row: {}: line 2: no answer"),
        ([ROW, ROW], "{}: index '301' is there twice"),
    ],
)
def test_what_is_refused(tmp_path: Path, rows: list[Record], part: str) -> None:
    path = write_tsv(tmp_path / "x.tsv", rows)
    assert part.format(path) in refusal(lambda: tsv.read(path, None, None))


def test_no_file_and_no_rows(tmp_path: Path) -> None:
    assert "check the path" in refusal(lambda: tsv.read(tmp_path / "none.tsv", None, None))
    (tmp_path / "x.tsv").write_text("index\tquestion\n")
    assert "no rows" in refusal(lambda: tsv.read(tmp_path / "x.tsv", None, None))


def test_circular_copies_are_told(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "index": 1000301}, {**ROW, "index": 2000999}]
    expected = ("1 of 3 rows are rotated copies of others", "0 of 1 rows are rotated copies of others")
    many = tsv.read(write_tsv(tmp_path / "x.tsv", rows), None, None)
    named = tsv.read(write_tsv(tmp_path / "x_circular.tsv", [ROW]), None, None)
    for benchmark, start in zip((many, named), expected, strict=True):
        assert benchmark.warnings == (f"{start}: each counts as an item of its own, circular scoring is not applied",)


PROMPTS: list[tuple[Record, dict[str, str]]] = [
    (
        {"hint": "Look up."},
        {
            "vlmevalkit": "<image>Hint: Look up.\nQuestion: Which colour?\nOptions:\nA. red\nB. blue\n"
            "Please select the correct answer from the options above.",
            "letter": "<image>Hint: Look up.\nWhich colour?\nA. red\nB. blue\n"
            "Answer with the option's letter from the given choices directly.",
            "amvl": "<image>Hint: Look up.\nWhich colour? (A) red (B) blue",
        },
    ),
    (  # open
        {"A": "", "B": "", "answer": "red"},
        {
            "vlmevalkit": "<image>Question: Which colour?",
            "letter": "<image>Which colour?",
            "amvl": "<image>Which colour?",
        },
    ),
    (  # pictures with places of their own
        {"question": "Is <image 3> as <image 1>?", "image": IMAGES},
        {
            "vlmevalkit": "Question: Is <image> as <image>?\nOptions:\nA. red\nB. blue\n"
            "Please select the correct answer from the options above.",
            "letter": "Is <image> as <image>?\nA. red\nB. blue\n"
            "Answer with the option's letter from the given choices directly.",
            "amvl": "Is <image> as <image>? (A) red (B) blue",
        },
    ),
    (  # pictures as options
        {"A": "<image 2>", "B": "<image 1>", "image": IMAGES},
        {
            "vlmevalkit": "Question: Which colour?\nA. <image>\nB. <image>\n"
            "Please select the correct answer from the options above.",
            "letter": "Which colour?\nA. <image>\nB. <image>\n"
            "Answer with the option's letter from the given choices directly.",
            "amvl": "Which colour?\nA. <image>\nB. <image>",
        },
    ),
    (  # a mark that is no place, as there is one picture
        {"question": "Does <image> say <image>?"},
        {
            "vlmevalkit": "<image>Question: Does [image] say [image]?\nOptions:\nA. red\nB. blue\n"
            "Please select the correct answer from the options above.",
            "letter": "<image>Does [image] say [image]?\nA. red\nB. blue\n"
            "Answer with the option's letter from the given choices directly.",
            "amvl": "<image>Does [image] say [image]? (A) red (B) blue",
        },
    ),
]


@pytest.mark.parametrize(("cells", "expected"), PROMPTS)
def test_prompts(tmp_path: Path, cells: Record, expected: dict[str, str]) -> None:
    benchmark = tsv.read(write_tsv(tmp_path / "x.tsv", [{**ROW, **cells}]), None, None)
    (item,) = benchmark.items
    assert {name: prompt.build(item) for name, prompt in benchmark.prompts.items()} == expected
    assert item.n_choices == (0 if cells.get("answer") == "red" else 2)
    for name, prompt in benchmark.prompts.items():
        assert prompt.id == f"tsv/{name}-1" and prompt.reply == "{letter}"
        assert sample_of(item, prompt).images == item.images
        assert "<image>" not in sample_of(item, prompt, blind=True).text.question


@pytest.mark.parametrize("cells", [cells for cells, _ in PROMPTS[:4]])
def test_amvl_asks_as_the_converted_sample_is_trained(tmp_path: Path, cells: Record, processor: Processor) -> None:
    path = write_tsv(tmp_path / "x.tsv", [{**ROW, **cells}])
    benchmark = tsv.read(path, None, None)
    (item,), (row,) = benchmark.items, vlmevalkit.rows(path)
    asked, trained = processor.encode(sample_of(item, benchmark.prompts["amvl"])), processor.encode(load(row))
    assert asked.prompt.tolist() == trained.prompt.tolist() and asked.answer.tolist() == trained.answer.tolist()
