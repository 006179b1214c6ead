"""Benchmarks in the layouts they are published in, with small pictures, texts made up and answers drawn."""

import base64
import csv
import io
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from data.sample import LETTERS
from eval.benchmarks.blink import IMAGES, SUB_TASKS
from eval.benchmarks.visual_puzzles import CATEGORIES

POOL = 16  # different pictures of a size
Record = dict[str, Any]

IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
TYPES = dict.fromkeys(IMAGES, IMAGE) | {
    "image": IMAGE,
    "choices": pyarrow.list_(pyarrow.string()),
    "options": pyarrow.list_(pyarrow.string()),
    "id": pyarrow.int64(),
}
OF_BLINK = ("idx", "question", "sub_task", *IMAGES, "choices", "answer", "prompt", "explanation")
OF_PUZZLES = ("id", "category", "image", "question", "options", "answer")


def write_blink(
    folder: Path,
    layout: str = "configs",
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    picture: tuple[int, int] = (24, 16),
    labels: Mapping[str, str] | None = None,
    split: str = "val",
) -> Path:
    """A BLINK of these sizes (by default the true ones) and what to read it from.

    `layout`: configs, flat, saved, saved_dict, saved_folders or tsv. `labels`: letters by idx, of those not drawn.
    """
    if sizes is None:
        sizes = {task: getattr(published, split) for task, published in SUB_TASKS.items()}
    records = blink_records(sizes, seed, picture, labels, split)
    by_task = {task: [record for record in records if record["sub_task"] == task] for task in sizes}
    if layout == "tsv":
        rows = [_blink_row(number, record) for number, record in enumerate(records)]
        return write_tsv(folder / "BLINK.tsv", rows)
    if layout == "configs":
        for task, found in by_task.items():
            write_parquet(folder / task / f"{split}-00000-of-00001.parquet", found, OF_BLINK)
    elif layout == "flat":
        half = len(records) // 2
        write_parquet(folder / "a.parquet", records[half:], OF_BLINK)
        write_parquet(folder / "b.parquet", records[:half], OF_BLINK)
    elif layout == "saved":
        save(folder, records, OF_BLINK)
    elif layout == "saved_dict":
        save(folder / split, records, OF_BLINK)
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    elif layout == "saved_folders":
        for task, found in by_task.items():
            save(folder / task, found, OF_BLINK)
    else:
        raise ValueError(layout)
    return folder


def blink_records(
    sizes: Mapping[str, int],
    seed: int = 0,
    picture: tuple[int, int] = (24, 16),
    labels: Mapping[str, str] | None = None,
    split: str = "val",
) -> list[Record]:
    """The rows of the parquet files."""
    rng = np.random.default_rng(seed)
    return [
        _blink_record(f"{split}_{task}_{number}", task, rng, picture, labels)
        for task, size in sizes.items()
        for number in range(1, size + 1)
    ]


def _blink_record(
    idx: str, task: str, rng: np.random.Generator, picture: tuple[int, int], labels: Mapping[str, str] | None
) -> Record:
    published = SUB_TASKS[task]
    numbers = rng.integers(0, POOL, published.images)
    images = [{"bytes": jpeg(*picture, int(number)), "path": f"{idx}_{n}.jpg"} for n, number in enumerate(numbers, 1)]
    choices = [f"choice {rng.integers(1000)} of {idx}" for _ in range(published.choices)]
    letter = LETTERS[rng.integers(published.choices)]
    question = f"What is seen in number {idx}?"
    options = "\n".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return {
        "idx": idx,
        "question": question,
        "sub_task": task,
        **{name: images[n] if n < len(images) else None for n, name in enumerate(IMAGES)},
        "choices": choices,
        "answer": f"({labels[idx] if labels else letter})",
        "prompt": f"Look closely. {question}\nSelect from the following choices.\n{options}\n",
        "explanation": "",
    }


def _blink_row(index: int, record: Record) -> Record:
    images = [_base64(record[name]) for name in IMAGES if record[name]]
    options = dict(zip("ABCD", record["choices"], strict=False))
    return {
        "index": index,
        "image": images[0] if len(images) == 1 else str(images),
        "question": record["question"],
        **{letter: options.get(letter, "") for letter in "ABCD"},
        "answer": record["answer"].strip("()"),
        "category": record["sub_task"],
        "split": "val",
    }


def write_visual_puzzles(
    folder: Path, layout: str = "train", n: int | None = None, seed: int = 0, picture: tuple[int, int] = (24, 16)
) -> Path:
    """A VisualPuzzles of n items (by default all 1,168) and what to read it from.

    `layout`: train (data/train-*, with difficulty), data (data.parquet, without), saved, or tsv.
    """
    records = puzzle_records(n, seed, picture)
    if layout == "tsv":
        rows = [{**r, "index": r["id"], "image": _base64(r["image"]), "options": r["options"] or ""} for r in records]
        return write_tsv(folder / "VisualPuzzles.tsv", rows)
    if layout == "train":
        half = len(records) // 2
        for number, part in enumerate((records[:half], records[half:])):
            write_parquet(folder / f"data/train-0000{number}-of-00002.parquet", part, (*OF_PUZZLES, "difficulty"))
    elif layout == "data":
        write_parquet(folder / "data.parquet", records, OF_PUZZLES)
    elif layout == "saved":
        save(folder, records, (*OF_PUZZLES, "difficulty"))
    else:
        raise ValueError(layout)
    return folder


def puzzle_records(n: int | None = None, seed: int = 0, picture: tuple[int, int] = (24, 16)) -> list[Record]:
    """The rows of the parquet files: every other one with its options in the picture, categories in turn."""
    rng = np.random.default_rng(seed)
    categories = [category for category, size in CATEGORIES.items() for _ in range(size)]
    if n is not None:
        categories = [list(CATEGORIES)[number % len(CATEGORIES)] for number in range(n)]
    return [
        {
            "id": number + 1 + number // 14,  # with gaps, as the true ones
            "category": category,
            "image": {"bytes": jpeg(*picture, int(rng.integers(POOL))), "path": None},
            "question": f"Which comes next in row {number}?",
            "options": [f"it's {rng.integers(1000)}", "a, b", 'the "third"', "none"] if number % 2 else None,
            "answer": "ABCD"[rng.integers(4)],
            "difficulty": ("easy", "medium", "hard")[number % 3],
        }
        for number, category in enumerate(categories)
    ]


@lru_cache
def jpeg(width: int, height: int, shade: int) -> bytes:
    """A picture that differs from those of other shades."""
    out = io.BytesIO()
    Image.new("RGB", (width, height), (shade * 16 % 256, 255 - shade * 16 % 256, 7)).save(out, "JPEG")
    return out.getvalue()


def table(records: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> pyarrow.Table:
    """Records with the types that Hugging Face gives them."""
    rows = list(records)
    cells = {name: [row.get(name) for row in rows] for name in columns}
    return pyarrow.table({name: pyarrow.array(c, TYPES.get(name, pyarrow.string())) for name, c in cells.items()})


def write_parquet(file: Path, records: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> Path:
    """In groups of 100 rows, as `datasets` writes pictures."""
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table(records, columns), file, row_group_size=100)
    return file


def save(folder: Path, records: Iterable[Mapping[str, Any]], columns: Iterable[str], files: int = 2) -> Path:
    """As Dataset.save_to_disk leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    whole, names = table(records, columns), []
    for number in range(files):
        names.append(f"data-{number:05d}-of-{files:05d}.arrow")
        start, end = (whole.num_rows * (number + part) // files for part in (0, 1))
        with pyarrow.ipc.new_stream(folder / names[-1], whole.schema) as stream:
            stream.write_table(whole.slice(start, end - start), 1000)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0123456789abcdef", "_split": "val"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def write_tsv(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Quoted where a cell needs it, as pandas does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    listed = list(rows)
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(listed[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(listed)
    return file


def _base64(image: Mapping[str, Any]) -> str:
    return base64.b64encode(image["bytes"]).decode()
