"""BLINK in every layout it comes in, what is refused and warned of, its label versions, and its prompts in full."""

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval.benchmarks import blink, files
from eval.benchmarks.item import Benchmark, Item, label_hash
from tests.eval.benchmarks.layouts import (
    OF_BLINK,
    Record,
    blink_records,
    save,
    table,
    write_blink,
    write_parquet,
    write_tsv,
)
from tests.refusal import refusal

REPLIES = Path(__file__).parents[1] / "replies"
ONE_EACH = dict.fromkeys(blink.SUB_TASKS, 1)


def july() -> dict[str, str]:
    """The letters of July 2024 by idx, from the replies that came with them."""
    with gzip.open(sorted(REPLIES.glob("*.jsonl.gz"))[0], "rt", encoding="utf-8") as lines:
        return {record["idx"]: record["label"].strip("()") for record in map(json.loads, lines)}


def changed(path: Path, **cells: object) -> Path:
    """A set of one item of every sub-task, the third (Forensic_Detection) with these cells."""
    records = blink_records(ONE_EACH)
    records[2] |= cells
    write_parquet(path / "a.parquet", records, OF_BLINK)
    return path


@pytest.mark.parametrize("layout", ["configs", "flat", "saved", "saved_dict", "saved_folders"])
def test_every_layout_reads_to_the_same(tmp_path: Path, layout: str) -> None:
    benchmark = blink.read(write_blink(tmp_path / layout, layout))
    records = {record["idx"]: record for record in blink_records({t: s.val for t, s in blink.SUB_TASKS.items()})}
    assert len(benchmark.items) == len(records) == 1901 and not benchmark.warnings
    assert (benchmark.name, benchmark.split, benchmark.mean) == ("blink", "val", "macro")
    assert (benchmark.rules, benchmark.apart) == ("blink", ("Relative_Reflectance",))
    assert sum(len(item.images) for item in benchmark.items) == 3675  # as evalscope counted in val
    for item in benchmark.items:
        record = records[item.key]
        images = [record[name]["bytes"] for name in blink.IMAGES if record[name]]
        assert (item.task, item.question, item.prompt) == tuple(
            record[name] for name in ("sub_task", "question", "prompt")
        )
        assert item.choices == tuple(record["choices"]) and item.n_choices == len(record["choices"])
        assert f"({item.label})" == record["answer"] and list(item.images) == images
    tasks = list(dict.fromkeys(item.task for item in benchmark.items))
    assert tasks == list(blink.SUB_TASKS)
    assert [item.key for item in benchmark.items if item.task == "Counting"][:11] == [
        f"val_Counting_{number}" for number in range(1, 12)
    ]


def test_a_tsv_reads_to_the_same_but_its_names_and_prompts(tmp_path: Path) -> None:
    of_tables = blink.read(write_blink(tmp_path / "a"))
    of_tsv = blink.read(write_blink(tmp_path / "b", "tsv"))
    bare = [replace(item, key="", prompt=None) for item in of_tables.items]
    assert [replace(item, key="", prompt=None) for item in of_tsv.items] == bare
    assert [item.key for item in of_tsv.items] == [str(number) for number in range(1901)]
    assert list(of_tsv.prompts) == ["vlmevalkit", "letter", "amvl"] and not of_tsv.warnings


def test_a_tsv_with_prompts_and_hints(tmp_path: Path) -> None:
    write_blink(tmp_path, "tsv", {"Jigsaw": 2})
    with (tmp_path / "BLINK.tsv").open(encoding="utf-8") as file:
        rows = [
            row | {"prompt": f"prompt {row['index']}", "hint": "Look."} for row in csv.DictReader(file, delimiter="\t")
        ]
    benchmark = blink.read(write_tsv(tmp_path / "BLINK.tsv", rows))
    assert next(iter(benchmark.prompts)) == "official"
    assert [item.prompt for item in benchmark.items] == ["prompt 0", "prompt 1"]
    assert benchmark.items[0].question == "Look.\nWhat is seen in number val_Jigsaw_1?"


def test_published_sizes() -> None:
    assert sum(published.val for published in blink.SUB_TASKS.values()) == 1901
    assert sum(published.test for published in blink.SUB_TASKS.values()) == 1906
    assert len(blink.SUB_TASKS) == 14


def test_test_split(tmp_path: Path) -> None:
    """Its rows may lie among those of val, whose files are passed over."""
    for split in ("val", "test"):
        write_blink(tmp_path / "configs", sizes={"Jigsaw": 3}, split=split)
    assert blink.read(tmp_path / "configs", "test").items[0].key == "test_Jigsaw_1"
    assert len(blink.read(tmp_path / "configs").items) == 3
    mixed = [r for split in ("val", "test") for r in blink_records({"Jigsaw": 3}, split=split)]
    write_parquet(tmp_path / "flat/all.parquet", mixed, OF_BLINK)
    assert {item.key[:4] for item in blink.read(tmp_path / "flat", "val").items} == {"val_"}
    test = blink.read(tmp_path / "flat", "test")
    assert len(test.items) == 3 and test.labels.version == "unknown"
    write_parquet(tmp_path / "hidden/a.parquet", [r | {"answer": "hidden"} for r in mixed], OF_BLINK)
    text = refusal(lambda: blink.read(tmp_path / "hidden", "test"))
    assert text.endswith("the answer is hidden, the labels of test are not public; use --split val")
    assert "use --split val" in refusal(lambda: blink.read(write_blink(tmp_path / "t", "tsv"), "test"))
    assert "BLINK has val and test" in refusal(lambda: blink.read(tmp_path, "train"))


@pytest.mark.parametrize(
    ("cells", "part"),
    [
        ({"answer": "(E)"}, "a.parquet: row 3: answer '(E)' is none of 4 choices; give A to D"),
        ({"answer": None}, "answer missing is none of 4 choices"),
        ({"answer": "AB"}, "answer 'AB' is none of"),
        ({"choices": []}, "choices is [], not a list of texts"),
        ({"choices": None}, "choices is missing, not a list of texts"),
        ({"choices": ["x"] * 27}, "27 choices, more than 26"),
        ({"question": " "}, "question is ' ', not a text"),
        ({"prompt": None}, "prompt is missing, not a text"),
        ({"sub_task": "Forensics"}, "sub-task 'Forensics' is not of BLINK; the nearest is Forensic_Detection"),
        ({"idx": "val_Jigsaw_1"}, "idx 'val_Jigsaw_1' is there twice"),
        ({"idx": "17"}, "idx '17' is not SPLIT_SUBTASK_NUMBER"),
        (dict.fromkeys(blink.IMAGES), "row 3: no picture"),
        ({"image_2": {"bytes": None, "path": "x.jpg"}}, "row 3: picture 'x.jpg' is a path"),
        ({"image_2": {"bytes": b"GIF?", "path": None}}, "row 3: picture 2: not a whole picture"),
    ],
)
def test_what_is_refused(tmp_path: Path, cells: Record, part: str) -> None:
    text = refusal(lambda: blink.read(changed(tmp_path, **cells)))
    assert part in text and str(tmp_path) in text


def test_nothing_to_read(tmp_path: Path) -> None:
    assert "nothing is there; check the path" in refusal(lambda: blink.read(tmp_path / "none"))
    assert "check the path" in refusal(lambda: blink.read(tmp_path / "none.tsv"))
    assert "no *.parquet and no state.json" in refusal(lambda: blink.read(tmp_path))
    (tmp_path / "x.json").touch()
    assert "not a .parquet or .tsv file" in refusal(lambda: blink.read(tmp_path / "x.json"))
    write_parquet(tmp_path / "a.parquet", blink_records({"Jigsaw": 1}, split="test"), OF_BLINK)
    assert "no items of split 'val'" in refusal(lambda: blink.read(tmp_path))


@pytest.mark.parametrize("name", ["idx", "question", "choices", "answer", "prompt", "image_1"])
def test_a_missing_column(tmp_path: Path, name: str) -> None:
    columns = [column for column in OF_BLINK if column != name]
    write_parquet(tmp_path / "a/a.parquet", blink_records(ONE_EACH), columns)
    save(tmp_path / "b", blink_records(ONE_EACH), columns)
    for folder in "ab":
        assert f"no column {name!r} among " in refusal(lambda folder=folder: blink.read(tmp_path / folder))


def test_the_sub_task_is_in_the_idx_too(tmp_path: Path) -> None:
    columns = [column for column in OF_BLINK if column not in ("sub_task", "image_4", "explanation")]
    write_parquet(tmp_path / "a.parquet", blink_records({"Multi-view_Reasoning": 2, "Jigsaw": 1}), columns)
    assert [item.task for item in blink.read(tmp_path).items] == ["Jigsaw", *["Multi-view_Reasoning"] * 2]


@pytest.mark.parametrize("name", ["Multi-view Reasoning", "Multi_view_Reasoning", "multi-view_reasoning"])
def test_other_spellings_of_a_sub_task(name: str) -> None:
    assert blink.sub_task(name, "x") == "Multi-view_Reasoning"


@pytest.mark.parametrize(
    ("cells", "part"),
    [
        ({"category": "Jig"}, "line 3: sub-task 'Jig' is not of BLINK; the nearest is Jigsaw"),
        ({"index": 0}, "index '0' is there twice"),
        ({"index": ""}, "line 3: index is '', not a text"),
        ({"answer": "D"}, "line 3: answer 'D' is none of 2 choices"),
        ({"A": ""}, "line 3: option A is empty before others"),
        ({"A": "", "B": ""}, "line 3: choices is [], not a list of texts"),
        ({"image": "@" * 80}, "line 3: a picture that is not base64"),
        ({"image": ""}, "line 3: no picture"),
    ],
)
def test_faults_of_a_tsv_are_refused(tmp_path: Path, cells: Record, part: str) -> None:
    path = write_blink(tmp_path, "tsv", {"Jigsaw": 2})
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert part in refusal(lambda: blink.read(write_tsv(path, [rows[0], rows[1] | cells])))


def test_a_tsv_without_rows(tmp_path: Path) -> None:
    path = write_blink(tmp_path, "tsv", {"Jigsaw": 1})
    path.write_text(path.read_text().partition("\n")[0] + "\n")
    assert "no items of split 'val'" in refusal(lambda: blink.read(path))


def test_warnings(tmp_path: Path) -> None:
    sizes = {task: published.val for task, published in blink.SUB_TASKS.items() if task != "IQ_Test"} | {"Counting": 1}
    records = blink_records(sizes)
    by_key = {record["idx"]: record for record in records}
    by_key["val_Jigsaw_7"]["image_3"] = None
    by_key["val_Jigsaw_9"]["image_3"] = {"bytes": None, "path": None}  # another way to write it
    by_key["val_Jigsaw_2"]["choices"].append("a third")
    write_parquet(tmp_path / "a.parquet", records, OF_BLINK)
    assert blink.read(tmp_path).warnings == (
        "1 of 14 sub-tasks are missing: IQ_Test",
        "Counting: 1 items, not 120 as published",
        "Jigsaw: 2 items with another number of images than 3, the first val_Jigsaw_7 with 2",
        "Jigsaw: 1 items with another number of choices than 2, the first val_Jigsaw_2 with 3",
    )


def test_label_versions(tmp_path: Path) -> None:
    labels = july()
    assert len(labels) == 1901

    def version(name: str, of: dict[str, str], sizes: dict[str, int] | None = None) -> str:
        benchmark = blink.read(write_blink(tmp_path / name, sizes=sizes, labels=of))
        assert benchmark.labels.hash == label_hash(benchmark.items)
        return benchmark.labels.version

    def turned(task: str) -> dict[str, str]:
        key = f"val_{task}_5"
        return labels | {key: "A" if labels[key] == "B" else "B"}

    sizes = {task: published.val for task, published in blink.SUB_TASKS.items()}
    assert version("july", labels) == "2024-07, before the correction of Relative_Reflectance"
    corrected = "with Relative_Reflectance corrected (2025-09-03 or later)"
    assert version("corrected", turned("Relative_Reflectance")) == corrected
    assert version("other", turned("Jigsaw")) == "unknown"
    some = {task: sizes[task] for task in ("Jigsaw", "Relative_Reflectance")}
    assert version("some", labels, some) == blink.OLD
    assert version("some_corrected", turned("Relative_Reflectance"), some) == blink.CORRECTED
    assert version("less", labels, some | {"Jigsaw": 149}) == "unknown (partial set)"
    assert version("without", labels, {"Jigsaw": 150}).startswith("2024-07 or later: without Relative_Reflectance")


def test_versions_of_tsvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_blink(tmp_path, "tsv", ONE_EACH)
    for md5, version in [
        ("3b6649b6a662184ea046908e5506260e", blink.OLD),
        ("d5e8af148b10ac69f535ff7b23f3f989", blink.CORRECTED),
        ("0", "unknown"),
    ]:
        monkeypatch.setattr(files, "md5", lambda _, md5=md5: md5)
        assert blink.read(path).labels.version == version


ITEM = Item(
    key="val_Counting_1",
    task="Counting",
    question="How many floats are there?",
    label="B",
    choices=("0", "3", "2"),
    n_choices=3,
    images=(b"1", b"2"),
    prompt="Look. How many floats are there?\nSelect from the following choices.\n(A) 0\n(B) 3\n(C) 2\n",
)


def test_prompts(tmp_path: Path) -> None:
    benchmark: Benchmark = blink.read(write_blink(tmp_path, sizes=ONE_EACH))
    built = {name: prompt.build(ITEM) for name, prompt in benchmark.prompts.items()}
    own = "Look. How many floats are there?\nSelect from the following choices.\n(A) 0\n(B) 3\n(C) 2\n"
    assert built == {
        "official": own + "<image><image>",
        "images_first": "<image><image>" + own,
        "vlmevalkit": "<image><image>Question: How many floats are there?\nOptions:\nA. 0\nB. 3\nC. 2\n"
        "Please select the correct answer from the options above.",
        "lmms_eval": "<image><image>Note: You only need to respond with A, B, C without providing any additional "
        "information.\n" + own,
        "letter": "<image><image>How many floats are there?\nA. 0\nB. 3\nC. 2\n"
        "Answer with the option's letter from the given choices directly.",
        "amvl": "<image><image>How many floats are there? (A) 0 (B) 3 (C) 2",
    }
    assert {name: prompt.id for name, prompt in benchmark.prompts.items()} == {
        name: f"blink/{name}-1" for name in built
    }
    assert {name: prompt.reply for name, prompt in benchmark.prompts.items()} == {
        **dict.fromkeys(("official", "images_first"), "({letter})"),
        **dict.fromkeys(("vlmevalkit", "lmms_eval", "letter", "amvl"), "{letter}"),
    }


@pytest.mark.parametrize("task", sorted(blink.SUB_TASKS))
def test_a_word_about_people_where_the_authors_say_it(task: str) -> None:
    said = (
        "Disclaimer: This is not to make unfair assumptions about the people in the image and you just need to give "
        "your assessment on this question. You don't need to identify the real people. You just need to analyze based "
        "on the information I gave you.\n\n"
    )
    before = said if task in ("Forensic_Detection", "Jigsaw", "Art_Style") else ""
    item = replace(ITEM, task=task)
    assert blink.PROMPTS["official"].build(item) == f"{before}{ITEM.prompt}<image><image>"
    assert blink.PROMPTS["images_first"].build(item) == f"<image><image>{before}{ITEM.prompt}"


def test_a_mark_in_a_text_is_no_place_of_an_image(tmp_path: Path) -> None:
    cells = {name: f"Is <image> in {name}?" for name in ("question", "prompt")} | {"choices": ["<image>", "no"]}
    item = blink.read(changed(tmp_path, **cells, answer="(A)")).items[2]
    assert (item.question, item.choices) == ("Is [image] in question?", ("[image]", "no"))
    for prompt in blink.PROMPTS.values():
        text = prompt.build(item)
        assert text.count("<image>") == len(item.images) == 4 and "[image]" in text


def test_the_helper_writes_what_is_published() -> None:
    schema = table(blink_records({"Jigsaw": 1}), OF_BLINK).schema
    assert [str(schema.field(name).type) for name in ("idx", "choices", "image_4")] == [
        "string",
        "list<item: string>",
        "struct<bytes: binary, path: string>",
    ]
