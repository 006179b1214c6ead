"""Any benchmark of multiple choice as a VLMEvalKit TSV: MMVP, V*, CV-Bench, HRBench, ... (data/convert/vlmevalkit.py).

A row without options is an open question. A row that cannot be used is left out, and a warning tells.
"""

from collections.abc import Iterator
from pathlib import Path

from data.convert import vlmevalkit
from data.convert.row import load
from data.sample import IMAGE_MARK, DataError
from eval.benchmarks import cells, prompts
from eval.benchmarks.item import Benchmark, Item, Labels, label_hash

TOLD = 3  # rows left out that a warning names
ROTATIONS = 10**6  # the rotated copies of an item have its index plus multiples of this

PROMPTS = prompts.named(
    "tsv",
    [
        ("vlmevalkit", prompts.images_first(prompts.vlmevalkit_hint), "{letter}"),
        ("letter", prompts.images_first(prompts.letter), "{letter}"),
        ("amvl", prompts.images_first(prompts.amvl), "{letter}"),
    ],
)


def read(file: Path, images: Path | None, split: str | None) -> Benchmark:
    """The benchmark in a file. `images`: the folder that paths in it begin in; `split`: only rows of this."""
    faults: list[str] = []
    items = cells.unique(_items(file, images, split, faults), file, "index")
    if not items:
        why = faults[0] if faults else f"{file}: no rows" + (f" of split {split!r}; check --split" if split else "")
        raise DataError(f"no usable row: {why}")
    return Benchmark(
        name=file.stem,
        split=split or "all",
        items=items,
        prompts=PROMPTS,
        mean="micro",
        labels=Labels(label_hash(items), "unknown"),
        warnings=tuple(_warnings(file, items, faults)),
    )


def _items(file: Path, images: Path | None, split: str | None, faults: list[str]) -> Iterator[Item]:
    for place, full in vlmevalkit.records(file, split):
        try:
            if isinstance(full, DataError):
                raise DataError(f"{place}: {full}")
            yield _item(file, place, *full, images)
        except DataError as error:
            faults.append(str(error))


def _item(file: Path, place: str, record: vlmevalkit.Record, pictures: list[Path | bytes], folder: Path | None) -> Item:
    try:
        if not record["index"].strip():
            raise DataError("no index; write one or leave the row out")
        row = vlmevalkit.parse(record, pictures)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    if row.question.count(IMAGE_MARK) not in (0, len(row.images)):  # said, not meant as places
        row = row._replace(question=cells.unmarked(row.question))
    sample = load(row._replace(place=place, folder=folder, task=row.task or file.stem, source=file.stem))
    hint = f"Hint: {record.get('hint', '').strip()}\n"
    bare = row.question.removeprefix(hint)
    second = record.get("l2-category", "").strip()
    return Item(
        key=record["index"],
        task=sample.text.task,
        question=row.question,
        label=row.answer,
        choices=row.choices,
        # Options that hold pictures were written into the question; their letters are the answers all the same.
        n_choices=len(row.choices or vlmevalkit.options(record)),
        images=sample.images,
        prompt=f"{hint}Question: {bare}" if bare != row.question else None,
        groups={"l2-category": second} if second else {},
    )


def _warnings(file: Path, items: tuple[Item, ...], faults: list[str]) -> Iterator[str]:
    if faults:
        more = "; ..." if len(faults) > TOLD else ""
        yield f"{len(faults)} of {len(items) + len(faults)} rows left out: {'; '.join(faults[:TOLD])}{more}"
    numbers = {int(item.key) for item in items if item.key.isdecimal()}
    rotated = sum(number >= ROTATIONS and number % ROTATIONS in numbers for number in numbers)
    if rotated or "circular" in file.stem.lower():
        what = f"{rotated} of {len(items)} rows are rotated copies of others"
        yield f"{what}: each counts as an item of its own, circular scoring is not applied"
