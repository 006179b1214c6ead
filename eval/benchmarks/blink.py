"""BLINK (Fu et al. 2024, https://arxiv.org/abs/2404.12390): 14 sub-tasks of seeing, 1,901 items in val.

Read from https://huggingface.co/datasets/BLINK-Benchmark/BLINK as downloaded (`Art_Style/val-*.parquet`), from parquet
files of any names in one folder, from what `datasets` saved, or from VLMEvalKit's BLINK.tsv (which holds val).
"""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data.convert import vlmevalkit
from data.sample import DataError
from eval.benchmarks import cells, files, prompts
from eval.benchmarks.item import Benchmark, Item, Labels, Prompt, label_hash

SPLITS = ("val", "test")
IMAGES = ("image_1", "image_2", "image_3", "image_4")
MAY_DIFFER = "Relative_Reflectance"


class SubTask(NamedTuple):
    """What is published of a sub-task."""

    val: int  # items
    test: int
    choices: int
    images: int
    labels: str  # hash of val's labels as of July 2024


# Items, choices and images: the data set's card, and https://github.com/modelscope/evalscope (_meta/blink.json).
# Labels: eval/saved_outputs of https://github.com/zeyofu/BLINK_Benchmark at commit 2d6a779, hashed as label_hash does.
SUB_TASKS = {
    "Art_Style": SubTask(117, 117, 2, 3, "6cd455bf4217"),
    "Counting": SubTask(120, 120, 4, 1, "24016e5a7193"),
    "Forensic_Detection": SubTask(132, 132, 4, 4, "b3051a01fe7c"),
    "Functional_Correspondence": SubTask(130, 130, 4, 2, "6a04bc0a13b1"),
    "IQ_Test": SubTask(150, 150, 4, 1, "b04892385164"),
    "Jigsaw": SubTask(150, 150, 2, 3, "05f759f4a382"),
    "Multi-view_Reasoning": SubTask(133, 133, 2, 2, "aee818f01d5f"),
    "Object_Localization": SubTask(122, 125, 2, 1, "c430ef3b25b2"),
    "Relative_Depth": SubTask(124, 124, 2, 1, "f3559e72ef2e"),
    "Relative_Reflectance": SubTask(134, 134, 3, 1, "8918a2889104"),
    "Semantic_Correspondence": SubTask(139, 140, 4, 2, "f1b15cfa0b93"),
    "Spatial_Relation": SubTask(143, 143, 2, 1, "5065639a6193"),
    "Visual_Correspondence": SubTask(172, 172, 4, 2, "1cfe3eb0ffa8"),
    "Visual_Similarity": SubTask(135, 136, 2, 3, "3fd8fab6c104"),
}
OLD = "2024-07, before the correction of Relative_Reflectance"
CORRECTED = "with Relative_Reflectance corrected (2025-09-03 or later)"
EITHER = "2024-07 or later: without Relative_Reflectance, all that was corrected"
# https://github.com/open-compass/VLMEvalKit/pull/1539 put the second in the place of the first.
TSVS = {"3b6649b6a662184ea046908e5506260e": OLD, "d5e8af148b10ac69f535ff7b23f3f989": CORRECTED}

PROMPTS = prompts.named(
    "blink",
    [
        ("official", prompts.images_last(prompts.blink_official), "({letter})"),
        ("images_first", prompts.images_first(prompts.blink_official), "({letter})"),
        ("vlmevalkit", prompts.images_first(prompts.vlmevalkit), "{letter}"),
        ("lmms_eval", prompts.images_first(prompts.blink_lmms_eval), "{letter}"),
        ("letter", prompts.images_first(prompts.letter), "{letter}"),
        ("amvl", prompts.images_first(prompts.amvl), "{letter}"),
    ],
)
OF_PROMPT_COLUMN = ("official", "images_first", "lmms_eval")


def read(path: Path, split: str = "val") -> Benchmark:
    """The benchmark at a path. DataError for what cannot be used; what only differs is a warning."""
    if split not in SPLITS:
        raise DataError(f"--split {split}: BLINK has {' and '.join(SPLITS)}; name one of them")
    tsv = path.suffix == ".tsv"
    items = cells.unique(_of_tsv(path, split) if tsv else _of_tables(path, split), path, "index" if tsv else "idx")
    if not items:
        raise DataError(f"{path}: no items of split {split!r}; name another --split or check the path")
    items = tuple(sorted(items, key=_order))
    version = TSVS.get(files.md5(path), "unknown") if tsv else _version(items, split)
    return Benchmark(
        name="blink",
        split=split,
        items=items,
        prompts=_offered(items),
        mean="macro",
        labels=Labels(label_hash(items), version),
        rules="blink",
        apart=(MAY_DIFFER,),
        warnings=tuple(_warnings(items, split)),
    )


def _of_tables(path: Path, split: str) -> Iterator[Item]:
    needed = ("idx", "question", "choices", "answer", "prompt", "image_1")
    others = [other for other in SPLITS if other != split]
    for place, record in files.records(path, needed, ("sub_task", *IMAGES[1:]), others):
        key = str(record["idx"])
        parts = re.fullmatch(r"([^_]+)_(.+)_\d+", key)
        if not parts:
            raise DataError(f"{place}: idx {key!r} is not SPLIT_SUBTASK_NUMBER; give the benchmark as published")
        if parts[1] == split:
            task = sub_task(str(record.get("sub_task") or parts[2]), place)
            yield _item(place, key, task, split, record, [record.get(name) for name in IMAGES])


def _of_tsv(path: Path, split: str) -> Iterator[Item]:
    if split != "val":
        raise DataError(f"{path}: VLMEvalKit's BLINK.tsv holds val alone; use --split val, or give the parquet files")
    for place, full in vlmevalkit.records(path):
        if isinstance(full, DataError):
            raise DataError(f"{place}: {full}")
        record, images = full
        key, task = cells.text(record["index"], "index", place), sub_task(record.get("category", ""), place)
        try:
            choices = vlmevalkit.options(record)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        question = f"{record.get('hint', '').strip()}\n{record['question']}"  # what a hint says is part of it
        yield _item(place, key, task, split, {**record, "question": question, "choices": choices}, images)


def sub_task(name: str, place: str) -> str:
    """Its published name, however its words are joined."""
    plain = {re.sub(r"[-_ ]", "", known).lower(): known for known in SUB_TASKS}
    wanted = re.sub(r"[-_ ]", "", name).lower()
    if wanted not in plain:
        near = difflib.get_close_matches(wanted, plain, 1, 0)
        raise DataError(f"{place}: sub-task {name!r} is not of BLINK; the nearest is {plain[near[0]]}, mend the name")
    return plain[wanted]


def _item(place: str, key: str, task: str, split: str, record: dict[str, Any], images: Iterable[object]) -> Item:
    if str(record.get("answer")).strip() == "hidden":
        raise DataError(f"{place}: the answer is hidden, the labels of {split} are not public; use --split val")
    choices = cells.texts(record["choices"], "choices", place)
    return Item(
        key=key,
        task=task,
        question=cells.text(record["question"], "question", place).strip(),
        label=cells.letter(record.get("answer"), len(choices), place),
        choices=choices,
        n_choices=len(choices),
        images=cells.images(images, place),
        prompt=cells.text(record["prompt"], "prompt", place) if "prompt" in record else None,
    )


def _order(item: Item) -> tuple[str, int, str]:
    number = re.search(r"\d+\Z", item.key)
    return item.task, int(number[0]) if number else 0, item.key


def _offered(items: Iterable[Item]) -> dict[str, Prompt]:
    whole = all(item.prompt for item in items)
    return {name: prompt for name, prompt in PROMPTS.items() if whole or name not in OF_PROMPT_COLUMN}


def _by_task(items: Iterable[Item]) -> dict[str, list[Item]]:
    by_task: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_task[item.task].append(item)
    return by_task


def _version(items: Iterable[Item], split: str) -> str:
    by_task = _by_task(items)
    if split != "val":  # whose labels were never public
        return "unknown"
    if any(len(found) != SUB_TASKS[task].val for task, found in by_task.items()):
        return "unknown (partial set)"
    changed = {task for task, found in by_task.items() if label_hash(found) != SUB_TASKS[task].labels}
    if changed == {MAY_DIFFER}:
        return CORRECTED
    if changed:
        return "unknown"
    return OLD if MAY_DIFFER in by_task else EITHER


def _warnings(items: Iterable[Item], split: str) -> Iterator[str]:
    by_task = _by_task(items)
    if missing := [task for task in SUB_TASKS if task not in by_task]:
        yield f"{len(missing)} of {len(SUB_TASKS)} sub-tasks are missing: {', '.join(missing)}"
    for task, found in by_task.items():
        published = SUB_TASKS[task]
        if len(found) != (size := getattr(published, split)):
            yield f"{task}: {len(found)} items, not {size} as published"
        for what, many in (("images", lambda item: len(item.images)), ("choices", lambda item: item.n_choices)):
            number = getattr(published, what)
            if other := [item for item in found if many(item) != number]:
                first = f"the first {other[0].key} with {many(other[0])}"
                yield f"{task}: {len(other)} items with another number of {what} than {number}, {first}"
