"""VisualPuzzles (Song et al. 2025, https://arxiv.org/abs/2504.10342): 1,168 puzzles of five kinds of reasoning.

Read from https://huggingface.co/datasets/neulab/VisualPuzzles (`data.parquet`, or `data/train-*.parquet` with a column
`difficulty`), from what `datasets` saved, or from VLMEvalKit's VisualPuzzles.tsv. Options are drawn in the picture for
57 % of the puzzles; those have no choices here, and four letters. The paper prints the better of the prompts `cot` and
`direct` for every model, so neither alone compares with its table.
"""

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data.convert import vlmevalkit
from data.sample import DataError
from eval.benchmarks import cells, files, prompts
from eval.benchmarks.item import Benchmark, Item, Labels, label_hash

CATEGORIES = {"algorithmic": 262, "analogical": 211, "deductive": 200, "inductive": 209, "spatial": 286}
OFFERED = 4  # choices of every puzzle
# https://github.com/open-compass/VLMEvalKit/blob/main/vlmeval/dataset/image_mcq.py
TSVS = {"12bcc3f6dd7a11b33ffcd526b5601076": "VLMEvalKit's VisualPuzzles.tsv (MD5 12bcc3f6)"}

PROMPTS = prompts.named(
    "visual_puzzles",
    [
        ("cot", prompts.images_first(prompts.puzzles_cot), "Answer: {letter}"),
        ("direct", prompts.images_first(prompts.puzzles_direct), "{letter}"),
        ("vlmevalkit", prompts.images_first(prompts.puzzles_vlmevalkit), "Answer: {letter}"),
        ("amvl", prompts.images_first(prompts.amvl), "{letter}"),
    ],
)


def read(path: Path) -> Benchmark:
    """The benchmark at a path. DataError for what cannot be used; what only differs is a warning."""
    tsv = path.suffix == ".tsv"
    items = cells.unique(_of_tsv(path) if tsv else _of_tables(path), path, "index" if tsv else "id")
    if not items:
        raise DataError(f"{path}: no items; check the path or fetch the benchmark again")
    return Benchmark(
        name="visual_puzzles",
        split="train",  # its only one
        items=items,
        prompts=PROMPTS,
        mean="micro",
        labels=Labels(label_hash(items), TSVS.get(files.md5(path), "unknown") if tsv else "unknown"),
        rules="visual_puzzles",
        warnings=tuple(_warnings(items)),
    )


def _of_tables(path: Path) -> Iterator[Item]:
    needed = ("id", "category", "image", "question", "options", "answer")
    for place, record in files.records(path, needed, ["difficulty"]):
        yield _item(place, record["id"], record, [record["image"]])


def _of_tsv(path: Path) -> Iterator[Item]:
    for place, full in vlmevalkit.records(path):
        if isinstance(full, DataError):
            raise DataError(f"{place}: {full}")
        record, images = full
        yield _item(place, record["index"], {**record, "options": _options(record, place)}, images)


def _options(record: dict[str, str], place: str) -> Any:
    """A list written out in Python; nothing where the options are in the picture."""
    if "options" not in record:
        raise DataError(f"{place}: no column 'options'; give VLMEvalKit's VisualPuzzles.tsv")
    try:
        return ast.literal_eval(record["options"]) if record["options"].strip() not in ("", "nan", "None") else None
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{place}: options that are no list of Python; fetch the file again") from error


def _item(place: str, key: object, record: dict[str, Any], images: Iterable[object]) -> Item:
    options = record["options"]
    choices = None if options is None or options == [] else cells.texts(options, "options", place)
    offered = len(choices) if choices else OFFERED
    difficulty = record.get("difficulty")
    return Item(
        key=cells.text(key, "id", place),
        task=cells.text(record.get("category"), "category", place).strip(),
        question=cells.text(record["question"], "question", place).strip(),
        label=cells.letter(record.get("answer"), offered, place),
        choices=choices,
        n_choices=offered,
        images=cells.images(images, place),
        groups={"difficulty": str(difficulty)} if difficulty else {},
    )


def _warnings(items: Iterable[Item]) -> Iterator[str]:
    counts = Counter(item.task for item in items)
    for task in sorted({*CATEGORIES, *counts}):
        if task not in CATEGORIES:
            yield f"{task}: {counts[task]} items of a category that is not published"
        elif counts[task] != CATEGORIES[task]:
            yield f"{task}: {counts[task]} items, not {CATEGORIES[task]} as published"
    if other := [item for item in items if item.n_choices != OFFERED]:
        first = f"the first {other[0].key} with {other[0].n_choices}"
        yield f"{len(other)} items with another number of choices than {OFFERED}, {first}"
