"""What a shard set holds, in numbers and one figure. Pictures are measured by their headers; none is decoded."""

from array import array
from collections import Counter, defaultdict

import numpy as np

from data.pictures import header
from data.sample import DataError, Sample
from data.shards.foreign import shown
from data.shards.items import read, some
from data.source import Source

SEED = 0  # of the samples that are looked at, where not all are
MOST_NAMES = 12  # bars of a panel
LONGEST_NAME = 28  # characters

NUMBERS = {  # what is counted, and the panel's title
    "question": "question, characters",
    "answer": "answer, characters (no choices)",
    "rationale": "rationale, characters",
    "choices": "choices per sample",
    "images": "images per sample",
    "width": "image width, pixels",
    "height": "image height, pixels",
    "megapixels": "image size, megapixels",
    "aspect": "image width / height",
    "bytes": "kilobytes per sample",
    "text_tokens": "text tokens per sample",
    "image_tokens": "image tokens per sample",
}
NAMES = {
    "letter": "right letter",
    "answer": "commonest answers (no choices)",
    "task": "task",
    "source": "source",
    "format": "image format",
}


class Stats:
    """Counts of samples, taken one by one."""

    def __init__(self) -> None:
        self.samples = 0
        self.numbers: dict[str, array[float]] = defaultdict(lambda: array("d"))
        self.names: dict[str, Counter[str]] = defaultdict(Counter)
        self.faults: list[str] = []

    def add(self, sample: Sample, size: int, tokens: tuple[int, int] | None) -> None:
        """One more. DataError, before anything is counted, when a picture of it is none."""
        text = sample.text
        pictures = [header(content, f"{sample.place}.{number}") for number, content in enumerate(sample.images)]
        self.samples += 1
        self._count(question=len(text.question), images=len(pictures), bytes=size / 1000)
        self.names["task"][text.task] += 1
        self.names["source"][text.source] += 1
        if text.choices is None:
            self._count(answer=len(text.answer))
            self.names["answer"][text.answer[:200]] += 1
        else:
            self._count(choices=len(text.choices))
            self.names["letter"][text.answer] += 1
        if text.rationale is not None:
            self._count(rationale=len(text.rationale))
        for picture in pictures:
            width, height = picture.size
            self._count(width=width, height=height, megapixels=width * height / 1e6, aspect=width / height)
            self.names["format"][str(picture.format)] += 1
        if tokens is not None:
            self._count(text_tokens=tokens[0], image_tokens=tokens[1])

    def _count(self, **numbers: float) -> None:
        for name, number in numbers.items():
            self.numbers[name].append(number)

    def rows(self) -> list[tuple[str, ...]]:
        """The table of numbers: title, smallest, median, mean, 99th percentile, largest."""
        rows: list[tuple[str, ...]] = []
        for name, title in NUMBERS.items():
            if values := self.numbers.get(name):
                low, middle, most, high = np.percentile(values, [0, 50, 99, 100])
                rows.append((title, *map(_number, (low, middle, np.mean(values), most, high))))
        return rows

    def shares(self) -> list[tuple[str, str]]:
        """The table of names: title, the commonest with their shares."""
        rows = []
        for name, title in NAMES.items():
            if counts := self.names.get(name):
                listed = [f"{short(key)} {100 * n / counts.total():.1f} %" for key, n in self.commonest(name)]
                more = len(counts) - len(listed)
                rows.append((title, ", ".join(listed) + (f", {more:,} more" if more else "")))
        return rows

    def commonest(self, name: str) -> list[tuple[str, int]]:
        """Letters in their order, and of other names the commonest."""
        counts = self.names[name]
        return sorted(counts.items()) if name == "letter" else counts.most_common(MOST_NAMES)

    def summary(self) -> str:
        """All of it, to be printed."""
        lines = [("", "smallest", "median", "mean", "99 %", "largest"), *self.rows()]
        table = [first.ljust(34) + "".join(part.rjust(11) for part in others) for first, *others in lines]
        return "\n".join([*table, "", *(f"{title}: {listed}" for title, listed in self.shares())])


def collect(folder: str, source: Source, count: int, model: str | None, max_pixels: int | None) -> tuple[Stats, int]:
    """The statistics of so many random samples, and how many the set has."""
    if model is not None:
        from data.shards.tokens import processor, tokens

        processor(model, max_pixels)  # or each sample would be one with a fault
    stats = Stats()
    total, pieces = some(folder, source, count, SEED)
    for piece in pieces:
        try:
            sample = read(piece)
            stats.add(sample, len(piece.content), tokens(sample, model, max_pixels) if model is not None else None)
        except DataError as error:
            stats.faults.append(str(error))
    if not stats.samples:
        raise DataError(f"{folder}: no sample that can be read; see what lint says")
    return stats, total


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.3g}"


def short(name: str) -> str:
    """A name from outside, to be shown."""
    name = shown(name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
